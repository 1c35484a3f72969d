"""Verify steps at nodes: right, partly right and wrong chains, and steps that are no such thing."""

import asyncio
import dataclasses
import random
from collections.abc import Sequence

import msgspec
import pytest

from swarm_net.messages import Candidate, Failure, Opened, Result, SamplingSpec, Step
from swarm_net.session_errors import (
    BadStep,
    PositionGap,
    RewindImpossible,
    SessionError,
    SessionFull,
    SessionUnknown,
    Unsupported,
    from_failure,
)
from swarm_node.sessions import MAX_CANDIDATES
from swarm_sim.digest_model import VOCABULARY
from tests.node.swarm import Peer, body, expected, prefill, settled, swarm

SESSION, OTHER = b"session-of-tests", b"another-session-"
PROMPT = list(range(100, 120))
THREE = ((0, 3), (3, 6), (6, 8))


def verify(
    position: int, drafts: Sequence[int], *, frame: int = 1, first: int = 1, tip: int = 0, **changes: object
) -> Step:
    """A step of one known token and guesses behind it."""
    ids = range(first, first + len(drafts))
    candidates = tuple(
        Candidate(own, parent, token, position + 1 + place)
        for place, (own, parent, token) in enumerate(zip(ids, [tip, *ids], drafts, strict=False))
    )
    step = Step(
        session=SESSION,
        frame=frame,
        position=position,
        count=len(drafts) + 1,
        kind="verify",
        sample=True,
        tip=tip,
        candidates=candidates,
        sent_ns=1,
    )
    return msgspec.structs.replace(step, **changes)


async def result(client: Peer) -> Result:
    message = await client.hear()
    assert isinstance(message, Result), message
    return message


async def failure(client: Peer) -> SessionError:
    message = await client.hear()
    assert isinstance(message, Failure), message
    error = from_failure(message)
    assert isinstance(error, SessionError)
    return error


@pytest.mark.parametrize("spans", [((0, 8),), THREE])
@pytest.mark.parametrize("sampling", [SamplingSpec(), SamplingSpec(temperature=1.0, seed=7, repetition_penalty=1.2)])
async def test_a_chain_gives_what_single_steps_would(
    spans: tuple[tuple[int, int], ...], sampling: SamplingSpec
) -> None:
    rng = random.Random(3)
    async with swarm(*spans) as nodes:
        client = await nodes.client()
        link, opened = await nodes.open(client, SESSION, max_tokens=256, sampling=sampling)
        assert isinstance(opened, Opened)
        wanted = expected(PROMPT, 200, sampling.seed if sampling.temperature else None)
        link.send(prefill(SESSION, PROMPT), body(PROMPT))
        ids, newest, tip = list((await result(client)).tokens), 0, 0
        for frame in range(1, 40):
            right, wrong = rng.randint(0, 5), rng.randint(0, 5)
            drafts = [*wanted[len(ids) : len(ids) + right], *(rng.randrange(VOCABULARY) for _ in range(wrong))]
            drafts = drafts or [0]
            position = len(PROMPT) + len(ids) - 1
            link.send(verify(position, drafts, frame=frame, first=newest + 1, tip=tip), body([ids[-1], *drafts]))
            answer = await result(client)
            assert answer.position == position + 1
            assert len(answer.tokens) == right + 1
            assert answer.accepted == tuple(range(newest + 1, newest + 1 + right))
            ids += answer.tokens
            assert ids == wanted[: len(ids)]
            tip, newest = answer.accepted[-1] if answer.accepted else tip, newest + len(drafts)
        if sampling.repetition_penalty != 1.0:
            kept = nodes.nodes[-1].table.sessions[SESSION].ids
            assert kept is not None
            assert kept[: position + 1].tolist() == [*PROMPT, *ids][: position + 1]


def chain(*candidates: tuple[int, int, int, int]) -> tuple[Candidate, ...]:
    return tuple(Candidate(*fields) for fields in candidates)


