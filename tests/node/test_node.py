"""Nodes over memory links: sessions open, run, fail and end as the protocol says."""

import asyncio

import pytest

from swarm_net.messages import Cancel, Failure, HopSpec, ModelId, Opened, Refuse, Result, SamplingSpec
from swarm_net.session_errors import (
    BadStep,
    ContextTooLong,
    Draining,
    HopLost,
    HopUnreachable,
    KVFull,
    ModelNotServed,
    PositionGap,
    SessionFull,
    SessionUnknown,
    SpanNotServed,
    Unsupported,
    from_failure,
)
from swarm_sim.digest_executor import Speed
from tests.node.swarm import Peer, body, expected, prefill, settled, swarm

SESSION = b"session-of-tests"
PROMPT = list(range(100, 120))
THREE = ((0, 3), (3, 6), (6, 8))


async def generate(client: Peer, link: object, session: bytes, prompt: list[int], tokens: int) -> list[int]:
    """Greedy decoding by hand."""
    link.send(prefill(session, prompt), body(prompt))
    ids: list[int] = []
    for frame in range(1, tokens + 1):
        result = await client.hear()
        assert isinstance(result, Result), result
        assert result.position == len(prompt) + len(ids)
        ids += result.tokens
        if frame < tokens:
            link.send(prefill(session, ids[-1:], frame=frame, position=result.position), body(ids[-1:]))
    return ids


@pytest.mark.parametrize("spans", [((0, 8),), ((0, 3), (3, 8)), THREE, tuple((b, b + 1) for b in range(8))])
async def test_any_split_computes_the_same(spans: tuple[tuple[int, int], ...]) -> None:
    async with swarm(*spans) as nodes:
        client = await nodes.client()
        link, opened = await nodes.open(client, SESSION)
        assert isinstance(opened, Opened)
        assert [grant.hop for grant in opened.grants] == list(range(len(spans)))
        assert await generate(client, link, SESSION, PROMPT, 12) == expected(PROMPT, 12)
        link.send(Cancel(session=SESSION))
        await settled(lambda: all(is_empty(node) for node in nodes.nodes))


async def test_a_span_is_entered_and_left_in_its_middle() -> None:
    async with swarm((0, 5), (2, 8)) as nodes:
        client = await nodes.client()
        link, opened = await nodes.open(client, SESSION, hops=nodes.hops([(0, 3), (3, 8)]))
        assert isinstance(opened, Opened)
        assert await generate(client, link, SESSION, PROMPT, 5) == expected(PROMPT, 5)


async def test_sessions_share_batches_and_keep_apart() -> None:
    async with swarm(*THREE) as nodes:
        clients = [await nodes.client() for _ in range(8)]
        links = [(await nodes.open(client, b"%016d" % n))[0] for n, client in enumerate(clients)]
        prompts = [list(range(n, n + 3 * n + 1)) for n in range(8)]
        ids = await asyncio.gather(
            *(
                generate(client, link, b"%016d" % n, prompts[n], 10)
                for n, (client, link) in enumerate(zip(clients, links, strict=True))
            )
        )
        assert ids == [expected(prompt, 10) for prompt in prompts]


async def test_a_lower_position_cuts_the_cache_and_a_duplicate_is_dropped() -> None:
    async with swarm(*THREE) as nodes:
        client = await nodes.client()
        link, _ = await nodes.open(client, SESSION)
        await generate(client, link, SESSION, PROMPT, 3)
        link.send(prefill(SESSION, [7, 8, 9], frame=9, position=15), body([7, 8, 9]))
        link.send(prefill(SESSION, [7, 8, 9], frame=9, position=15), body([7, 8, 9]))
        result = await client.hear()
        assert isinstance(result, Result)
        assert result.tokens == (expected([*PROMPT[:15], 7, 8, 9], 1)[0],)
        link.send(prefill(SESSION, [1], frame=10, position=18), body([1]))
        again = await client.hear()
        assert isinstance(again, Result)
        assert again.frame == 10


