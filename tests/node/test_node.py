"""Nodes over memory links: sessions open, run, fail and end as the protocol says."""

import asyncio
import dataclasses

import pytest

from swarm_net.frames import FrameLimits
from swarm_net.links import PeerId
from swarm_net.messages import (
    Cancel,
    Failure,
    HopGrant,
    HopSpec,
    HopTiming,
    Lane,
    ModelId,
    Open,
    Opened,
    Refuse,
    Result,
    SamplingSpec,
    TokenBias,
)
from swarm_net.session_errors import (
    BadStep,
    ContextTooLong,
    Draining,
    HopLost,
    HopSilent,
    HopUnreachable,
    KVFull,
    ModelNotServed,
    Overloaded,
    PositionGap,
    SessionFull,
    SessionUnknown,
    SpanNotServed,
    Unsupported,
    from_failure,
)
from swarm_sim.digest_executor import Speed
from tests.node.swarm import MODEL, Peer, Swarm, body, endpoint, expected, prefill, settled, swarm

SESSION = b"session-of-tests"
PROMPT = list(range(100, 120))
THREE = ((0, 3), (3, 6), (6, 8))
GREETING_BYTES = 512  # of a packet while a memory link is dialed


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
        ({"numeric_class": "float32"}, Unsupported),
        ({"sampling": SamplingSpec(temperature=-1.0)}, BadStep),
        ({"sampling": SamplingSpec(top_p=float("nan"))}, BadStep),
        ({"sampling": SamplingSpec(frequency_penalty=2.5)}, BadStep),
        ({"sampling": SamplingSpec(presence_penalty=float("nan"))}, BadStep),
        ({"sampling": SamplingSpec(prompt_tokens=65)}, BadStep),
        ({"sampling": SamplingSpec(logit_bias=(TokenBias(1, 101.0),))}, BadStep),
        ({"sampling": SamplingSpec(logit_bias=(TokenBias(10**6, 1.0),))}, BadStep),
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


async def test_a_node_with_too_much_to_do_says_so_and_when_to_come_back() -> None:
    async with swarm((0, 8), speed=Speed(0.05, 0), prefill_tokens_per_s=1.0) as network:
        client = await network.client()
        link, _ = await network.open(client, SESSION, max_tokens=1024)
        prompt = list(range(100))  # for 100 s, by what is promised
        link.send(prefill(SESSION, prompt), body(prompt))
        await settled(lambda: network.nodes[0].load().queued_tokens > 60)
        _, answer = await network.open(client, b"another-session-")
        assert isinstance(answer, Refuse)
        error = from_failure(answer.failure)
        assert isinstance(error, Overloaded)
        assert 60_000 < error.waiting_ms <= 100_000
        assert answer.retry_after_ms == error.waiting_ms - 30_000
        assert answer.load.queued_tokens > 60


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


async def test_who_opens_a_session_learns_nothing_of_why_an_address_did_not_work() -> None:
    async with swarm((0, 4), (4, 8)) as nodes:
        client = await nodes.client()
        told = set()
        peer, other = nodes.peers[1], nodes.peers[0]
        nodes.network.disconnect(peer)
        for number, address in enumerate(
            (f"/ip4/10.9.9.9/tcp/22/p2p/{peer}", nodes.addresses[0][0], f"/ip4/10.9.9.9/tcp/1/p2p/{other}", "nonsense")
        ):
            hop = HopSpec(peer=peer, start=4, end=8, addresses=(address.replace(f"p2p/{other}", f"p2p/{peer}"),))
            links = await client.endpoint.link(nodes.peers[0], nodes.addresses[0], timeout_s=2)
            session = f"session-number-{number}".encode()
            links.send(
                Open(
                    session=session,
                    client=client.endpoint.peer,
                    hops=(nodes.hops()[0], hop),
                    model=MODEL,
                    max_tokens=64,
                    deadline_ms=3000,
                )
            )
            answer = await client.hear()
            assert isinstance(answer, Refuse)
            told.add((answer.failure.code, answer.failure.text, str(sorted(answer.failure.fields.items()))))
        assert len(told) == 1
        assert "refused" not in str(told)


