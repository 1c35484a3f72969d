"""Every configuration of the table as three spans, several sessions at once, against plain transformers in float32."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from swarm_model.sampling_params import MAX_TOP_LOGPROBS, Sampling
from swarm_model.span import SessionKey
from tests.model.configurations import BLOCKS, Configuration, configurations
from tests.model.families import VOCABULARY, load_spans, load_transformers, make_checkpoint
from tests.model.models_page import PAGE, page
from tests.model.sessions import Session, run_sessions

NEW_TOKENS = 8
PROMPTS = (37, 21, 3)  # tokens: beyond windows, chunks and sparse choices, and within them
CLOSE = 1e-4  # reference logits nearer than this may come out in either order


def make_sessions(rng: random.Random) -> list[Session]:
    return [
        Session(
            SessionKey(f"session {tokens}".encode()),
            [rng.randrange(3, VOCABULARY) for _ in range(tokens)],
            NEW_TOKENS,
            Sampling(top_logprobs=MAX_TOP_LOGPROBS),
        )
        for tokens in PROMPTS
    ]


@pytest.mark.parametrize("configuration", configurations(), ids=lambda configuration: configuration.name)
def test_three_spans_give_what_transformers_gives(configuration: Configuration, tmp_path: Path) -> None:
    directory = make_checkpoint(configuration.family, tmp_path, **configuration.changes)
    spans = load_spans(directory, [0, 1, BLOCKS - 1, BLOCKS])
    rng = random.Random(configuration.name)
    sessions = make_sessions(rng)

    run_sessions(spans, sessions, rng)

    modes = {span.info.mode for span in spans}
    if configuration.mode == "recurrent":
        modes.discard("paged")  # a span of a hybrid may hold attention alone
    assert modes == {configuration.mode}
    check(sessions, directory, configuration.tolerance)


def check(sessions: Sequence[Session], directory: Path, tolerance: float) -> None:
    """Compare greedy ids, and the likeliest tokens' log-probabilities, with a model that sees the whole text."""
    reference = load_transformers(directory)
    for session in sessions:
        with torch.inference_mode():
            logits = reference(torch.tensor([session.ids[:-1]]), use_cache=False).logits[0, len(session.prompt) - 1 :]
        for row, sampled in zip(logits, session.sampled, strict=True):
            best = row.topk(2)
            if sampled.token != int(best.indices[0]):
                gap = float(best.values[0] - best.values[1])
                assert gap < CLOSE, f"{sampled.token} where {int(best.indices[0])} leads by {gap}"
                break  # from here on the texts differ rightly
            tokens = torch.tensor([token for token, _ in sampled.top])
            ours = torch.tensor([logprob for _, logprob in sampled.top])
            error = float((ours - row.log_softmax(-1)[tokens]).abs().max() / row.abs().max())
            assert error < tolerance, f"{error:.1e} of the largest logit"


def test_the_table_is_as_long_as_it_says() -> None:
    modes = [configuration.mode for configuration in configurations()]
    assert modes.count("paged") + modes.count("recurrent") >= 60
    assert modes.count("session") >= 5


def test_the_page_says_what_is_tested() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.model.models_page"