async def test_a_higher_epoch_voids_what_waits() -> None:
    async with swarm(*THREE, speed=Speed(block_s=0.005)) as nodes:
        client = await nodes.client()
        link, _ = await nodes.open(client, SESSION)
        link.send(prefill(SESSION, PROMPT), body(PROMPT))
        await asyncio.sleep(0.02)  # its first piece runs
        link.send(prefill(SESSION, [5, 6], epoch=1, frame=0), body([5, 6]))
        result = await client.hear()
        assert isinstance(result, Result)
        assert (result.epoch, result.tokens) == (1, tuple(expected([5, 6], 1)))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": ModelId(name="digests", revision="e" * 64)}, ModelNotServed),
        ({"max_tokens": 9000}, ContextTooLong),
        ({"max_tokens": 1025}, KVFull),
        ({"codec": "int8"}, Unsupported),
        ({"adapter": "lora"}, Unsupported),
        ({"edges": "local"}, Unsupported),
        ({"sampling": SamplingSpec(temperature=-1.0)}, BadStep),
        ({"sampling": SamplingSpec(top_p=float("nan"))}, BadStep),
    ],
)
async def test_what_cannot_be_served_is_refused_at_once(changes: dict[str, object], error: type) -> None:
    async with swarm(*THREE) as nodes:
        client = await nodes.client()
        _, answer = await nodes.open(client, SESSION, **changes)
        assert isinstance(answer, Refuse)
        refusal = from_failure(answer.failure)
        assert isinstance(refusal, error)
        assert refusal.hop == 0
        assert all(is_empty(node) for node in nodes.nodes)


async def test_routes_that_do_not_fit_are_refused() -> None:
    async with swarm(*THREE) as nodes:
        client = await nodes.client()
        for spans, error in (
            ([(0, 4), (4, 6), (6, 8)], SpanNotServed),
            ([(0, 3), (4, 6), (6, 8)], BadStep),
            ([(0, 3), (3, 6), (6, 7)], BadStep),
        ):
            _, answer = await nodes.open(client, SESSION, hops=nodes.hops(spans))
            assert isinstance(answer, Refuse)
            assert isinstance(from_failure(answer.failure), error)
        await settled(lambda: all(is_empty(node) for node in nodes.nodes))


async def test_a_later_hop_that_is_full_or_gone_names_itself() -> None:
    async with swarm(*THREE) as nodes:
        client = await nodes.client()
        nodes.nodes[1].table.kv_promised = nodes.nodes[1].facts.kv_tokens
        _, answer = await nodes.open(client, SESSION)
        assert isinstance(answer, Refuse)
        refusal = from_failure(answer.failure)
        assert isinstance(refusal, KVFull)
        assert (refusal.hop, refusal.peer, refusal.tokens_free) == (1, nodes.peers[1], 0)

        gone = HopSpec(peer=nodes.peers[1], start=3, end=6, addresses=(f"/ip4/10.9.9.9/tcp/1/p2p/{nodes.peers[1]}",))
        hops = nodes.hops()
        nodes.network.disconnect(nodes.peers[1])
        _, answer = await nodes.open(client, b"another-session-", hops=(hops[0], gone, hops[2]))
        assert isinstance(answer, Refuse)
        unreachable = from_failure(answer.failure)
        assert isinstance(unreachable, HopUnreachable)
        assert unreachable.hop == 0
        await settled(lambda: is_empty(nodes.nodes[0]))


async def failure(client: Peer) -> Exception:
    message = await client.hear()
    assert isinstance(message, Failure), message
    return from_failure(message)