async def test_a_stranger_from_the_internet_cannot_have_private_addresses_dialed() -> None:
    async with swarm((0, 4)) as nodes:
        inner = await endpoint(nodes.network, nodes.stack)
        listener = await inner.listen("0.0.0.0", 0)
        opened: list[Open] = []
        inner.on(Open, lambda link, message, body: opened.append(message))
        hop = HopSpec(peer=inner.peer, start=4, end=8, addresses=listener.addresses)
        stranger, neighbour = await nodes.client(host="8.8.8.8"), await nodes.client()
        for client, session in ((stranger, SESSION), (neighbour, b"another-session-")):
            first = await client.endpoint.link(nodes.peers[0], nodes.addresses[0], timeout_s=2)
            route = (nodes.hops()[0], hop)
            first.send(
                Open(
                    session=session,
                    client=client.endpoint.peer,
                    hops=route,
                    model=MODEL,
                    max_tokens=64,
                    deadline_ms=3000,
                )
            )
            if client is stranger:
                answer = await client.hear()
                assert isinstance(answer, Refuse)
                assert isinstance(from_failure(answer.failure), HopUnreachable)
                assert inner.get(nodes.peers[0]) is None
        await settled(lambda: bool(opened))
        assert [message.session for message in opened] == [b"another-session-"]


async def silent_hop(nodes: Swarm) -> HopSpec:
    """A last hop that takes links and says nothing."""
    silent = await endpoint(nodes.network, nodes.stack)
    listener = await silent.listen("0.0.0.0", 0)
    return HopSpec(peer=silent.peer, start=4, end=8, addresses=listener.addresses)


async def test_no_peer_takes_all_the_room_for_openings() -> None:
    async with swarm((0, 8), max_opening_of_a_peer=2) as nodes:
        attacker, other = await nodes.client(), await nodes.client()
        first = HopSpec(peer=nodes.peers[0], start=0, end=4, addresses=nodes.addresses[0])
        hops = (first, await silent_hop(nodes))
        link = await attacker.endpoint.link(PeerId(first.peer), first.addresses, timeout_s=2)
        for number in range(3):
            fields = {"model": MODEL, "max_tokens": 64, "deadline_ms": 10**9, "hops": hops}
            link.send(Open(session=bytes([number]) * 16, client=attacker.endpoint.peer, **fields))
        answer = await attacker.hear()
        assert isinstance(answer, Refuse)
        assert answer.session == bytes([2]) * 16
        assert "2 sessions of this peer" in str(from_failure(answer.failure))
        _, answer = await nodes.open(other, SESSION)
        assert isinstance(answer, Opened)


async def test_an_opening_is_not_waited_for_longer_than_the_node_likes() -> None:
    async with swarm((0, 8), max_opening_s=0.2) as nodes:
        client = await nodes.client()
        hops = (HopSpec(peer=nodes.peers[0], start=0, end=4, addresses=nodes.addresses[0]), await silent_hop(nodes))
        _, answer = await nodes.open(client, SESSION, hops=hops, deadline_ms=10**9)
        assert isinstance(answer, Refuse)
        error = from_failure(answer.failure)
        assert isinstance(error, HopSilent)
        assert error.waited_ms == 200
        await settled(lambda: is_empty(nodes.nodes[0]))


async def test_a_last_hop_that_cannot_take_grammars_refuses_them() -> None:
    async with swarm(*THREE) as nodes:
        client = await nodes.client()
        _, answer = await nodes.open(client, SESSION, sampling=SamplingSpec(grammar=b"x"))
        assert isinstance(answer, Refuse)
        refusal = from_failure(answer.failure)
        assert isinstance(refusal, Unsupported)
        assert (refusal.feature, refusal.hop) == ("grammar", 2)
        await settled(lambda: all(is_empty(node) for node in nodes.nodes))


async def test_a_span_has_room_for_so_many_running_states() -> None:
    async with swarm(*THREE) as nodes:
        table = nodes.nodes[1].table
        table.facts = dataclasses.replace(table.facts, max_sessions=1)
        client = await nodes.client()
        _, answer = await nodes.open(client, SESSION)
        assert isinstance(answer, Opened)
        assert nodes.nodes[1].load().kv_tokens_free == 0
        _, answer = await nodes.open(client, b"another-session-")
        assert isinstance(answer, Refuse)
        refusal = from_failure(answer.failure)
        assert isinstance(refusal, KVFull)
        assert (refusal.hop, refusal.tokens_free) == (1, 0)


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


def bulk_is_slow(source: PeerId, target: PeerId, frame_bytes: int, lane: Lane) -> float:
    return 0.02 if lane == "bulk" else 0.0


async def test_the_last_token_of_a_prompt_does_not_overtake_it() -> None:
    async with swarm(*THREE, delay=bulk_is_slow) as nodes:
        client = await nodes.client()
        link, _ = await nodes.open(client, SESSION)
        prompt = list(range(17))  # pieces of 8, 8 and 1
        assert await generate(client, link, SESSION, prompt, 3) == expected(prompt, 3)


async def test_a_fast_hop_may_run_far_ahead_of_a_slow_one() -> None:
    async with swarm((0, 1), (1, 8), speed=Speed(block_s=0.0005)) as nodes:
        client = await nodes.client()
        link, _ = await nodes.open(client, SESSION, max_tokens=1000)
        prompt = [n % 100 for n in range(900)]  # 113 pieces
        assert await generate(client, link, SESSION, prompt, 1) == expected(prompt, 1)


