"""Biases, penalties, samples and log-probabilities, asked for at the client and computed behind several hops."""

import asyncio
import math
from pathlib import Path

import pytest

from swarm_client.errors import InvalidParameter, TokenOutsideVocabulary
from tests.e2e.conftest import VOCABULARY
from tests.e2e.in_process import in_process_swarm

PROMPT = list(range(7, 40))
SPLITS = ((0, 2), (2, 4), (4, 6))


async def test_biases_force_and_forbid(checkpoint: Path, tmp_path: Path) -> None:
    async with in_process_swarm(checkpoint, *SPLITS) as swarm, swarm.client(tmp_path) as model:
        greedy = await model.generate(PROMPT, max_new_tokens=12, temperature=0)
        forbidden = dict.fromkeys(greedy.token_ids, -100.0)
        other = await model.generate(PROMPT, max_new_tokens=12, temperature=0, logit_bias=forbidden)
        forced = await model.generate(PROMPT, max_new_tokens=12, temperature=1.0, seed=1, logit_bias={77: 100.0})
        with pytest.raises(TokenOutsideVocabulary):
            await model.generate(PROMPT, logit_bias={VOCABULARY: 1.0})
    assert not set(other.token_ids) & set(greedy.token_ids)
    assert forced.token_ids == [77] * 12


async def test_penalties_count_the_answer_alone_on_every_split_and_after_a_failover(
    checkpoint: Path, tmp_path: Path
) -> None:
    asked = {"max_new_tokens": 24, "temperature": 0.0, "logit_bias": {77: 100.0}}
    async with in_process_swarm(checkpoint, (0, 6)) as swarm, swarm.client(tmp_path) as model:
        repeated = await model.generate([77] * 9, **asked)
        assert set(repeated.token_ids) == {77}
        # 2 for each time there: once 77 has lost 100 and what it was ahead by, others are taken, but not before that
        alone = await model.generate([77] * 9, frequency_penalty=2.0, **{**asked, "max_new_tokens": 80})
        present = await model.generate(PROMPT, presence_penalty=2.0, max_new_tokens=24, temperature=0)
    assert alone.token_ids[:30] == [77] * 30
    assert set(alone.token_ids) != {77}
    async with in_process_swarm(checkpoint, *SPLITS, (4, 6)) as swarm, swarm.client(tmp_path) as model:
        split = await model.generate([77] * 9, frequency_penalty=2.0, **{**asked, "max_new_tokens": 80})
        tokens = []
        async with model.stream(PROMPT, presence_penalty=2.0, max_new_tokens=24, temperature=0) as stream:
            async for token in stream:
                tokens.append(token.id)
                if len(tokens) == 10:
                    (last,) = [number for number in (2, 3) if swarm.nodes[number].load().sessions]
                    swarm.drop(last)
        assert stream.generation is not None
        assert stream.generation.retries
    assert split.token_ids == alone.token_ids
    assert tokens == present.token_ids


async def test_samples_are_separate_runs_with_the_seeds_that_follow(checkpoint: Path, tmp_path: Path) -> None:
    asked = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 0.9}
    async with in_process_swarm(checkpoint, *SPLITS) as swarm, swarm.client(tmp_path) as model:
        several = await model.samples(PROMPT, 4, seed=2**63 - 2, **asked)
        seeds = [2**63 - 2, 2**63 - 1, 0, 1]
        alone = [await model.generate(PROMPT, seed=seed, **asked) for seed in seeds]
        drawn = await model.samples(PROMPT, 3, **asked)
        with pytest.raises(InvalidParameter):
            await model.samples(PROMPT, 0, **asked)
    assert [generation.seed for generation in several] == seeds
    assert [generation.token_ids for generation in several] == [generation.token_ids for generation in alone]
    assert len({tuple(generation.token_ids) for generation in several}) == 4
    assert drawn[0].seed is not None
    assert [generation.seed for generation in drawn] == [drawn[0].seed + number for number in range(3)]


@pytest.mark.parametrize(
    ("asked", "shared"),
    [
        ({}, 192),
        ({"frequency_penalty": 1.0, "presence_penalty": 0.5}, 192),
        ({"repetition_penalty": 1.2}, 0),  # every id of the prompt has to come with the steps
    ],
)
async def test_samples_share_what_was_computed_of_their_prompt(
    checkpoint: Path, tmp_path: Path, asked: dict[str, float], shared: int
) -> None:
    prompt = [(place * 7) % VOCABULARY for place in range(200)]
    asked = {"max_new_tokens": 8, "temperature": 1.0, **asked}
    async with in_process_swarm(checkpoint, *SPLITS, (4, 6)) as swarm, swarm.client(tmp_path / "one") as model:
        several = await model.samples(prompt, 4, seed=5, **asked)
    async with in_process_swarm(checkpoint, *SPLITS) as swarm, swarm.client(tmp_path / "two") as model:
        alone = await asyncio.gather(*(model.generate(prompt, seed=5 + number, **asked) for number in range(4)))
    assert [one.usage.cached_tokens for one in several] == [0, shared, shared, shared]
    assert [one.route for one in several] == [several[0].route] * 4
    assert [one.token_ids for one in several] == [one.token_ids for one in alone]


async def test_a_replay_names_no_more_than_the_prompt_where_the_answer_is_counted(
    checkpoint: Path, tmp_path: Path
) -> None:
    asked = {"max_new_tokens": 100, "temperature": 0.0, "frequency_penalty": 1.0}
    prompt = [(place * 7) % VOCABULARY for place in range(80)]
    async with in_process_swarm(checkpoint, *SPLITS, (4, 6)) as swarm, swarm.client(tmp_path) as model:
        wanted = await model.generate(prompt, **asked)
        await model.generate([*prompt, *wanted.token_ids], max_new_tokens=1)  # whose prefix an honest node would share
        tokens = []
        async with model.stream(prompt, **asked) as stream:
            async for token in stream:
                tokens.append(token.id)
                if len(tokens) == 90:
                    (last,) = [number for number in (2, 3) if swarm.nodes[number].load().sessions]
                    swarm.drop(last)
    assert tokens == wanted.token_ids


async def test_log_probabilities_come_where_they_are_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    async with in_process_swarm(checkpoint, *SPLITS) as swarm, swarm.client(tmp_path) as model:
        plain = await model.generate(PROMPT, max_new_tokens=4, temperature=0)
        chosen = await model.generate(PROMPT, max_new_tokens=4, temperature=0, logprobs=True)
        ranked = await model.generate(PROMPT, max_new_tokens=4, temperature=0, logprobs=20)
    assert plain.logprobs is None
    assert plain.top_logprobs is None
    assert chosen.logprobs is not None
    assert ranked.logprobs == pytest.approx(chosen.logprobs, abs=1e-4)
    assert ranked.top_logprobs is not None
    for token, logprob, top in zip(ranked.token_ids, ranked.logprobs, ranked.top_logprobs, strict=True):
        assert len(top) == 20
        assert (top[0].id, top[0].logprob) == (token, logprob)
        assert sum(math.exp(one.logprob) for one in top) <= 1 + 1e-6
        assert sorted(top, key=lambda one: -one.logprob) == list(top)
