"""Drafts on a real span: whatever is guessed, the ids are those of one token at a time."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarm_model.errors import InvalidChunk
from swarm_model.gumbel import gumbel, noise_hashes
from swarm_model.sampler import sample
from swarm_model.sampling_params import Sampling
from swarm_model.span import Chunk, SampleRequest, SessionKey, Span
from swarm_model.verify import judge
from tests.model.families import BLOCKS, VOCABULARY, load_reference, load_spans
from tests.model.sessions import forward_chain

NEW_TOKENS = 24
CLOSE = 1e-4  # scores nearer than this may come out in either order
SAMPLINGS = {
    "greedy": Sampling(),
    "sampled": Sampling(temperature=0.9, seed=11),
    "penalized": Sampling(temperature=0.7, repetition_penalty=1.3, seed=5),
}
Guess = Callable[[list[int], list[int], random.Random], list[int]]  # from the known ids, and those that will follow


def nothing(known: list[int], future: list[int], rng: random.Random) -> list[int]:
    return []


def anything(known: list[int], future: list[int], rng: random.Random) -> list[int]:
    return [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 9))]


def the_truth(known: list[int], future: list[int], rng: random.Random) -> list[int]:
    return future[: rng.randint(1, 9)]


def always_wrong(known: list[int], future: list[int], rng: random.Random) -> list[int]:
    return [(token + 1) % VOCABULARY for token in future[: rng.randint(1, 9)]]


def right_then_wrong(known: list[int], future: list[int], rng: random.Random) -> list[int]:
    right = rng.randint(0, 5)
    return [*future[:right], *always_wrong(known, future[right:], rng)]


def repeats(known: list[int], future: list[int], rng: random.Random) -> list[int]:
    return [known[-1]] * rng.randint(1, 9)


GUESSES = (anything, the_truth, always_wrong, right_then_wrong, repeats)


def generate(
    spans: Sequence[Span],
    prompts: Sequence[list[int]],
    sampling: Sampling,
    guesses: Sequence[Guess],
    futures: list[list[int]],
) -> tuple[list[list[int]], int]:
    """Run all prompts in one batch a step; return their ids and the number of steps."""
    rng = random.Random("drafts")
    keys = [SessionKey(f"session {number}".encode()) for number in range(len(prompts))]
    texts, cached, steps = [list(prompt) for prompt in prompts], [0] * len(prompts), 0
    while unfinished := [n for n, text in enumerate(texts) if len(text) < len(prompts[n]) + NEW_TOKENS]:
        steps += 1
        chunks = []
        for n in unfinished:
            text, left = texts[n], len(prompts[n]) + NEW_TOKENS - len(texts[n])
            future = futures[n][len(text) - len(prompts[n]) :] if futures else []
            drafts = guesses[n % len(guesses)](text, future, rng)[: left - 1] if cached[n] else []
            inputs = [*text[cached[n] :], *drafts]
            request = SampleRequest(sampling, np.array([*text, *drafts]), drafts)
            chunks.append(Chunk(keys[n], cached[n], torch.tensor(inputs), request))
        for n, output in zip(unfinished, forward_chain(spans, chunks), strict=True):
            assert output is not None
            cached[n] = len(texts[n]) + len(output) - 1
            texts[n] += [sampled.token for sampled in output]
    for span in spans:
        for key in keys:
            span.drop(key)
        assert span.pages_free == span.info.pages
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)], steps


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "lfm2", "mamba2"])
@pytest.mark.parametrize("name", SAMPLINGS)
def test_no_draft_changes_an_id(
    name: str, family: str, checkpoint_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rng, sampling = random.Random("prompts"), SAMPLINGS[name]
    prompts = [[rng.randrange(3, VOCABULARY) for _ in range(rng.randint(1, 40))] for _ in range(16)]
    spans = load_spans(checkpoint_of(family), [0, 2, BLOCKS])
    plain, plain_steps = generate(spans, prompts, sampling, [nothing], [])

    drafted, _ = generate(spans, prompts, sampling, GUESSES, plain)
    _, steps = generate(spans, prompts, sampling, [the_truth], plain)
    alone, _ = generate(spans, prompts[:1], sampling, [right_then_wrong], plain)

    assert plain_steps == NEW_TOKENS
    assert steps < NEW_TOKENS / 2
    reference = load_reference(checkpoint_of(family), torch.float32)
    ties = 0
    for prompt, wanted, found in zip([*prompts, prompts[0]], [*plain, plain[0]], [*drafted, *alone], strict=True):
        place = next((n for n, pair in enumerate(zip(wanted, found, strict=True)) if pair[0] != pair[1]), None)
        if place is not None:
            ids = [*prompt, *wanted[:place]]
            with torch.inference_mode():
                row = reference(torch.tensor([ids]), use_cache=False).logits[0, -1].numpy()
            gap = score(row, sampling, ids, wanted[place]) - score(row, sampling, ids, found[place])
            assert abs(gap) < CLOSE, f"{found[place]} where {wanted[place]} leads by {gap}"
            ties += 1
    if ties:
        with capsys.disabled():
            print(f"\n{family} {name}: {ties} texts differ where two scores are within {CLOSE}")
    assert ties <= 1


def score(row: np.ndarray, sampling: Sampling, ids: list[int], token: int) -> float:
    """What a token is chosen by, filters aside."""
    logit = float(row[token])
    if token in ids:
        logit = logit * sampling.repetition_penalty if logit < 0 else logit / sampling.repetition_penalty
    if sampling.greedy:
        return logit
    noise = gumbel(noise_hashes(sampling.seed, len(ids), np.array([token])))
    return logit / sampling.temperature + float(noise[0])


@given(
    seed=st.integers(0, 1000),
    right=st.integers(0, 5),
    wrong=st.lists(st.integers(0, 19), max_size=4),
    sampling=st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.8]),
        top_k=st.sampled_from([0, 5]),
        repetition_penalty=st.sampled_from([1.0, 1.5]),
        seed=st.integers(0, 9),
        top_logprobs=st.just(2),
    ),
)
def test_judging_is_drawing_one_by_one_up_to_the_first_mistake(
    seed: int, right: int, wrong: list[int], sampling: Sampling
) -> None:
    known, rng = [3, 1, 4], np.random.default_rng(seed)
    logits = rng.normal(0, 2, (right + len(wrong) + 1, 20)).astype(np.float32)
    ids, wanted = list(known), []
    for row in logits:
        wanted.append(sample(row, sampling, len(ids), np.array(ids)))
        ids.append(wanted[-1].token)
    drafts = [*ids[3 : 3 + right], *wrong]

    found = judge(logits, drafts, sampling, 3, np.array([*known, *drafts]))

    accepted = next((n for n, draft in enumerate(drafts) if draft != wanted[n].token), len(drafts))
    assert found == tuple(wanted[: accepted + 1])


def test_a_chunk_of_guesses_alone_is_refused(checkpoint_of: Callable[[str], Path]) -> None:
    (whole,) = load_spans(checkpoint_of("llama"), [0, BLOCKS])
    request = SampleRequest(Sampling(), None, (5, 6))
    (output,) = whole.forward([Chunk(SessionKey(b"a"), 0, torch.tensor([5, 6]), request)])
    assert isinstance(output, InvalidChunk)
