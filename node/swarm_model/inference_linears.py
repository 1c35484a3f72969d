"""What stands for a linear layer whose weight is kept in another form, and the choice among ways to multiply with it.

A format has one plain way, in torch's everyday operators, that works on any device; whatever is quicker depends on the
device, its drivers and the library's version, so it is tried on a small layer and passed over unless it gives the same.
Called by linears.py and the modules of the formats: int8_linears.py, int4_linears.py, fp8_linears.py, nf4_linears.py.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Final, TypeVar

import torch
from torch import nn

from swarm_model.native_kernels import Name, native_operator

log = logging.getLogger(__name__)

LARGEST: Final = 127.0  # of integers that rows are rounded to
TINY: Final = 1e-20  # stands for the largest value of a row of zeros
NATIVE_DTYPES: Final = (torch.float32, torch.bfloat16)  # of rows that our own kernels take
SLOWER_THAN_PLAIN: Final = 2.0  # operators that take longer are loops that somebody wrote as a reference
TRIAL_INPUTS, TRIAL_OUTPUTS, TRIAL_ROWS = 512, 256, 8
CAST_AT_ONCE: Final = 1 << 18  # weights that stay in a processor's cache once they are cast
CAST_AT_ONCE_ELSEWHERE: Final = 1 << 25  # on other devices, where a call costs more than a pass through memory


class InferenceLinear(nn.Module):
    """Stands for an `nn.Linear` whose weight is kept in another form, for inference alone."""

    packed: torch.Tensor  # the weight; no buffer, because packed tensors cannot be moved or cast
    quick: bool = True  # False where every call widens the whole weight
    bias: torch.Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.weight = linear.weight.new_empty(0)  # modelling code asks for its type, never its values
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone(), persistent=False)


class NativeLinear(InferenceLinear, ABC):
    """A layer that one of our own kernels rounds, multiplies and scales in one call; mixed into a format's layer."""

    operator: ClassVar[Name]

    def __init__(self, linear: nn.Linear) -> None:
        """Raises ImportError where there is no kernel for this machine."""
        operator = native_operator(self.operator)
        if operator is None:
            raise ImportError("there is no native kernel for this machine")
        self._operator = operator
        super().__init__(linear)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map `[..., in features]` to `[..., out features]`."""
        if inputs.dtype not in NATIVE_DTYPES:
            return self.forward(inputs.float()).to(inputs.dtype)
        rows = inputs.reshape(-1, self.in_features).contiguous()
        outputs = rows.new_empty(len(rows), self.out_features)
        self._operator(outputs, rows, *self._weight(), self.bias)
        return outputs.view(*inputs.shape[:-1], self.out_features)

    @abstractmethod
    def _weight(self) -> tuple[torch.Tensor, ...]:
        """Give the tensors that the kernel reads as its weight."""


LinearKind = TypeVar("LinearKind", bound=InferenceLinear)


def outputs_at_once(inputs: int, device: torch.device) -> int:
    """Say how many outputs of a weight to cast at once where it is multiplied in pieces."""
    return max(1, (CAST_AT_ONCE if device.type == "cpu" else CAST_AT_ONCE_ELSEWHERE) // inputs)


def round_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round float32 `[rows, columns]` to int8 with one scale a row; returns also each row's largest value, `[rows, 1]`.

    A row that is not finite gets a largest value that is not, and so a result that is not.
    """
    largest = rows.abs().amax(1, keepdim=True).clamp_min_(TINY)
    return (rows * (LARGEST / largest)).round_().to(torch.int8), largest


def trial_linear(dtype: torch.dtype, device: torch.device) -> nn.Linear:
    """Make a layer to try ways of multiplying on."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(TRIAL_INPUTS, TRIAL_OUTPUTS, bias=False, dtype=dtype, device=device).requires_grad_(False)
    linear.weight.copy_(torch.randn(TRIAL_OUTPUTS, TRIAL_INPUTS, generator=generator))
    return linear


def trial_rows(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Make inputs for `trial_linear`: `[rows, in features]`."""
    return torch.randn(TRIAL_ROWS, TRIAL_INPUTS, generator=torch.Generator().manual_seed(1)).to(device, dtype)


def first_that_works(
    kinds: Sequence[type[LinearKind]], plain: type[LinearKind], linear: nn.Linear, rows: torch.Tensor, tolerance: float
) -> type[LinearKind]:
    """Take the first kind of layer that gives what the plain one does for `rows`, up to `tolerance` of the largest.

    On a CPU it must not be much slower either. What a device, a library or a missing compiler raises counts as not
    working.
    """
    with torch.inference_mode():
        reference = plain(linear)
        wanted = reference(rows)
        for kind in kinds:
            try:
                layer = kind(linear)
                error = float((layer(rows) - wanted).abs().max())
            except Exception as refusal:  # whatever a library or a device may say
                log.debug("%s passed over: %s", kind.__name__, refusal)
                continue
            if not error <= tolerance * float(wanted.abs().max()):
                continue
            if rows.device.type != "cpu" or _seconds(layer, rows) < SLOWER_THAN_PLAIN * _seconds(reference, rows):
                return kind
    return plain


def _seconds(layer: nn.Module, rows: torch.Tensor) -> float:
    """Time a layer on a CPU: the best of a few runs, as if nobody else computed."""
    times_s = []
    for _ in range(8):
        started_s = time.thread_time()
        layer(rows)
        times_s.append(time.thread_time() - started_s)
    return min(times_s)
