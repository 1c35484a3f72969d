"""The codec int8: what comes out is within half a scale of what went in, and hostile bytes are refused or harmless."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_model.errors import InvalidActivations
from swarm_model.int8_codec import GROUP, decode, encode, token_bytes
from swarm_node.executor import FLOAT_BYTES, INT8_GROUP, SpanFacts

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
GREATEST_SCALE = 65504.0


def activations(tokens: int, hidden: int, magnitude: float, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random values with the outliers that real models have: some columns a hundred times as large."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(tokens, hidden, generator=generator) * magnitude
    values[:, torch.rand(hidden, generator=generator) < 0.02] *= 100
    return values.to(dtype)


def group_peaks(values: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of each value's group, `[tokens, hidden]`."""
    hidden = values.shape[1]
    groups = values.abs().split(GROUP, dim=1)
    return torch.cat([group.amax(dim=1, keepdim=True).expand_as(group) for group in groups], dim=1)[:, :hidden]


@settings(deadline=None)
@given(
    tokens=st.integers(1, 9),
    hidden=st.integers(1, 300),
    exponent=st.floats(-9, 4),
    dtype=st.sampled_from(FLOATS),
    seed=st.integers(0, 2**31),
)
def test_a_value_comes_back_within_half_a_scale(
    tokens: int, hidden: int, exponent: float, dtype: torch.dtype, seed: int
) -> None:
    values = activations(tokens, hidden, min(10**exponent, 100.0 if dtype == torch.float16 else 1e4), dtype, seed)
    data = encode(values)
    assert data.shape == (tokens, token_bytes(hidden))
    back = decode(data.flatten(), tokens, hidden)
    exact = values.float()
    # A scale is a 127th of its group's peak, rounded to float16: by 2^-11 of itself, or a step of its smallest numbers.
    scale = group_peaks(exact) / 127
    scale = scale * (1 + 2**-10) + 2**-24
    assert bool(((back - exact).abs() <= scale / 2 * (1 + 1e-5)).all())
    assert bool((back[exact == 0] == 0).all())


@settings(deadline=None)
@given(cuts=st.lists(st.integers(1, 11), max_size=4), seed=st.integers(0, 2**31))
def test_tokens_stand_for_themselves(cuts: list[int], seed: int) -> None:
    values = activations(12, 100, 3.0, torch.bfloat16, seed)
    edges = sorted({0, 12, *cuts})
    pieces = [encode(values[start:end]) for start, end in pairwise(edges)]
    assert torch.equal(torch.cat(pieces), encode(values))


@settings(deadline=None)
@given(tokens=st.integers(0, 4), hidden=st.integers(1, 200), data=st.binary(max_size=1000))
def test_any_bytes_are_refused_or_finite(tokens: int, hidden: int, data: bytes) -> None:
    given_bytes = torch.tensor(list(data), dtype=torch.uint8)
    try:
        values = decode(given_bytes, tokens, hidden)
    except InvalidActivations:
        return
    assert values.shape == (tokens, hidden)
    assert bool(values.isfinite().all())
    assert bool((values.abs() <= 128 * GREATEST_SCALE).all())


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), flips=st.lists(st.tuples(st.integers(0, 3 * 104 - 1), st.integers(0, 255))))
def test_changed_bytes_of_the_right_size_are_refused_or_finite(seed: int, flips: list[tuple[int, int]]) -> None:
    data = encode(activations(3, 100, 1.0, torch.float32, seed)).flatten()
    for place, value in flips:
        data[place] = value
    try:
        assert bool(decode(data, 3, 100).isfinite().all())
    except InvalidActivations:
        scales = data.view(3, 104)[:, :4].contiguous().view(torch.float16)
        assert not bool(((scales >= 0) & scales.isfinite()).all())


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    data = encode(torch.ones(2, 128))
    data[1, 2:4] = torch.tensor([scale], dtype=torch.float16).view(torch.uint8)
    with pytest.raises(InvalidActivations):
        decode(data.flatten(), 2, 128)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e9])
def test_what_cannot_be_carried_is_refused(value: float) -> None:
    values = torch.ones(2, 70)
    values[1, 69] = value
    with pytest.raises(InvalidActivations):
        encode(values)


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_wrong_number_of_bytes_is_refused(difference: int) -> None:
    with pytest.raises(InvalidActivations, match="bytes for 2 tokens"):
        decode(torch.zeros(2 * token_bytes(70) + difference, dtype=torch.uint8), 2, 70)


@pytest.mark.parametrize("dtype", sorted(FLOAT_BYTES))
@pytest.mark.parametrize("hidden", [1, 63, 64, 65, 256, 8192])
def test_the_node_expects_the_bytes_that_the_codec_gives(dtype: str, hidden: int) -> None:
    facts = SpanFacts(
        start=0,
        end=1,
        num_blocks=2,
        hidden_bytes=hidden * FLOAT_BYTES[dtype],
        vocab_size=8,
        max_context=8,
        dtype=dtype,
        numeric_class="",
        page_size=16,
        kv_tokens=16,
        rewind="any",
        block_digests=(),
    )
    assert INT8_GROUP == GROUP
    for sender in ("", *FLOAT_BYTES):
        assert facts.activation_bytes(sender, "int8") == token_bytes(hidden)
    assert encode(torch.zeros(3, hidden)).numel() == 3 * token_bytes(hidden)
    assert facts.activation_bytes(dtype, "zip") is None


def test_golden_bytes() -> None:
    """The layout crosses the wire: scales of a 127th of 127 and of 254, then the values in their steps."""
    values = torch.zeros(1, 66)
    values[0, :3] = torch.tensor([127.0, -1.0, 2.4])
    values[0, 64:] = torch.tensor([254.0, -3.1])
    golden = np.array([1.0, 2.0], "<f2").tobytes() + np.array([127, -1, 2, *[0] * 61, 127, -2], "i1").tobytes()
    assert bytes(encode(values).numpy().tobytes()) == golden
