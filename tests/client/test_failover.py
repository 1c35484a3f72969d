"""Routes that fail, on scripted nodes: what the client does about each way, and what its caller learns."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from swarm_client import AsyncRemoteModel
from swarm_client.deadlines import Patience
from swarm_client.errors import BadResult
from swarm_client.failover import MAX_ATTEMPTS
from swarm_client.token_stream import TokenStream
from swarm_net.errors import NetError, NoRoute
from swarm_net.frames import FrameLimits
from swarm_net.messages import Open, Result, Step
from swarm_net.session_errors import (
    BadStep,
    ComputeFailed,
    Draining,
    HopLost,
    HopSilent,
    HopUnreachable,
    KVFull,
    PositionGap,
    SessionError,
    SpanNotServed,
)
from tests.client.fake_swarm import FakeModel, FakeSwarm, Script, continuation, fake_swarm, until

PROMPT = [5, 6, 7]
# Longer than a busy machine makes a good node wait
HURRY = Patience(factor=0.001, step_floor_s=1.5, dial_timeout_s=1.0, opening_floor_s=1.0)
KV_FULL = KVFull(tokens_needed=23, tokens_free=4, tokens_total=100)


def connect(swarm: FakeSwarm, tmp_path: Path, patience: Patience = HURRY):  # type: ignore[no-untyped-def]
    return AsyncRemoteModel.connect(
        "fake", swarm.bootstrap, cache_dir=tmp_path / "cache", patience=patience, world=swarm.world()
    )


def wrong(**changes: object) -> Callable[[Result], Result]:
    return lambda result: msgspec.structs.replace(result, **changes)


FIRST_TIME = [
    Script(refuse=KV_FULL),
    Script(refuse=Draining()),
    Script(refuse=SpanNotServed(start=0, end=8, served_start=0, served_end=4)),
    Script(ignore_open=True),
    Script(silent_after=0),
    Script(silent_after=5),
    Script(fail_after=(4, ComputeFailed(reason="out of memory"))),
    Script(fail_after=(4, Draining())),
    Script(vanish_after=0),
    Script(vanish_after=6),
    Script(alter=wrong(tokens=())),
    Script(alter=wrong(tokens=(5, 6))),
    Script(alter=wrong(tokens=(2**31 - 1,))),
    Script(alter=wrong(position=77)),
    Script(limits=FrameLimits(max_header=200, max_body=1024)),  # less than an Open
    Script(limits=FrameLimits(max_header=1024, max_body=8)),  # less than the prompt
]


@pytest.mark.parametrize("script", FIRST_TIME)
async def test_another_node_goes_on_as_if_nothing_had_happened(
    model: FakeModel, tmp_path: Path, script: Script
) -> None:
    """The bad node looks faster, so it is chosen first."""
    async with fake_swarm(model, (0, 8), (0, 8), scripts=[script, Script()]) as swarm:
        bad, good = swarm.nodes
        await bad.publish(decode_tokens_per_s=1000.0)
        async with AsyncRemoteModel.connect(
            "fake", [good.addresses[0]], cache_dir=tmp_path / "cache", patience=HURRY, world=swarm.world()
        ) as remote:
            stream = remote.stream(PROMPT, max_new_tokens=20)
            tokens = [token.id async for token in stream]
            found = stream.generation
            assert found is not None
            assert tokens == found.token_ids == continuation(PROMPT, 20, model.vocabulary)
            assert [hop.peer for hop in found.route] == [good.peer]
            assert len(found.retries) == 1
            assert found.retries[0].peers == (bad.peer,)
            # The bad node is avoided for a while.
            again = await remote.generate(PROMPT, max_new_tokens=2)
            assert again.retries == ()
            await until(lambda: not good.sessions)


async def test_what_is_known_is_fed_to_the_next_route(model: FakeModel, tmp_path: Path) -> None:
    script = Script(fail_after=(4, ComputeFailed(reason="x")))
    async with fake_swarm(model, (0, 8), (0, 8), scripts=[script, Script()]) as swarm:
        bad, good = swarm.nodes
        await bad.publish(decode_tokens_per_s=1000.0)
        async with connect(swarm, tmp_path) as remote:
            found = await remote.generate(PROMPT, max_new_tokens=10, temperature=1.0, seed=5)
        assert found.token_ids == continuation(PROMPT, 10, model.vocabulary, seed=5)
        assert found.seed == 5
        assert found.retries[0].tokens_done == 4
        prefill = next(message for message in good.heard if isinstance(message, Step))
        assert (prefill.kind, prefill.position, prefill.count) == ("prefill", 0, 3 + 4)
        openings = [message for node in swarm.nodes for message in node.heard if isinstance(message, Open)]
        assert len({opening.session for opening in openings}) == 2
        assert {opening.sampling.seed for opening in openings} == {5}


async def until_failure(stream: TokenStream) -> tuple[list[int], Exception | None]:
    """Return the tokens of a stream and what ended it."""
    tokens: list[int] = []
    try:
        async for token in stream:
            tokens.append(token.id)  # noqa: PERF401
    except (NetError, BadResult) as error:
        return tokens, error
    return tokens, None


@pytest.mark.parametrize(
    "error",
    [KV_FULL, ComputeFailed(reason="x"), SpanNotServed(start=0, end=8, served_start=0, served_end=4)],
)
async def test_with_nobody_else_the_refusal_surfaces_at_once(
    model: FakeModel, tmp_path: Path, error: SessionError
) -> None:
    async with fake_swarm(model, (0, 8), scripts=[Script(refuse=error)]) as swarm, connect(swarm, tmp_path) as remote:
        with pytest.raises(type(error)) as caught:
            await remote.generate(PROMPT, max_new_tokens=20)
        assert caught.value.hop == 0
        assert caught.value.peer == swarm.nodes[0].peer
        assert caught.value.text() == error.text()
        assert swarm.nodes[0].count(Open) == 1


async def test_a_node_that_says_when_is_asked_again_then(model: FakeModel, tmp_path: Path) -> None:
    script = Script(refuse=KV_FULL, retry_after_ms=50)
    async with fake_swarm(model, (0, 8), scripts=[script]) as swarm, connect(swarm, tmp_path) as remote:
        running = asyncio.ensure_future(remote.generate(PROMPT, max_new_tokens=5))
        await until(lambda: swarm.nodes[0].count(Open) == 1)
        script.refuse = None
        found = await running
        assert found.token_ids == continuation(PROMPT, 5, model.vocabulary)
        assert [retry.error for retry in found.retries] == ["kv_full"]


async def test_an_error_of_the_request_is_not_tried_elsewhere(model: FakeModel, tmp_path: Path) -> None:
    error = BadStep(reason="no")
    scripts = [Script(fail_after=(2, error)), Script(fail_after=(2, error))]
    async with fake_swarm(model, (0, 8), (0, 8), scripts=scripts) as swarm, connect(swarm, tmp_path) as remote:
        tokens, error = await until_failure(remote.stream(PROMPT, max_new_tokens=5))
        assert isinstance(error, BadStep)
        assert tokens == continuation(PROMPT, 2, model.vocabulary)
        assert sum(node.count(Open) for node in swarm.nodes) == 1
        await until(lambda: not any(node.sessions for node in swarm.nodes))


async def test_a_gap_is_mended_by_a_new_session_at_the_same_place(model: FakeModel, tmp_path: Path) -> None:
    script = Script(fail_after=(2, PositionGap(position=5, cached=4)))
    async with fake_swarm(model, (0, 8), scripts=[script]) as swarm, connect(swarm, tmp_path) as remote:
        found = await remote.generate(PROMPT, max_new_tokens=5)
        assert found.token_ids == continuation(PROMPT, 5, model.vocabulary)
        assert [retry.tokens_done for retry in found.retries] == [2, 4]


async def test_a_route_that_stays_silent_ends_in_a_typed_error(model: FakeModel, tmp_path: Path) -> None:
    async with fake_swarm(model, (0, 8), scripts=[Script(silent_after=0)]) as swarm:
        patience = Patience(factor=0.001, step_floor_s=0.02, dial_timeout_s=0.5, opening_floor_s=0.1)
        async with connect(swarm, tmp_path, patience) as remote:
            with pytest.raises(HopSilent):
                await remote.generate(PROMPT, max_new_tokens=5)
            assert swarm.nodes[0].count(Open) == MAX_ATTEMPTS


async def test_a_node_that_stops_for_good_ends_in_a_typed_error(model: FakeModel, tmp_path: Path) -> None:
    async with fake_swarm(model, (0, 8), scripts=[Script(vanish_after=3)]) as swarm, connect(swarm, tmp_path) as remote:
        tokens, error = await until_failure(remote.stream(PROMPT, max_new_tokens=20))
        assert isinstance(error, NoRoute)
        assert error.missing == ((0, 8),)
        assert isinstance(error.__cause__, HopLost | HopUnreachable)
        assert tokens == continuation(PROMPT, 3, model.vocabulary)


async def test_with_nobody_else_a_stopping_node_leaves_blocks_that_nobody_serves(
    model: FakeModel, tmp_path: Path
) -> None:
    scripts = [Script(), Script(refuse=Draining())]
    async with fake_swarm(model, (0, 4), (4, 8), scripts=scripts) as swarm, connect(swarm, tmp_path) as remote:
        with pytest.raises(NoRoute) as caught:
            await remote.generate(PROMPT, max_new_tokens=20)
        assert caught.value.missing == ((4, 8),)
        assert isinstance(caught.value.__cause__, Draining)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("script", [Script(vanish_after=4), Script(silent_after=4), Script(refuse=KV_FULL)])
async def test_any_hop_of_a_longer_route_can_be_replaced(
    model: FakeModel, tmp_path: Path, place: int, script: Script
) -> None:
    spans = [(0, 3), (3, 5), (5, 8)]
    scripts = [script if number == place else Script() for number in range(3)]
    async with fake_swarm(model, *spans, scripts=scripts) as swarm:
        spare = [await swarm.add(span, Script()) for span in spans]
        for node in swarm.nodes[:3]:
            await node.publish(decode_tokens_per_s=1000.0)
        async with AsyncRemoteModel.connect(
            "fake", [spare[0].addresses[0]], cache_dir=tmp_path / "cache", patience=HURRY, world=swarm.world()
        ) as remote:
            found = await remote.generate(PROMPT, max_new_tokens=12)
            assert found.token_ids == continuation(PROMPT, 12, model.vocabulary)
            assert len(found.retries) == 1
            assert swarm.nodes[place].peer not in [hop.peer for hop in found.route]
            await until(lambda: not any(node.sessions for node in spare))


async def test_a_node_that_only_talks_nonsense(model: FakeModel, tmp_path: Path) -> None:
    script = Script(alter=wrong(tokens=(2**31 - 1,)))
    async with fake_swarm(model, (0, 8), scripts=[script]) as swarm, connect(swarm, tmp_path) as remote:
        with pytest.raises(BadResult) as caught:
            await remote.generate(PROMPT, max_new_tokens=5)
        assert caught.value.peer == swarm.nodes[0].peer
        assert swarm.nodes[0].count(Open) == 1


async def test_missing_logprobs_are_nonsense_only_if_asked_for(model: FakeModel, tmp_path: Path) -> None:
    script = Script(alter=wrong(logprobs=(float("nan"),)))
    async with fake_swarm(model, (0, 8), scripts=[script]) as swarm, connect(swarm, tmp_path) as remote:
        assert len((await remote.generate(PROMPT, max_new_tokens=2)).token_ids) == 2
        with pytest.raises(BadResult):
            await remote.generate(PROMPT, max_new_tokens=2, logprobs=True)


async def test_a_stranger_cannot_answer(model: FakeModel, tmp_path: Path) -> None:
    """A peer that knows the session's id but is not its last hop is not listened to."""
    async with fake_swarm(model, (0, 8), scripts=[Script(step_s=0.02)]) as swarm, connect(swarm, tmp_path) as remote:
        node = swarm.nodes[0]
        stranger = await swarm.add((0, 8))
        running = asyncio.ensure_future(remote.generate(PROMPT, max_new_tokens=5))
        await until(lambda: node.count(Step) >= 1)
        client = next(message for message in node.heard if isinstance(message, Open)).client
        link = await remote._connection.endpoint.link(stranger.peer, stranger.addresses, timeout_s=1)
        assert link.is_open
        back = stranger.endpoint.get(client)  # type: ignore[arg-type]
        assert back is not None
        session = next(iter(node.sessions))
        for frame in range(1, 6):
            back.send(Result(session=session, frame=frame, position=2 + frame, tokens=(9,)))
        assert (await running).token_ids == continuation(PROMPT, 5, model.vocabulary)