async def test_voided_steps_wait_no_longer() -> None:
    async with swarm(*THREE) as nodes:
        client = await nodes.client()
        link, _ = await nodes.open(client, SESSION, max_tokens=16)
        for epoch in range(1, 100):
            link.send(prefill(SESSION, [1] * 12, epoch=epoch), body([1] * 12))
            if epoch % 2:
                await asyncio.sleep(0.001)
        link.send(prefill(SESSION, [5, 6], epoch=100), body([5, 6]))
        while (result := await client.hear()).epoch < 100:  # type: ignore[attr-defined]
            assert isinstance(result, Result)
        assert result.tokens == tuple(expected([5, 6], 1))  # type: ignore[attr-defined]
        await settled(lambda: all(node.load().queued_tokens == 0 for node in nodes.nodes))


async def test_more_steps_than_a_session_can_hold_end_it() -> None:
    async with swarm((0, 8), speed=Speed(block_s=0.05)) as nodes:
        client = await nodes.client()
        link, _ = await nodes.open(client, SESSION, max_tokens=16)
        for frame in range(10):
            link.send(prefill(SESSION, [1] * 16, frame=frame), body([1] * 16))
        assert isinstance(await failure(client), BadStep)
        await settled(lambda: is_empty(nodes.nodes[0]))


async def test_a_session_that_computes_is_not_idle() -> None:
    async with swarm((0, 8), idle_timeout_s=0.1, speed=Speed(block_s=0.05)) as nodes:
        client = await nodes.client()
        link, _ = await nodes.open(client, SESSION)
        link.send(prefill(SESSION, [1, 2, 3]), body([1, 2, 3]))
        result = await client.hear()
        assert isinstance(result, Result), result


async def test_an_id_is_taken_until_nothing_of_its_session_is_left() -> None:
    async with swarm(*THREE, speed=Speed(block_s=0.02)) as nodes:
        client = await nodes.client()
        link, _ = await nodes.open(client, SESSION)
        link.send(prefill(SESSION, PROMPT), body(PROMPT))
        await asyncio.sleep(0.01)  # its first piece runs
        link.send(Cancel(session=SESSION))
        _, answer = await nodes.open(client, SESSION)
        assert isinstance(answer, Refuse)
        assert isinstance(from_failure(answer.failure), BadStep)
        await settled(lambda: all(is_empty(node) for node in nodes.nodes))
        link, _ = await nodes.open(client, SESSION)
        assert await generate(client, link, SESSION, [3, 4], 2) == expected([3, 4], 2)


async def test_a_peer_that_takes_no_frames_harms_nobody_else() -> None:
    async with swarm(*THREE, speed=Speed(block_s=0.002)) as nodes:
        client, deaf = await nodes.client(), await nodes.client(FrameLimits(max_header=8, max_body=0))
        link, _ = await nodes.open(client, SESSION)
        hops = nodes.hops()
        ends = [await deaf.endpoint.link(PeerId(hop.peer), hop.addresses, timeout_s=2) for hop in (hops[0], hops[2])]
        for number in range(4):
            name = b"nobody-hears-%03d" % number
            ends[0].send(Open(session=name[:16], client=deaf.endpoint.peer, model=MODEL, hops=hops, max_tokens=64))
        await settled(lambda: all(len(node.table.sessions) == 5 for node in nodes.nodes))
        await settled(lambda: all(session.is_ready for session in nodes.nodes[0].table.sessions.values()))
        for session in list(nodes.nodes[0].table.sessions):
            if session != SESSION:
                ends[0].send(prefill(session, PROMPT), body(PROMPT))
        assert await generate(client, link, SESSION, PROMPT, 4) == expected(PROMPT, 4)
        nodes.nodes[0].drain()
        assert isinstance(await failure(client), Draining)
        await settled(lambda: all(is_empty(node) for node in nodes.nodes))


async def test_forged_timings_do_not_reach_the_next_hop() -> None:
    async with swarm(*THREE) as nodes:
        client, other = await nodes.client(), await nodes.client()
        link, _ = await nodes.open(client, SESSION)
        theirs, _ = await nodes.open(other, b"another-session-")
        link.send(prefill(SESSION, PROMPT, trail=(HopTiming(1, 1, 1),) * 64), body(PROMPT))
        error = await failure(client)
        assert isinstance(error, BadStep)
        assert error.hop == 0
        assert await generate(other, theirs, b"another-session-", PROMPT, 2) == expected(PROMPT, 2)


