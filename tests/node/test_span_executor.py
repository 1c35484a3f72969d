"""A real span behind the node's interface: what a hostile hop sends ends its own session alone."""

import pytest
import torch

from swarm_model.checkpoint import Checkpoint
from swarm_model.span import Span
from swarm_net.session_errors import ComputeFailed
from swarm_node.executor import Piece
from swarm_node.span_executor import SpanExecutor
from swarm_sim.demo_model import demo_model_path

TOKENS = 3


@pytest.fixture(scope="module")
def executor() -> SpanExecutor:
    """A block from the middle of the demo model."""
    load = {"device": torch.device("cpu"), "dtype": torch.float32, "kv_bytes": 1 << 20}
    return SpanExecutor(Span.load(Checkpoint.open(demo_model_path()), 3, 4, **load))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_activations_that_are_no_numbers_are_refused_and_harm_nobody_else(value: float, executor: SpanExecutor) -> None:
    hidden = torch.randn(TOKENS, executor.facts.hidden_bytes // 4, generator=torch.Generator().manual_seed(0))
    broken = hidden.clone()
    broken[1, 2] = value

    def piece(session: bytes, rows: torch.Tensor) -> Piece:
        return Piece(session, (3, 4), 0, TOKENS, bytearray(rows.numpy().tobytes()), None)

    (alone,) = executor.run([piece(b"alone", hidden)])
    refused, beside = executor.run([piece(b"broken", broken), piece(b"beside", hidden)])
    assert isinstance(refused, ComputeFailed)
    assert "not finite" in refused.reason
    assert beside == alone
    for session in (b"alone", b"broken", b"beside"):
        executor.drop(session)
