"""Linear layers in 8-bit floats (e4m3): weights scaled per output, activations per token as they come.

For GPUs with tensor cores for them (NVIDIA's from compute capability 8.9 on), where torch multiplies them as they are.
Elsewhere they are widened piece by piece: as small, but slower than int8, which also errs less. Called by
quantization.py.
"""

from abc import ABC, abstractmethod
from functools import cache
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.functional import ScalingType

from swarm_model.inference_linears import (
    InferenceLinear,
    first_that_works,
    outputs_at_once,
    trial_linear,
    trial_rows,
)

LARGEST: Final = 448.0  # of e4m3
TINY: Final = 1e-20  # stands for the largest value of a row of zeros
SIZES_MULTIPLE: Final = 16  # of inputs and outputs that tensor cores take
QUANTIZED_AT_ONCE: Final = 1 << 24  # weights that are held in float32 while loading
TOLERANCE: Final = 2e-2  # of the largest output: torch's product comes in bfloat16
CPU: Final = torch.device("cpu")


class Fp8Linear(InferenceLinear, ABC):
    """A linear layer with a weight in 8-bit floats; subclasses multiply."""

    scales: torch.Tensor  # [1, out features]

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        rows = max(1, QUANTIZED_AT_ONCE // self.in_features)
        parts = [_quantize(part.float()) for part in torch.split(linear.weight.detach(), rows)]
        self.packed = torch.cat([floats for floats, _ in parts])  # [out features, in features]
        scales = torch.cat([each for _, each in parts]).t().contiguous()
        self.register_buffer("scales", scales, persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map `[..., in features]` to `[..., out features]`."""
        rows, scales = _quantize(inputs.reshape(-1, self.in_features).float())
        outputs = self._multiply(rows, scales, inputs.dtype)
        if self.bias is not None:
            outputs.add_(self.bias)
        return outputs.view(*inputs.shape[:-1], self.out_features)

    @abstractmethod
    def _multiply(self, rows: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Multiply `[rows, in features]`, with a scale a row, with the weight: `[rows, out features]` in `dtype`."""


class TorchFp8Linear(Fp8Linear):
    """Multiplies 8-bit floats as they are."""

    def _multiply(self, rows: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        by_row = ScalingType.RowWise
        products = F.scaled_mm(rows, self.packed.t(), scales, by_row, self.scales, by_row, output_dtype=torch.bfloat16)
        return products.to(dtype)


class PlainFp8Linear(Fp8Linear):
    """Widens pieces of the weight, on any device."""

    quick = False

    def _multiply(self, rows: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        wide = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        floats = _widen(rows).to(wide)
        parts = torch.split(self.packed, outputs_at_once(self.in_features, rows.device))
        products = torch.cat([floats @ _widen(part).to(wide).t() for part in parts], dim=1)
        return (products * scales * self.scales).to(dtype)


@cache
def fp8_linear_class(dtype: torch.dtype, device: torch.device = CPU) -> type[Fp8Linear]:
    """Choose how a device multiplies 8-bit floats, by trying it."""
    linear, rows = trial_linear(dtype, device), trial_rows(dtype, device)
    return first_that_works((TorchFp8Linear,), PlainFp8Linear, linear, rows, TOLERANCE)


def takes(linear: nn.Linear) -> bool:
    """Whether a layer's sizes fit."""
    return linear.in_features % SIZES_MULTIPLE == linear.out_features % SIZES_MULTIPLE == 0


def _quantize(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round float32 `[rows, columns]` to e4m3 with one scale a row; returns also the scales, `[rows, 1]`.

    A row that is not finite gets a scale that is not, and so a result that is not.
    """
    scales = rows.abs().amax(1, keepdim=True).clamp_min_(TINY) / LARGEST
    return (rows / scales).to(torch.float8_e4m3fn), scales


def _widen(values: torch.Tensor) -> torch.Tensor:
    """Give e4m3 as bfloat16, which holds all its values: ten times as quick on a CPU as torch's own cast.

    Shifts exponent and mantissa to where bfloat16 has them, and the exponent's offset from 7 to 127.
    """
    bits = values.view(torch.int8).to(torch.int16) << 4
    return bits.bitwise_and_(-0x7810).view(torch.bfloat16).mul_(2.0**120)