async def test_bad_steps_end_the_session_and_a_gap_does_not() -> None:
    async with swarm(*THREE) as nodes:
        client = await nodes.client()
        for number, (step, data, error) in enumerate(
            [
                (prefill(SESSION, [1, 2]), body([1]), BadStep),
                (prefill(SESSION, [1, 40_000]), body([1, 40_000]), BadStep),
                (prefill(SESSION, [1, -1]), body([1, -1]), BadStep),
                (prefill(SESSION, list(range(65))), body(range(65)), SessionFull),
                (prefill(SESSION, [1], codec="int8"), body([1]), BadStep),
            ]
        ):
            link, opened = await nodes.open(client, SESSION)
            assert isinstance(opened, Opened), number
            link.send(step, data)
            assert isinstance(await failure(client), error)
            link.send(step, data)
            assert isinstance(await failure(client), SessionUnknown)
            await settled(lambda: all(is_empty(node) for node in nodes.nodes))

        link, _ = await nodes.open(client, SESSION)
        link.send(prefill(SESSION, [1], position=5), body([1]))
        gap = await failure(client)
        assert isinstance(gap, PositionGap)
        assert gap.cached == 0
        assert await generate(client, link, SESSION, PROMPT, 2) == expected(PROMPT, 2)


async def test_a_stranger_cannot_touch_a_session() -> None:
    async with swarm((0, 8)) as nodes:
        client, stranger = await nodes.client(), await nodes.client()
        link, _ = await nodes.open(client, SESSION)
        other = await stranger.endpoint.link(nodes.peers[0], nodes.addresses[0], timeout_s=2)
        other.send(Cancel(session=SESSION))
        other.send(prefill(SESSION, [1]), body([1]))
        assert isinstance(await failure(stranger), SessionUnknown)
        assert await generate(client, link, SESSION, PROMPT, 2) == expected(PROMPT, 2)


async def test_a_session_that_nobody_uses_ends_after_its_idle_timeout() -> None:
    async with swarm(*THREE, idle_timeout_s=0.2) as nodes:
        client = await nodes.client()
        await nodes.open(client, SESSION)
        assert isinstance(await failure(client), SessionUnknown)
        await settled(lambda: all(is_empty(node) for node in nodes.nodes))


async def test_a_client_that_vanishes_frees_everything() -> None:
    async with swarm(*THREE) as nodes:
        client = await nodes.client()
        link, _ = await nodes.open(client, SESSION)
        link.send(prefill(SESSION, PROMPT), body(PROMPT))
        nodes.network.disconnect(client.endpoint.peer)
        await settled(lambda: all(is_empty(node) for node in nodes.nodes))


@pytest.mark.parametrize("lost", [1, 2])
async def test_a_hop_that_is_lost_is_named(lost: int) -> None:
    async with swarm(*THREE) as nodes:
        client = await nodes.client()
        link, _ = await nodes.open(client, SESSION)
        await generate(client, link, SESSION, PROMPT, 2)
        nodes.network.disconnect(nodes.peers[lost])
        error = await failure(client)
        assert isinstance(error, HopLost)
        assert (error.hop, error.target) == (lost - 1, nodes.peers[lost])
        await settled(lambda: all(is_empty(node) for node in nodes.nodes[:lost]))


async def test_a_node_that_stops_tells_its_clients_at_once() -> None:
    async with swarm(*THREE) as nodes:
        client = await nodes.client()
        await nodes.open(client, SESSION)
        nodes.nodes[1].drain()
        error = await failure(client)
        assert isinstance(error, Draining)
        assert error.hop == 1
        _, answer = await nodes.open(client, b"another-session-")
        assert isinstance(answer, Refuse)
        await settled(lambda: all(is_empty(node) for node in nodes.nodes))


async def test_repetition_penalties_reach_the_last_hop_with_every_id() -> None:
    async with swarm(*THREE) as nodes:
        client = await nodes.client()
        link, _ = await nodes.open(client, SESSION, sampling=SamplingSpec(repetition_penalty=1.5))
        ids = await generate(client, link, SESSION, PROMPT, 4)
        known = nodes.nodes[2].table.sessions[SESSION].ids
        assert known is not None
        assert known.tolist() == [*PROMPT, *ids[:3]]


def is_empty(node: object) -> bool:
    """No session, no promise of KV, nothing cached."""
    table = node.table
    return not table.sessions and table.kv_promised == 0 and not node._compute._core.executor._caches