async def test_a_hop_that_grants_for_others_is_named() -> None:
    async with swarm((0, 3)) as nodes:
        client, liar = await nodes.client(), await nodes.client()
        listener = await liar.endpoint.listen("0.0.0.0", 0)
        grants = tuple(HopGrant(hop=hop, max_tokens=64, idle_timeout_ms=1) for hop in range(64))
        liar.endpoint.on(Open, lambda link, message, _: link.send(Opened(session=message.session, grants=grants)))
        last = HopSpec(peer=liar.endpoint.peer, start=3, end=8, addresses=listener.addresses)
        link, answer = await nodes.open(client, SESSION, hops=(*nodes.hops(), last))
        assert isinstance(answer, Refuse)
        error = from_failure(answer.failure)
        assert isinstance(error, HopUnreachable)
        assert (error.hop, error.target) == (0, liar.endpoint.peer)
        assert link.is_open
        await settled(lambda: is_empty(nodes.nodes[0]))


async def test_token_ids_for_a_penalty_are_checked_at_every_hop() -> None:
    async with swarm((0, 3), (3, 8)) as nodes:
        forger = await nodes.client()
        hops = nodes.hops()
        link = await forger.endpoint.link(PeerId(hops[1].peer), hops[1].addresses, timeout_s=2)
        sampling = SamplingSpec(repetition_penalty=2.0)
        opening = Open(
            session=SESSION,
            client=forger.endpoint.peer,
            model=MODEL,
            hops=hops,
            hop=1,
            max_tokens=64,
            sampling=sampling,
        )
        link.send(opening)
        assert isinstance(await forger.hear(), Opened)
        activations = bytes(nodes.nodes[1].facts.hidden_bytes)
        link.send(prefill(SESSION, [1], token_ids=body([2**31 - 1])), activations)
        assert isinstance(await failure(forger), BadStep)


async def test_a_hop_that_understands_less_is_named() -> None:
    async with swarm((0, 3)) as nodes:
        client, older = await nodes.client(), await nodes.client()
        listener = await older.endpoint.listen("0.0.0.0", 0)
        refusal = Failure(session=SESSION, code="not_understood", retry="elsewhere", text="no", remedy="update")
        older.endpoint.on(Open, lambda link, message, _: link.send(refusal))
        last = HopSpec(peer=older.endpoint.peer, start=3, end=8, addresses=listener.addresses)
        _, answer = await nodes.open(client, SESSION, hops=(*nodes.hops(), last))
        assert isinstance(answer, Failure)
        assert (answer.code, answer.retry, answer.hop, answer.peer) == (
            "not_understood",
            "elsewhere",
            1,
            older.endpoint.peer,
        )
        await settled(lambda: is_empty(nodes.nodes[0]))


def is_empty(node: object) -> bool:
    """No session, no promise of KV, nothing cached."""
    table = node.table
    left = table.sessions or table.ending or node._openings or node._compute._core.executor._caches
    return not left and table.kv_promised == 0


async def test_nothing_more_is_computed_for_a_link_that_does_not_keep_up() -> None:
    sent_s: list[float] = []
    most_under_way = 0

    def slow_bulk(source: PeerId, target: PeerId, frame_bytes: int, lane: Lane) -> float:
        nonlocal most_under_way
        if lane == "decode" or frame_bytes == GREETING_BYTES:
            return 0.0
        now_s = asyncio.get_running_loop().time()
        sent_s.append(now_s)
        most_under_way = max(most_under_way, sum(sent > now_s - 0.04 for sent in sent_s))
        return 0.04

    prompt = list(range(60))  # eight pieces
    async with swarm((0, 4), (4, 8), delay=slow_bulk, hold_above_bytes=1) as nodes:
        client = await nodes.client()
        link, _ = await nodes.open(client, SESSION)
        assert await generate(client, link, SESSION, prompt, 3) == expected(prompt, 3)
    assert len(sent_s) >= 8
    assert most_under_way <= 3


async def test_a_next_hop_that_takes_nothing_does_not_hold_a_session_for_ever() -> None:
    def stuck(source: PeerId, target: PeerId, frame_bytes: int, lane: Lane) -> float:
        return 0.0 if lane == "decode" or frame_bytes == GREETING_BYTES else 3600.0

    async with swarm((0, 4), (4, 8), delay=stuck, hold_above_bytes=1, slow_link_timeout_s=0.2) as nodes:
        client = await nodes.client()
        link, _ = await nodes.open(client, SESSION)
        link.send(prefill(SESSION, PROMPT), body(PROMPT))
        error = await failure(client)
        assert isinstance(error, HopLost)
        assert "has not taken what was sent" in str(error)
        await settled(lambda: all(is_empty(node) for node in nodes.nodes))
