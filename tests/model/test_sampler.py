"""The sampler: its distribution, its filters against transformers', and what it must not depend on."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, kstest
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from swarm_model.errors import InvalidSampling, LogitsNotFinite
from swarm_model.gumbel import MAX_GUMBEL, gumbel, hash_exceeding, noise_hashes
from swarm_model.sampler import sample, top_logprobs
from swarm_model.sampling_params import Sampling

VOCABULARY = 300
DRAWS = 20_000
GOLDEN_HASHES = [3247014479520621217, 14376087732047437636, 11410270640740117908]
GOLDEN_NOISE = [-0.5522469500312653, 1.3890115300557033, 0.7331903144253513]


def some_logits(seed: int, size: int = VOCABULARY) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, size).astype(np.float32)


def transformers_distribution(logits: np.ndarray, sampling: Sampling, history: np.ndarray) -> np.ndarray:
    """What `generate` would sample from."""
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(MinPLogitsWarper(sampling.min_p))
    scores = processors(torch.from_numpy(history)[None], torch.from_numpy(logits.copy())[None])
    return scores[0].double().softmax(-1).numpy()


SAMPLINGS = [
    Sampling(temperature=1.0, seed=1),
    Sampling(temperature=0.7, top_k=20, seed=2),
    Sampling(temperature=1.3, top_p=0.8, seed=3),
    Sampling(temperature=1.0, min_p=0.05, seed=4),
    Sampling(temperature=0.9, top_k=50, top_p=0.9, min_p=0.02, repetition_penalty=1.3, seed=5),
    Sampling(temperature=1.0, repetition_penalty=0.8, top_k=30, seed=2**64 - 1),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_draws_follow_the_distribution_of_transformers(sampling: Sampling) -> None:
    """Pearson's chi-square over fixed seeds; 1e-4 is the chance that a right sampler would have failed this once."""
    logits, history = some_logits(0), np.array([3, 3, 17, 250])
    wanted = transformers_distribution(logits, sampling, history)

    tokens = [sample(logits, sampling, position, history).token for position in range(DRAWS)]

    counts = np.bincount(tokens, minlength=VOCABULARY)
    assert counts[wanted == 0].sum() == 0
    order = np.argsort(-wanted)
    expected, observed = wanted[order] * DRAWS, counts[order]
    common = expected >= 5
    expected = np.append(expected[common], expected[~common].sum())
    observed = np.append(observed[common], observed[~common].sum())
    used = expected > 0
    statistic = ((observed[used] - expected[used]) ** 2 / expected[used]).sum()
    assert chi2.sf(statistic, used.sum() - 1) > 1e-4


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.1, 3),
    top_k=st.integers(0, 400),
    top_p=st.floats(0.05, 1),
    min_p=st.floats(0, 0.5),
    penalty=st.floats(0.5, 2),
)
def test_filters_keep_what_transformers_keeps(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float, penalty: float
) -> None:
    """No draw leaves the kept set, and a set of one leaves no choice."""
    sampling = Sampling(temperature, top_k, top_p, min_p, penalty, seed)
    logits, history = some_logits(seed), np.arange(0, 40, 3)
    wanted = transformers_distribution(logits, sampling, history)
    for position in range(5):
        assert wanted[sample(logits, sampling, position, history).token] > 0


@given(seed=st.integers(0, 2**64 - 1), position=st.integers(0, 2**31), tokens=st.permutations(list(range(40))))
def test_noise_is_a_function_of_seed_position_and_token_alone(seed: int, position: int, tokens: list[int]) -> None:
    every = noise_hashes(seed, position, np.arange(40))
    assert np.array_equal(noise_hashes(seed, position, np.array(tokens)), every[tokens])
    assert np.array_equal(noise_hashes(seed, position, np.array(tokens[:1])), every[tokens[:1]])


def test_noise_has_not_changed_since_it_was_first_spoken() -> None:
    """Golden values: peers of different versions must draw the same tokens."""
    hashes = noise_hashes(1234, 56, np.array([0, 1, 31999]))
    assert [int(value) for value in hashes] == GOLDEN_HASHES
    assert gumbel(hashes) == pytest.approx(GOLDEN_NOISE, rel=1e-12)


def test_noise_is_gumbel_and_fresh_at_every_seed_position_and_token() -> None:
    draws = [
        gumbel(noise_hashes(seed, position, np.arange(500))) for seed, position in ((0, 0), (0, 1), (1, 0), (2**63, 7))
    ]
    for noise in draws:
        assert kstest(np.exp(-np.exp(-noise)), "uniform").pvalue > 1e-4
    for one, other in pairwise(draws):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.2
    along_positions = np.concatenate([gumbel(noise_hashes(9, position, np.array([5]))) for position in range(500)])
    assert kstest(np.exp(-np.exp(-along_positions)), "uniform").pvalue > 1e-4


@given(noise=st.floats(-3.5, 40), seed=st.integers(0, 2**64 - 1))
def test_the_hash_threshold_loses_no_token(noise: float, seed: int) -> None:
    hashes = noise_hashes(seed, 0, np.arange(2000))
    reached = gumbel(hashes) >= noise
    assert (hashes[reached] >= np.uint64(hash_exceeding(noise))).all()


def test_the_largest_noise_is_below_its_bound() -> None:
    assert 36.7 < float(gumbel(np.array([2**64 - 1], dtype=np.uint64))[0]) < MAX_GUMBEL