async def test_sixteen_sessions_lose_a_node_together(model: FakeModel, tmp_path: Path) -> None:
    async with fake_swarm(model, (0, 8), (0, 8), scripts=[Script(step_s=0.002), Script(step_s=0.002)]) as swarm:
        first, second = swarm.nodes
        await first.publish(decode_tokens_per_s=1000.0)
        async with AsyncRemoteModel.connect(
            "fake", [second.addresses[0]], cache_dir=tmp_path / "cache", patience=HURRY, world=swarm.world()
        ) as remote:
            prompts = [[9, n] for n in range(16)]
            running = asyncio.ensure_future(remote.generate(prompts, max_new_tokens=20))
            await until(lambda: first.count(Step) > 60)
            first.vanish()
            found = await running
            assert [one.token_ids for one in found] == [continuation(ids, 20, model.vocabulary) for ids in prompts]
            await until(lambda: not second.sessions)
            assert len(remote._connection.dispatcher) == 0


async def test_a_silent_hop_among_others_that_cannot_be_replaced(model: FakeModel, tmp_path: Path) -> None:
    """Nobody knows which hop is silent, and only that one has a spare."""
    scripts = [Script(), Script(silent_after=2), Script()]
    async with fake_swarm(model, (0, 3), (3, 5), (5, 8), scripts=scripts) as swarm:
        await swarm.nodes[1].publish(decode_tokens_per_s=1000.0)
        await swarm.add((3, 5))
        patience = Patience(factor=0.001, step_floor_s=0.05, dial_timeout_s=0.5, opening_floor_s=0.1)
        async with connect(swarm, tmp_path, patience) as remote:
            found = await remote.generate(PROMPT, max_new_tokens=20)
            assert found.token_ids == continuation(PROMPT, 20, model.vocabulary)
            assert found.retries[0].error == "hop_silent"
