"""Generations with guesses, on scripted nodes: they end as those without, and say what came of the guesses."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from swarm_client import AsyncRemoteModel, Draft, Drafter, Generation
from swarm_client.draft_policy import DraftPolicy
from swarm_client.drafting import Drafting
from swarm_client.errors import BadDraft, InvalidParameter
from swarm_client.results import Drafted
from swarm_client.tokenizer import Tokenizer
from swarm_net.messages import Open, Step
from swarm_net.session_errors import Draining
from tests.client import tiny_tokenizers
from tests.client.fake_swarm import EOS, FakeModel, FakeSwarm, Script, continuation, fake_swarm

PROMPT = [5, 6, 7]
NEW_TOKENS = 30


class AsOften:
    """A policy that sends so many guesses with each step."""

    def __init__(self, guesses: int) -> None:
        self._guesses = guesses

    def ask(self, room: int) -> int:
        return min(room, self._guesses)

    def keep(self, strength: int, guesses: int) -> int:
        return guesses

    def learn(self, guesses: Sequence[int], strength: int, sent: int, tokens: Sequence[int], took_s: float) -> None:
        """Nothing."""

    def start_route(self) -> None:
        """Nothing."""


class Knowing(Drafter):
    """Guesses what `answer` says follows, and after every third token something else."""

    def __init__(self, answer: Sequence[int], guesses: int) -> None:
        self._answer, self._guesses = answer, guesses
        self.closed = 0

    def propose(self, ids: Sequence[int], max_tokens: int) -> Draft:
        done = len(ids) - len(PROMPT)
        guesses = list(self._answer[done : done + max_tokens])
        return Draft([token if (done + place) % 3 else 9 for place, token in enumerate(guesses)])

    def policy(self) -> DraftPolicy:
        return AsOften(self._guesses)

    def close(self) -> None:
        self.closed += 1


def connect(swarm: FakeSwarm, tmp_path: Path):  # type: ignore[no-untyped-def]
    return AsyncRemoteModel.connect("fake", swarm.bootstrap, cache_dir=tmp_path / "cache", world=swarm.world())


def steps(swarm: FakeSwarm) -> list[Step]:
    return [message for message in swarm.nodes[0].heard if isinstance(message, Step)]


def same(found: Generation, wanted: Generation) -> bool:
    """Whether two generations differ in nothing but their times and guesses."""
    return replace(found, timings=wanted.timings, drafts=None) == wanted


@pytest.mark.parametrize("spans", [[(0, 8)], [(0, 3), (3, 5), (5, 8)]])
@pytest.mark.parametrize("guesses", [1, 4, 100])
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"logprobs": 3},
        {"temperature": 1.0, "seed": 4},
        {"max_new_tokens": 1},
        {"max_new_tokens": 2},
        {"max_new_tokens": 400},  # beyond the model's context
    ],
    ids=str,
)
async def test_everything_is_as_without(
    model: FakeModel, tmp_path: Path, spans: list[tuple[int, int]], guesses: int, asked: dict[str, object]
) -> None:
    asked = {"max_new_tokens": NEW_TOKENS, **asked}
    async with fake_swarm(model, *spans) as swarm, connect(swarm, tmp_path) as remote:
        wanted = await remote.generate(PROMPT, **asked)
        plain_steps = len(steps(swarm))
        drafter = Knowing(wanted.token_ids, guesses)
        found = await remote.generate(PROMPT, draft=drafter, **asked)
        assert same(found, wanted)
        assert drafter.closed == 1
        assert found.drafts is not None
        taken = steps(swarm)[plain_steps:]
        limit = next(message for message in swarm.nodes[0].heard if isinstance(message, Open)).max_tokens
        assert all(step.position + step.count <= limit for step in taken), "no step goes beyond what was promised"
        assert found.drafts.sent == sum(len(step.candidates) for step in taken)
        assert found.drafts.accepted == len(found.token_ids) - len(taken)
        assert len(found.token_ids) <= 2 or len(taken) < plain_steps


@pytest.mark.parametrize("eos_after", [1, 2, 3, 7])
async def test_an_end_among_the_guesses_ends(model: FakeModel, tmp_path: Path, eos_after: int) -> None:
    """Behind the end-of-sequence id the guesses are right as well, and not shown."""
    tokens = [*continuation(PROMPT, eos_after, model.vocabulary), EOS]
    answer = [*tokens, *continuation([*PROMPT, *tokens], 20, model.vocabulary)]

    class Ending(Drafter):
        def propose(self, ids: Sequence[int], max_tokens: int) -> Draft:
            return Draft(answer[len(ids) - len(PROMPT) :][:max_tokens])

        def policy(self) -> DraftPolicy:
            return AsOften(5)

    def known(ids: Sequence[int], seed: int, vocabulary: int) -> int:
        return answer[len(ids) - len(PROMPT)]

    async with fake_swarm(model, (0, 8), scripts=[Script(says=known)]) as swarm, connect(swarm, tmp_path) as remote:
        wanted = await remote.generate(PROMPT, max_new_tokens=NEW_TOKENS)
        found = await remote.generate(PROMPT, max_new_tokens=NEW_TOKENS, draft=Ending())
        assert wanted.finish_reason == "eos"
        assert wanted.token_ids == tokens
        assert same(found, wanted)


async def test_a_stop_string_among_the_guesses_stops(model: FakeModel, tmp_path: Path) -> None:
    async with fake_swarm(model, (0, 8)) as swarm, connect(swarm, tmp_path) as remote:
        whole = await remote.generate(PROMPT, max_new_tokens=NEW_TOKENS)
        for place in (2, 7, 11, 20):
            stop = Tokenizer(tiny_tokenizers.byte_level()).decode(whole.token_ids[place : place + 2])
            wanted = await remote.generate(PROMPT, max_new_tokens=NEW_TOKENS, stop=stop)
            for guesses in (3, 10):
                asked = {"max_new_tokens": NEW_TOKENS, "stop": stop, "draft": Knowing(whole.token_ids, guesses)}
                assert same(await remote.generate(PROMPT, **asked), wanted)
                stream = remote.stream(PROMPT, **asked)
                tokens = [token async for token in stream]
                assert [token.id for token in tokens] == wanted.token_ids
                assert "".join(token.text for token in tokens) == wanted.text
                assert [token.finish_reason for token in tokens] == [None] * (len(tokens) - 1) + [wanted.finish_reason]


async def test_no_guesses_over_a_hop_that_cannot_forget(model: FakeModel, tmp_path: Path) -> None:
    async with fake_swarm(model, (0, 4), (4, 8)) as swarm:
        await swarm.nodes[1].publish(rewind="none")
        async with connect(swarm, tmp_path) as remote:
            wanted = continuation(PROMPT, NEW_TOKENS, model.vocabulary)
            found = await remote.generate(PROMPT, max_new_tokens=NEW_TOKENS, draft=Knowing(wanted, 4))
            assert found.token_ids == wanted
            assert not any(step.candidates for step in steps(swarm))


async def test_guessing_goes_on_with_another_route(model: FakeModel, tmp_path: Path) -> None:
    wanted = continuation(PROMPT, NEW_TOKENS, model.vocabulary)
    async with fake_swarm(model, (0, 8), (0, 8), scripts=[Script(fail_after=(4, Draining())), Script()]) as swarm:
        await swarm.nodes[0].publish(decode_tokens_per_s=1000.0)
        async with connect(swarm, tmp_path) as remote:
            found = await remote.generate(PROMPT, max_new_tokens=NEW_TOKENS, draft=Knowing(wanted, 4))
        assert found.token_ids == wanted
        assert len(found.retries) == 1
        for node in swarm.nodes:
            assert any(isinstance(message, Step) and message.candidates for message in node.heard)


async def test_a_drafter_that_breaks_is_left_alone(model: FakeModel, tmp_path: Path) -> None:
    class Broken(Drafter):
        def propose(self, ids: Sequence[int], max_tokens: int) -> Draft:
            raise RuntimeError("no idea")

        def policy(self) -> DraftPolicy:
            return AsOften(3)

    async with fake_swarm(model, (0, 8)) as swarm, connect(swarm, tmp_path) as remote:
        found = await remote.generate(PROMPT, max_new_tokens=NEW_TOKENS, draft=Broken())
        assert found.token_ids == continuation(PROMPT, NEW_TOKENS, model.vocabulary)
        assert found.drafts is not None
        assert found.drafts.sent == 0


async def test_ngrams_of_a_text_that_repeats_are_right(model: FakeModel, tmp_path: Path) -> None:
    def counts(ids: Sequence[int], seed: int, vocabulary: int) -> int:
        return 10 + (ids[-1] - 9) % 12

    async with fake_swarm(model, (0, 8), scripts=[Script(says=counts)]) as swarm, connect(swarm, tmp_path) as remote:
        wanted = await remote.generate([*range(10, 22), 10, 11], max_new_tokens=200)
        plain_steps = len(steps(swarm))
        found = await remote.generate([*range(10, 22), 10, 11], max_new_tokens=200, draft="ngram")
        assert same(found, wanted)
        assert len(steps(swarm)) - plain_steps < plain_steps / 2


@pytest.mark.parametrize("draft", ["", 3, 1.5, ["ngram"]])
async def test_what_cannot_guess_is_refused(model: FakeModel, tmp_path: Path, draft: object) -> None:
    async with fake_swarm(model, (0, 8)) as swarm, connect(swarm, tmp_path) as remote:
        with pytest.raises(InvalidParameter):
            await remote.generate(PROMPT, draft=draft)
        assert (await remote.generate(PROMPT, max_new_tokens=2, draft="none")).drafts is None


async def test_a_draft_model_that_is_none_is_named_before_anything_is_sent(model: FakeModel, tmp_path: Path) -> None:
    async with fake_swarm(model, (0, 8)) as swarm, connect(swarm, tmp_path) as remote:
        for _ in range(2):
            with pytest.raises(BadDraft, match="nowhere"):
                await remote.generate(PROMPT, draft=tmp_path / "nowhere")
        assert swarm.nodes[0].count(Open) == 0


async def test_what_was_thought_for_a_lost_route_counts_for_none() -> None:
    go_on = threading.Event()

    class Slow(Drafter):
        thread = ThreadPoolExecutor(1)

        def propose(self, ids: Sequence[int], max_tokens: int) -> Draft:
            go_on.wait(10)
            return Draft([7] * max_tokens)

        def policy(self) -> DraftPolicy:
            return AsOften(3)

    drafting, fed = Drafting(Slow(), vocabulary=50), list[tuple[object, ...]]()
    drafting.guess([1, 2], 10, lambda drafts: fed.append(("old", *drafts)))
    drafting.start_route()
    drafting.guess([1, 2, 3], 0, lambda drafts: fed.append(("new", *drafts)))
    go_on.set()
    await asyncio.get_running_loop().run_in_executor(Slow.thread, lambda: None)
    await asyncio.sleep(0)
    drafting.learn([4], 0, 0.1)
    Slow.thread.shutdown()
    assert fed == [("new",)]
    assert drafting.counts == Drafted(0, 0, 0)
