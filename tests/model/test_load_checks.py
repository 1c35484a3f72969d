"""What the checks at load make of outputs that are off: a router's toss-up is forgiven, a wrong computation is not."""

from collections.abc import Callable

import torch

from swarm_model.load_checks import TEST_TOKENS, LoadedSpan, Reference, Trial
from swarm_model.siblings import LinearUse

SPAN = LoadedSpan(
    model=None,
    blocks=(),
    blocks_name="layers",
    start=0,
    end=1,
    num_blocks=2,
    family="mixture",
    source="",
    hidden_size=4,
    vocab_size=10,
    max_position=100,
    dtype=torch.bfloat16,
    device=torch.device("cpu"),
    tuples=False,
    attention="sdpa",
)


def reference(trials: int) -> Reference:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(TEST_TOKENS, 4, generator=generator) for _ in range(trials)]
    return Reference(tuple(Trial(one, 2 * one) for one in inputs), LinearUse())


def serving(wrong_rows: list[list[int]]) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """Give a way of serving two sessions that has rows wrong, other ones in each run."""
    runs = iter(wrong_rows)

    def run(inputs: torch.Tensor) -> list[torch.Tensor]:
        output = 2 * inputs
        output[next(runs)] = 0
        return [2 * inputs, output]

    return run


def is_right(trials: int, wrong_rows: list[list[int]]) -> bool:
    outputs, error = reference(trials).compare(SPAN, serving(wrong_rows))
    assert len(outputs) == 2
    return error <= SPAN.tolerance


def test_a_row_that_is_right_in_one_of_the_trials_is_right() -> None:
    assert is_right(1, [[]])
    assert is_right(3, [[5], []])
    assert is_right(3, [[5, 7], [2, 5], [7]])


def test_a_row_that_is_wrong_in_all_trials_is_wrong() -> None:
    assert not is_right(1, [[5]])
    assert not is_right(3, [[5], [5, 6], [5]])
    assert not is_right(3, [list(range(TEST_TOKENS))] * 3)


def test_what_is_no_number_is_wrong() -> None:
    outputs, error = reference(1).compare(SPAN, lambda inputs: [inputs * torch.nan])
    assert len(outputs) == 1
    assert not error <= SPAN.tolerance