@given(seed=st.integers(0, 10_000), spread=st.floats(0.01, 30))
@settings(max_examples=100, deadline=None)
def test_looking_at_the_hopeful_alone_finds_the_winner(seed: int, spread: float) -> None:
    logits = (some_logits(seed, 3000) * spread).astype(np.float32)
    totals = logits.astype(np.float64) + gumbel(noise_hashes(seed, 3, np.arange(3000)))
    assert sample(logits, Sampling(temperature=1.0, seed=seed), 3).token == int(totals.argmax())


def openai_penalties(logits: np.ndarray, answer: list[int], frequency: float, presence: float) -> np.ndarray:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, c[j] counting the answer, as OpenAI's reference states it."""
    scores = logits.copy()
    for token in range(len(scores)):
        count = answer.count(token)
        scores[token] -= np.float32(count * frequency + (count > 0) * presence)
    return scores


@given(
    seed=st.integers(0, 1000),
    prompt=st.lists(st.integers(0, 39), max_size=10),
    answer=st.lists(st.integers(0, 39), max_size=30),
    frequency=st.sampled_from((-2.0, -0.5, 0.0, 1.0, 2.0)),
    presence=st.sampled_from((-1.0, 0.0, 0.75, 2.0)),
    bias=st.dictionaries(st.integers(0, 39), st.sampled_from((-100.0, -1.5, 2.0)), max_size=5),
)
def test_penalties_and_biases_are_openais(
    seed: int, prompt: list[int], answer: list[int], frequency: float, presence: float, bias: dict[int, float]
) -> None:
    logits = some_logits(seed, 40)
    asked = {"temperature": 1.0, "seed": seed}
    sampling = Sampling(
        **asked,
        frequency_penalty=frequency,
        presence_penalty=presence,
        logit_bias=tuple(bias.items()),
        prompt_tokens=len(prompt),
    )
    biased = logits.copy()
    for token, value in bias.items():
        biased[token] += np.float32(value)
    wanted = sample(openai_penalties(biased, answer, frequency, presence), Sampling(**asked), 5)
    assert sample(logits, sampling, 5, np.array(prompt + answer, np.int32)).token == wanted.token


@pytest.mark.parametrize("sampling", [Sampling(), *SAMPLINGS])
def test_a_mask_holds_before_every_filter(sampling: Sampling) -> None:
    even = np.arange(VOCABULARY) % 2 == 0
    mask, masked = np.packbits(even, bitorder="little").tobytes(), np.where(even, some_logits(0), np.float32(-np.inf))
    history = np.array([3, 3, 17, 250])
    for position in range(50):
        token = sample(some_logits(0), sampling, position, history, mask).token
        assert token % 2 == 0
        assert token == sample(masked, sampling, position, history).token
    with pytest.raises(LogitsNotFinite):
        sample(np.where(even, np.float32(-np.inf), some_logits(0)), sampling, 0, history, mask)


def test_a_bias_forces_and_forbids() -> None:
    logits = some_logits(3)
    best = int(logits.argmax())
    assert sample(logits, Sampling(logit_bias=((best, -100.0),)), 0).token != best
    for position in range(20):
        forced = Sampling(temperature=1.0, seed=position, logit_bias=((7, 100.0),))
        assert sample(logits, forced, position).token == 7


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_k=3), Sampling(logprobs=True)])
def test_a_row_that_is_not_finite_is_refused(value: float, sampling: Sampling) -> None:
    logits = some_logits(1)
    logits[200] = value
    with pytest.raises(LogitsNotFinite):
        sample(logits, sampling, 0)
    with pytest.raises(LogitsNotFinite):
        sample(np.full(VOCABULARY, -np.inf, np.float32), sampling, 0)


def test_log_probabilities_are_computed_only_where_they_are_asked_for() -> None:
    logits = some_logits(1)
    assert sample(logits, Sampling(), 0).logprob is None
    assert sample(logits, Sampling(logprobs=True), 0).logprob is not None


def test_greedy_takes_the_first_of_equals_and_the_penalty_counts() -> None:
    logits = np.array([1.0, 4.0, 4.0, 3.9], dtype=np.float32)
    assert sample(logits, Sampling(), 0).token == 1
    assert sample(logits, Sampling(repetition_penalty=1.5), 0, np.array([1, 2, 2])).token == 3
    assert logits.tolist() == pytest.approx([1.0, 4.0, 4.0, 3.9])


def test_logprobs_are_those_of_the_model_before_any_filter() -> None:
    logits = some_logits(1)
    wanted = torch.from_numpy(logits).double().log_softmax(-1)
    chosen = sample(logits, Sampling(temperature=2.0, top_k=1, top_logprobs=3), 0)
    assert chosen.logprob == pytest.approx(float(wanted.max()), abs=1e-5)
    assert [token for token, _ in chosen.top] == wanted.topk(3).indices.tolist()
    assert [logprob for _, logprob in chosen.top] == pytest.approx(wanted.topk(3).values.tolist(), abs=1e-5)
    assert top_logprobs(logits, 0) == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("seed", -1),
        ("seed", 2**64),
        ("top_logprobs", 21),
        ("frequency_penalty", 2.1),
        ("presence_penalty", float("nan")),
        ("logit_bias", ((3, 101.0),)),
        ("logit_bias", ((3, float("nan")),)),
        ("logit_bias", ((-3, 1.0),)),
        ("prompt_tokens", -1),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InvalidSampling) as refusal:
        Sampling(**{field: value})  # type: ignore[arg-type]
    assert refusal.value.field == field
    assert field in refusal.value.remedy()
