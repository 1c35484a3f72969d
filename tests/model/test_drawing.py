"""Tokens are the same wherever they are chosen, and whoever else is drawn for in the step."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarm_model.drawing import SampleRequest, draw
from swarm_model.errors import LogitsNotFinite
from swarm_model.sampling_params import Sampling
from swarm_model.transfers import Transfers

HOST = Transfers(torch.device("cpu"))
VOCABULARY = 50
SAMPLINGS = [
    Sampling(),
    Sampling(temperature=1.0, seed=3),
    Sampling(logprobs=True),
    Sampling(top_logprobs=2),
    Sampling(logit_bias=((7, 5.0),)),
    Sampling(frequency_penalty=1.0),
    Sampling(repetition_penalty=1.3),
]


@given(
    st.integers(0, 10**6), st.lists(st.tuples(st.sampled_from(SAMPLINGS), st.integers(0, 3)), min_size=1, max_size=6)
)
def test_tokens_are_the_same_wherever_they_are_chosen(seed: int, asked: list[tuple[Sampling, int]]) -> None:
    rng = random.Random(seed)
    rows = sum(drafts + 1 for _, drafts in asked)
    # Few different values, as bfloat16 has: ties must go to the smaller id
    logits = torch.randint(0, 6, (rows, VOCABULARY), generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)
    requests = []
    for sampling, drafts in asked:
        history = np.array([rng.randrange(VOCABULARY) for _ in range(5 + drafts)], np.int32)
        guesses = [int(logits[row].float().argmax()) for row in range(drafts)]
        requests.append((SampleRequest(sampling, history, guesses), rng.randrange(100)))
    assert draw(logits, requests, HOST, on_device=True) == draw(logits, requests, HOST, on_device=False)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_fails_alone(on_device: bool, broken: float) -> None:
    logits = torch.zeros(3, VOCABULARY)
    logits[1, 5] = broken
    logits[2, 9] = 1.0
    first, second, third = draw(logits, [(SampleRequest(Sampling()), 0)] * 3, HOST, on_device=on_device)
    assert isinstance(second, LogitsNotFinite)
    assert isinstance(first, tuple)
    assert isinstance(third, tuple)
    assert (first[0].token, third[0].token) == (0, 9)


def test_right_drafts_are_followed_by_one_more_token() -> None:
    logits = torch.eye(VOCABULARY)[[4, 5, 6]]
    for drafts, tokens in (((4, 5), [4, 5, 6]), ((4, 9), [4, 5]), ((8, 5), [4])):
        (drawn,) = draw(logits, [(SampleRequest(Sampling(), drafts=drafts), 0)], HOST, on_device=True)
        assert isinstance(drawn, tuple)
        assert [sampled.token for sampled in drawn] == tokens
