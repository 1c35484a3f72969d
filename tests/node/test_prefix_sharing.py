"""What hops keep of a prompt: found again by its client, agreed on by all hops, and out of reach for anybody else."""

import asyncio
from collections.abc import Sequence

import pytest

from swarm_net.links import Link, PeerId
from swarm_net.messages import Cancel, Open, Opened, Result, SamplingSpec, Step
from swarm_net.prefixes import PREFIX_CHUNK_TOKENS, prefix_digests
from swarm_sim.digest_model import DIGEST_BYTES
from tests.node.swarm import MODEL, Peer, Swarm, body, expected, prefill, settled, swarm

CHUNK = PREFIX_CHUNK_TOKENS
PROMPT = list(range(1000, 1000 + 3 * CHUNK + 7))
TWO = ((0, 3), (3, 8))
SALT = b"known to the client alone"
MAX_TOKENS = 4 * CHUNK


def names(prompt: Sequence[int]) -> tuple[bytes, ...]:
    return prefix_digests(prompt, revision=MODEL.revision, salt=SALT)


async def ask(
    network: Swarm, client: Peer, number: int, prompt: Sequence[int], **changes: object
) -> tuple[list[int], int, Link]:
    """Open a session, send what the hops do not have, and return what each has, the token, and the link."""
    session = number.to_bytes(16, "big")
    fields = {"prefix": names(prompt), "max_tokens": MAX_TOKENS, **changes}
    link, opened = await network.open(client, session, **fields)
    assert isinstance(opened, Opened), opened
    cached = [grant.cached_tokens for grant in opened.grants]
    start = min(cached)
    link.send(prefill(session, prompt[start:], position=start), body(prompt[start:]))
    result = await client.hear()
    assert isinstance(result, Result), result
    return cached, result.tokens[0], link


async def end(network: Swarm, link: Link, number: int) -> None:
    link.send(Cancel(session=number.to_bytes(16, "big")))
    await settled(lambda: not any(node.table.sessions or node.table.ending for node in network.nodes))


async def test_a_client_finds_the_beginning_of_its_prompt_again() -> None:
    async with swarm(*TWO) as network:
        client = await network.client()
        cached, token, link = await ask(network, client, 1, PROMPT)
        assert (cached, [token]) == ([0, 0], expected(PROMPT, 1))
        cached, token, _ = await ask(network, client, 2, PROMPT)  # while the first one still runs
        assert (cached, [token]) == ([3 * CHUNK, 3 * CHUNK], expected(PROMPT, 1))
        other_end = [*PROMPT[: CHUNK + 5], *range(5000, 5000 + CHUNK)]
        cached, token, _ = await ask(network, client, 3, other_end)
        assert (cached, [token]) == ([CHUNK, CHUNK], expected(other_end, 1))
        link.send(Cancel(session=(1).to_bytes(16, "big")))
        cached, token, _ = await ask(network, client, 4, [*PROMPT, 7])
        assert (cached, [token]) == ([3 * CHUNK, 3 * CHUNK], expected([*PROMPT, 7], 1))


async def test_the_hop_that_has_least_decides() -> None:
    async with swarm((0, 3), (3, 6), (6, 8), (3, 6)) as network:
        client = await network.client()
        first, second, third, fresh = network.hops([(0, 3), (3, 6), (6, 8), (3, 6)])
        _, token, link = await ask(network, client, 1, PROMPT, hops=(first, second, third))
        await end(network, link, 1)
        cached, token, _ = await ask(network, client, 2, PROMPT, hops=(first, fresh, third))
        assert cached == [3 * CHUNK, 0, 0]  # the last hop knows only what came by way of `second`
        assert [token] == expected(PROMPT, 1)


async def test_another_salt_client_or_revision_names_other_prefixes() -> None:
    own = prefix_digests(PROMPT, revision="a", salt=SALT)
    assert len(own) == 3
    assert len(prefix_digests(PROMPT[: 3 * CHUNK], revision="a", salt=SALT)) == 2  # the last token is computed
    for other in (
        prefix_digests(PROMPT, revision="b", salt=SALT),
        prefix_digests(PROMPT, revision="a", salt=b""),
        prefix_digests([1, *PROMPT[1:]], revision="a", salt=SALT),
    ):
        assert not set(own) & set(other)


async def test_a_stranger_who_knows_the_digests_finds_nothing() -> None:
    async with swarm(*TWO) as network:
        client, stranger = await network.client(), await network.client()
        await ask(network, client, 1, PROMPT)
        cached, token, _ = await ask(network, stranger, 2, PROMPT)
        assert (cached, [token]) == ([0, 0], expected(PROMPT, 1))


async def poison(network: Swarm, victim: Peer, stranger: Peer) -> None:
    """Send the second hop wrong activations under the victim's names, as if from the victim's session."""
    first, second = network.hops()
    session = b"poisoned-session"
    link = await stranger.endpoint.link(PeerId(second.peer), second.addresses, timeout_s=2)
    await victim.endpoint.link(PeerId(second.peer), second.addresses, timeout_s=2)
    opening = Open(
        session=session,
        client=victim.endpoint.peer,
        model=MODEL,
        hops=(first, second),
        hop=1,
        max_tokens=MAX_TOKENS,
        prefix=names(PROMPT),
        deadline_ms=3000,
    )
    link.send(opening)
    assert isinstance(await stranger.hear(), Opened)
    count = 3 * CHUNK
    step = Step(session=session, frame=0, position=0, count=count, kind="prefill", sample=False, sent_ns=1)
    link.send(step, bytes(count * DIGEST_BYTES))
    await settled(lambda: all(not known.waiting_tokens for known in network.nodes[1].table.sessions.values()))
    await asyncio.sleep(0.05)
    link.send(Cancel(session=session))
    await settled(lambda: not network.nodes[1].table.sessions)


async def test_a_stranger_cannot_put_wrong_keys_under_a_clients_names() -> None:
    async with swarm(*TWO) as network:
        client, stranger = await network.client(), await network.client()
        await poison(network, client, stranger)
        _, token, _ = await ask(network, client, 1, PROMPT)
        cached, again, _ = await ask(network, client, 2, PROMPT)
        assert cached == [3 * CHUNK, 3 * CHUNK]
        assert [token] == [again] == expected(PROMPT, 1)


async def test_where_everyone_shares_a_stranger_can() -> None:
    """Why sharing between strangers is off: what it does to the victim's text."""
    async with swarm(*TWO, prefix_sharing="everyone") as network:
        client, stranger = await network.client(), await network.client()
        await poison(network, client, stranger)
        await ask(network, client, 2, PROMPT)  # fills hop 0, which the stranger did not reach
        cached, again, _ = await ask(network, client, 3, PROMPT)
        assert cached == [3 * CHUNK, 3 * CHUNK]
        assert [again] != expected(PROMPT, 1)


@pytest.mark.parametrize("changes", [{"sampling": SamplingSpec(repetition_penalty=1.5)}, {"prefix": ()}])
async def test_sessions_that_need_every_id_or_name_nothing_begin_at_the_beginning(changes: dict[str, object]) -> None:
    async with swarm((0, 8)) as network:
        client = await network.client()
        await ask(network, client, 1, PROMPT)
        cached, _, _ = await ask(network, client, 2, PROMPT, **changes)
        assert cached == [0]


async def test_nothing_is_kept_where_the_operator_says_so() -> None:
    async with swarm((0, 8), prefix_sharing="off") as network:
        client = await network.client()
        await ask(network, client, 1, PROMPT)
        cached, token, _ = await ask(network, client, 2, PROMPT)
        assert (cached, [token]) == ([0], expected(PROMPT, 1))
