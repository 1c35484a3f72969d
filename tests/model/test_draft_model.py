"""The draft model at the client: its guesses are what the same model would say, however its state came about."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from swarm_model.checkpoint import Checkpoint
from swarm_model.draft_model import DraftModel
from swarm_model.sampling_params import Sampling
from swarm_model.span import SessionKey
from tests.model.families import BLOCKS, LONGEST, VOCABULARY, load_reference, load_spans
from tests.model.sessions import Session, run_sessions

A, B = SessionKey(b"a"), SessionKey(b"b")
GREEDY = Sampling()


@pytest.fixture(scope="module")
def draft(checkpoint_of: Callable[[str], Path]) -> DraftModel:
    return DraftModel.load(Checkpoint.open(checkpoint_of("llama")))


def likeliest(checkpoint: Path, ids: list[int], count: int) -> list[int]:
    model, text = load_reference(checkpoint, torch.float32), list(ids)
    with torch.inference_mode():
        for _ in range(count):
            text.append(int(model(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    return text[len(ids) :]


def test_guesses_are_the_models_own_whatever_was_guessed_before(
    draft: DraftModel, checkpoint_of: Callable[[str], Path]
) -> None:
    rng = random.Random(4)
    texts = {A: [rng.randrange(3, VOCABULARY) for _ in range(9)], B: [rng.randrange(3, VOCABULARY) for _ in range(30)]}
    for _ in range(8):
        for session, text in texts.items():
            count = rng.randint(1, 6)
            assert draft.propose(session, text, count, GREEDY) == likeliest(checkpoint_of("llama"), text, count)
            text += [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(1, 3))]
        texts[A] = texts[A][: rng.randint(1, len(texts[A]))]  # even that
    draft.drop(A)
    draft.drop(B)
    assert draft.propose(A, [5], 2, GREEDY) == likeliest(checkpoint_of("llama"), [5], 2)
    draft.drop(A)


def test_a_model_that_is_its_own_draft_is_always_right_sampled_too(
    draft: DraftModel, checkpoint_of: Callable[[str], Path]
) -> None:
    sampling = Sampling(temperature=0.9, top_k=30, repetition_penalty=1.2, seed=9)
    session = Session(A, [7, 8, 9, 10], 12, sampling)
    run_sessions(load_spans(checkpoint_of("llama"), [0, 3, BLOCKS]), [session], random.Random(1))
    assert draft.propose(B, session.prompt, 12, sampling) == session.ids[len(session.prompt) :]
    draft.drop(B)


def test_guesses_end_where_the_context_does(draft: DraftModel, checkpoint_of: Callable[[str], Path]) -> None:
    text = [3 + place % 50 for place in range(LONGEST - 2)]
    assert draft.propose(A, text, 9, GREEDY) == likeliest(checkpoint_of("llama"), text, 3)
    assert draft.propose(A, [*text, 3, 4, 5], 9, GREEDY) == []
    assert draft.propose(A, [VOCABULARY + 4], 9, GREEDY) == []
    draft.drop(A)
