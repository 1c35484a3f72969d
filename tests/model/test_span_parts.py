"""A span entered or left in its middle computes what a span of just those blocks does, to the bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from swarm_model.errors import SpanOutsideModel
from swarm_model.sampling_params import Sampling
from swarm_model.span import Chunk, SampleRequest, SessionKey
from tests.model.families import BLOCKS, FAMILIES, load_spans

SESSION = SessionKey(b"parts")


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_a_span_make_the_whole(family: str, checkpoint_of: Callable[[str], Path]) -> None:
    (whole,) = load_spans(checkpoint_of(family), (0, BLOCKS))
    (again,) = load_spans(checkpoint_of(family), (0, BLOCKS))
    ids = torch.arange(3, 14)
    sample = SampleRequest(Sampling(top_logprobs=5))
    for start, tokens in ((0, ids), (len(ids), ids[:1])):
        expected = whole.forward([Chunk(SESSION, start, tokens, sample)])[0]
        hidden, sessions = tokens, []
        for number, blocks in enumerate(((0, 2), (2, BLOCKS - 1), (BLOCKS - 1, BLOCKS))):
            sessions.append(SessionKey(b"part %d" % number))
            (hidden,) = again.forward([Chunk(sessions[-1], start, hidden, sample)], blocks=blocks)
        assert hidden == expected


def test_a_part_outside_the_span_is_refused(checkpoint_of: Callable[[str], Path]) -> None:
    spans = load_spans(checkpoint_of("llama"), (0, 3, BLOCKS))
    with pytest.raises(SpanOutsideModel):
        spans[1].forward([], blocks=(2, BLOCKS))
