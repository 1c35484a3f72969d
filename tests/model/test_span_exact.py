"""Spans against plain transformers: the same ids in float32 however the model is split and whoever shares the batch."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from swarm_model.drivers import DirectForward
from swarm_model.errors import ContextTooLong
from swarm_model.sampling_params import MAX_TOP_LOGPROBS, Sampling
from swarm_model.span import Chunk, SessionKey
from tests.model.families import BLOCKS, FAMILIES, INLINE, VOCABULARY, load_reference, load_spans, make_checkpoint
from tests.model.sessions import Session, random_cuts, run_sessions

NEW_TOKENS = 12
CLOSE = 1e-4  # reference logits nearer than this may come out in either order
CASES = [(family, hops) for family in FAMILIES for hops in range(1, BLOCKS + 1)]


def make_sessions(rng: random.Random, count: int, sampling: Sampling) -> list[Session]:
    return [
        Session(
            SessionKey(f"session {number}".encode()),
            [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(1, 60))],
            NEW_TOKENS,
            sampling,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(("family", "hops"), CASES)
def test_greedy_ids_and_logits_are_those_of_transformers(
    family: str, hops: int, checkpoint_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(f"{family} {hops}")
    cuts = random_cuts(rng, BLOCKS, hops)
    sessions = make_sessions(rng, 16 if hops > 1 else 1, Sampling(top_logprobs=MAX_TOP_LOGPROBS))

    run_sessions(load_spans(checkpoint_of(family), cuts), sessions, rng)

    reference = load_reference(checkpoint_of(family), torch.float32)
    near_ties = 0
    for session in sessions:
        with torch.inference_mode():
            logits = reference(torch.tensor([session.ids[:-1]]), use_cache=False).logits[0, len(session.prompt) - 1 :]
        for row, sampled in zip(logits, session.sampled, strict=True):
            best = row.topk(2)
            if sampled.token != int(best.indices[0]):
                gap = float(best.values[0] - best.values[1])
                assert gap < CLOSE, (
                    f"{family} cut at {cuts}: {sampled.token} where {int(best.indices[0])} leads by {gap}"
                )
                near_ties += 1
                break  # from here on the texts differ rightly
            tokens = torch.tensor([token for token, _ in sampled.top])
            ours = torch.tensor([logprob for _, logprob in sampled.top])
            error = (ours - row.log_softmax(-1)[tokens]).abs().max() / row.abs().max()
            assert error < 1e-5
    if near_ties:
        with capsys.disabled():
            print(f"\n{family} cut at {cuts}: {near_ties} ids differ where two logits are within {CLOSE}")
    assert near_ties <= 1


@pytest.mark.parametrize("family", [*FAMILIES, *INLINE])
def test_greedy_ids_are_those_of_generate(family: str, checkpoint_of: Callable[[str], Path]) -> None:
    rng = random.Random(family)
    (session,) = make_sessions(rng, 1, Sampling())

    run_sessions(load_spans(checkpoint_of(family), [0, 2, BLOCKS]), [session], rng)

    reference = load_reference(checkpoint_of(family), torch.float32)
    wanted = reference.generate(
        torch.tensor([session.prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
    )
    assert session.ids == wanted[0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_seeded_samples_do_not_depend_on_split_or_batch(family: str, checkpoint_of: Callable[[str], Path]) -> None:
    sampling = Sampling(temperature=0.8, top_k=40, top_p=0.95, min_p=0.01, repetition_penalty=1.2, seed=7)
    alone, crowd = (make_sessions(random.Random("prompts"), 6, sampling) for _ in range(2))

    whole = load_spans(checkpoint_of(family), [0, BLOCKS])
    for session in alone:
        run_sessions(whole, [session], random.Random(1), cuts=False)
    run_sessions(load_spans(checkpoint_of(family), [0, 1, 4, BLOCKS]), crowd, random.Random(2))

    assert [session.ids for session in crowd] == [session.ids for session in alone]


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_errs_no_more_than_transformers_does(family: str, checkpoint_of: Callable[[str], Path]) -> None:
    """Errors are taken from the same bfloat16 weights computed in float32.

    Where routers choose experts, a last bit may choose another one, and a few such tokens outweigh all others: there
    the median token counts.
    """
    rng = random.Random(f"bf16 {family}")
    routed = family == "mixtral"
    sessions = make_sessions(rng, 24 if routed else 8, Sampling(top_logprobs=MAX_TOP_LOGPROBS))
    run_sessions(load_spans(checkpoint_of(family), [0, 2, 4, BLOCKS], dtype=torch.bfloat16), sessions, rng)

    attentions = ["eager"] if family == "gemma2" else ["eager", "sdpa"]  # SDPA has no softcap
    truth = load_reference(checkpoint_of(family), torch.bfloat16).float()
    load_reference.cache_clear()  # `float` changed the cached model itself
    models = [load_reference(checkpoint_of(family), torch.bfloat16, attention) for attention in attentions]
    our_errors, their_errors = [], [[] for _ in models]
    for session in sessions:
        ids = torch.tensor([session.ids[:-1]])
        tokens = torch.tensor([[token for token, _ in sampled.top] for sampled in session.sampled])

        def logprobs(model: torch.nn.Module, ids: torch.Tensor = ids, tokens: torch.Tensor = tokens) -> torch.Tensor:
            with torch.inference_mode():
                logits = model(ids, use_cache=False).logits[0, -len(tokens) :]
            return logits.float().log_softmax(-1).gather(1, tokens)

        exact = logprobs(truth)
        drawn = torch.tensor([[logprob for _, logprob in sampled.top] for sampled in session.sampled])
        our_errors.append((drawn - exact).square().mean(1))
        for errors, model in zip(their_errors, models, strict=True):
            errors.append((logprobs(model) - exact).square().mean(1))
    typical = torch.median if routed else torch.mean
    ours, *theirs = (float(typical(torch.cat(errors)).sqrt()) for errors in (our_errors, *their_errors))
    assert ours <= 1.25 * max(theirs), theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_the_wrappers_around_the_blocks_are_left_out(family: str, checkpoint_of: Callable[[str], Path]) -> None:
    spans = load_spans(checkpoint_of(family), [0, 2, 4, BLOCKS])
    assert [type(span._driver) for span in spans] == [DirectForward] * 3


def test_a_rope_that_changes_with_the_longest_session_is_served_only_where_it_does_not(tmp_path: Path) -> None:
    """Beyond its original length, a "longrope" turns all rows of a step otherwise: sessions would change each other."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    sizes = {"original_max_position_embeddings": 48, "max_position_embeddings": 192}
    directory = make_checkpoint("phi3", tmp_path, rope_parameters=rope, **sizes)
    spans = load_spans(directory, [0, 2, BLOCKS])
    assert [span.info.max_position for span in spans] == [48, 48]
    rng = random.Random(5)
    session = Session(SessionKey(b"a"), [rng.randrange(3, VOCABULARY) for _ in range(20)], 20, Sampling())
    run_sessions(spans, [session], rng)
    asked = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    wanted = load_reference(directory, torch.float32).generate(torch.tensor([session.prompt]), **asked)
    assert session.ids == wanted[0].tolist()
    (refused,) = spans[0].forward([Chunk(SessionKey(b"b"), 0, torch.full((49,), 5))])
    assert isinstance(refused, ContextTooLong)