BAD = {
    "one id twice": (verify(20, [7, 8], candidates=chain((1, 0, 7, 21), (1, 1, 8, 22))), BadStep),
    "falling ids": (verify(20, [7, 8], candidates=chain((2, 0, 7, 21), (1, 2, 8, 22))), BadStep),
    "a fork": (verify(20, [7, 8], candidates=chain((1, 0, 7, 21), (2, 0, 8, 22))), BadStep),
    "one place twice": (verify(20, [7, 8], candidates=chain((1, 0, 7, 21), (2, 1, 8, 21))), BadStep),
    "a wrong place": (verify(20, [7, 8], candidates=chain((1, 0, 7, 20), (2, 1, 8, 21))), BadStep),
    "id 0": (verify(20, [7, 8], first=0), BadStep),
    "an unknown tip": (verify(20, [7, 8], tip=9, first=10), BadStep),
    "none": (verify(20, [7, 8], candidates=()), BadStep),
    "too few": (verify(20, [7, 8], candidates=chain((1, 0, 7, 21))), BadStep),
    "other tokens": (verify(20, [7, 8], candidates=chain((1, 0, 7, 21), (2, 1, 9, 22))), BadStep),
    "nothing drawn": (verify(20, [7, 8], sample=False), BadStep),
    "too many": (verify(20, range(MAX_CANDIDATES + 1)), BadStep),
    "outside the vocabulary": (verify(20, [7, VOCABULARY]), BadStep),
    "another kind": (verify(20, [7, 8], kind="prefill"), BadStep),
    "a gap": (verify(22, [7, 8]), PositionGap),
    "no room": (verify(20, range(MAX_CANDIDATES)), SessionFull),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_no_verify_step_is_refused_and_breaks_nothing(name: str) -> None:
    step, error = BAD[name]
    async with swarm(*THREE) as nodes:
        client, neighbour = await nodes.client(), await nodes.client()
        link, _ = await nodes.open(client, SESSION, max_tokens=80)
        other, _ = await nodes.open(neighbour, OTHER)
        link.send(prefill(SESSION, PROMPT), body(PROMPT))
        other.send(prefill(OTHER, PROMPT), body(PROMPT))
        first, theirs = await result(client), await result(neighbour)

        drafts = [7, 8] if len(step.candidates) <= 2 else [candidate.token for candidate in step.candidates]
        drafts = [7, VOCABULARY] if "vocabulary" in name else drafts
        link.send(step, body([*first.tokens, *drafts]))
        refusal = await failure(client)
        assert isinstance(refusal, error), refusal

        other.send(prefill(OTHER, theirs.tokens, frame=1, position=20), body(theirs.tokens))
        assert [*theirs.tokens, *(await result(neighbour)).tokens] == expected(PROMPT, 2)
        link.send(verify(20, [7], frame=2), body([*first.tokens, 7]))
        if refusal.retry == "here":
            assert (await result(client)).tokens[0] == expected(PROMPT, 2)[1]
        else:
            assert isinstance(await failure(client), SessionUnknown)
            await settled(lambda: all(len(node.table.sessions) == 1 for node in nodes.nodes))


async def test_an_id_is_never_used_again() -> None:
    async with swarm(*THREE) as nodes:
        client = await nodes.client()
        link, _ = await nodes.open(client, SESSION)
        link.send(prefill(SESSION, PROMPT), body(PROMPT))
        known = (await result(client)).tokens[0]
        link.send(verify(20, [7, 8], first=5), body([known, 7, 8]))
        await result(client)
        link.send(verify(20, [7, 8], frame=2, first=6), body([known, 7, 8]))
        assert isinstance(await failure(client), BadStep)


async def test_a_running_state_goes_back_within_the_last_guesses_alone() -> None:
    async with swarm(*THREE) as nodes:
        table = nodes.nodes[1].table
        table.facts = dataclasses.replace(table.facts, rewind="checkpoints")
        client = await nodes.client()
        link, _ = await nodes.open(client, SESSION)
        link.send(prefill(SESSION, PROMPT), body(PROMPT))
        known, wanted = (await result(client)).tokens[0], expected(PROMPT, 5)
        assert known == wanted[0]
        link.send(verify(20, [wanted[1], 7, 8]), body([known, wanted[1], 7, 8]))
        assert (await result(client)).tokens == tuple(wanted[1:3])

        link.send(prefill(SESSION, PROMPT[19:], frame=2, position=19), body(PROMPT[19:]))
        refusal = await failure(client)
        assert isinstance(refusal, RewindImpossible)
        assert (refusal.hop, refusal.position, refusal.cached) == (1, 19, 24)
        link.send(prefill(SESSION, wanted[:3], frame=3, position=20), body(wanted[:3]))
        assert (await result(client)).tokens == (wanted[3],)

        link.send(prefill(SESSION, wanted[1:3], frame=4, position=21), body(wanted[1:3]))
        refusal = await failure(client)
        assert isinstance(refusal, RewindImpossible)
        assert (refusal.position, refusal.cached) == (21, 23)
        link.send(prefill(SESSION, PROMPT, frame=5), body(PROMPT))
        assert (await result(client)).tokens == (known,)


async def test_a_span_that_cannot_rewind_refuses_drafts() -> None:
    async with swarm(*THREE) as nodes:
        table = nodes.nodes[1].table
        table.facts = dataclasses.replace(table.facts, rewind="none")
        client = await nodes.client()
        link, _ = await nodes.open(client, SESSION)
        link.send(prefill(SESSION, PROMPT), body(PROMPT))
        known = (await result(client)).tokens[0]
        link.send(verify(20, [7]), body([known, 7]))
        refusal = await failure(client)
        assert isinstance(refusal, Unsupported)
        assert refusal.hop == 1
        await settled(lambda: not any(node.table.sessions for node in nodes.nodes))


async def test_verify_steps_of_many_sessions_share_batches() -> None:
    """Eight sessions, each with its own share of right guesses, beside a long prompt."""

    async def talk(number: int) -> None:
        client, session = await nodes.client(), b"%016d" % number
        link, _ = await nodes.open(client, session, max_tokens=100)
        prompt = list(range(number, number + 5 * number + 1))
        wanted, rng = expected(prompt, 60), random.Random(number)
        link.send(prefill(session, prompt), body(prompt))
        ids, newest = list((await result(client)).tokens), 0
        for frame in range(1, 12):
            drafts: list[int] = [*wanted[len(ids) : len(ids) + rng.randint(0, number % 4)], 5]
            position = len(prompt) + len(ids) - 1
            step = verify(position, drafts, frame=frame, first=newest + 1)
            link.send(msgspec.structs.replace(step, session=session), body([ids[-1], *drafts]))
            ids += (await result(client)).tokens
            newest += len(drafts)
        assert ids == wanted[: len(ids)]

    async with swarm(*THREE, kv_tokens=4096) as nodes:
        await asyncio.gather(*(talk(number) for number in range(8)))
