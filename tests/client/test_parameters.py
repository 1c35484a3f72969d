import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_client.errors import InvalidParameter
from swarm_client.generation_config import SamplingDefaults, read_sampling_defaults
from swarm_client.parameters import DEFAULT_MAX_NEW_TOKENS, Asked, resolve

SAYS_SAMPLE = SamplingDefaults(do_sample=True, temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.1)


def no_entropy(size: int) -> bytes:
    raise AssertionError("greedy decoding needs no randomness")


def fixed_entropy(size: int) -> bytes:
    return b"\xff" * size


def test_greedy_unless_the_model_says_otherwise() -> None:
    found = resolve(Asked(), SamplingDefaults(temperature=0.6, top_p=0.9), no_entropy)
    assert (found.sampling.temperature, found.sampling.top_p, found.seed) == (0.0, 1.0, None)
    assert found.max_new_tokens == DEFAULT_MAX_NEW_TOKENS


def test_the_models_defaults_where_it_samples() -> None:
    sampling = resolve(Asked(), SAYS_SAMPLE, fixed_entropy).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.9, 20)
    assert sampling.repetition_penalty == 1.1
    assert sampling.seed == 2**53 - 1


def test_what_is_asked_wins() -> None:
    asked = Asked(temperature=0, top_p=1, top_k=0, min_p=0, repetition_penalty=1, max_new_tokens=3, stop="x")
    found = resolve(asked, SAYS_SAMPLE, no_entropy)
    assert found.sampling.temperature == 0.0
    assert found.sampling.top_k == 0
    assert found.sampling.repetition_penalty == 1.0
    assert (found.stop, found.max_new_tokens, found.seed) == (("x",), 3, None)


def test_a_given_seed_is_kept() -> None:
    assert resolve(Asked(temperature=1, seed=7), SamplingDefaults(), no_entropy).seed == 7


@pytest.mark.parametrize(("asked", "wanted"), [(False, (False, 0)), (True, (True, 0)), (0, (True, 0)), (5, (True, 5))])
def test_logprobs(asked: bool | int, wanted: tuple[bool, int]) -> None:
    sampling = resolve(Asked(logprobs=asked), SamplingDefaults(), no_entropy).sampling
    assert (sampling.logprobs, sampling.top_logprobs) == wanted


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "1"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.01),
        ("min_p", -0.5),
        ("min_p", 2),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", 2**40),
        ("repetition_penalty", 0),
        ("repetition_penalty", 0.009),
        ("repetition_penalty", -1),
        ("max_new_tokens", 0),
        ("max_new_tokens", -5),
        ("max_new_tokens", 10.0),
        ("seed", -1),
        ("seed", 2**63),
        ("logprobs", 33),
        ("logprobs", -1),
        ("logprobs", "yes"),
        ("stop", ""),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stop", "x" * 257),
        ("stop", [1]),
        ("stop", 5),
    ],
)
def test_what_is_not_allowed_is_named(name: str, value: Any) -> None:
    with pytest.raises(InvalidParameter) as caught:
        resolve(Asked(**{name: value}), SamplingDefaults(), fixed_entropy)
    assert caught.value.name == name
    assert name in caught.value.remedy()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(
    ["do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "x"]
)


@given(st.dictionaries(NAMES, JSON, max_size=8))
def test_any_generation_config_gives_parameters_or_a_named_error(content: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidParameter):
        resolve(Asked(), read_sampling_defaults(content), fixed_entropy)
