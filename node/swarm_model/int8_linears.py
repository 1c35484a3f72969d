"""Linear layers in 8-bit integers: weights scaled per output, activations per token as they come.

A token's row is scaled by its own largest value, so its result does not depend on who shares the batch. With AVX-512
VNNI a kernel of our own does it all in one call (`native/int8_linear.cpp`); without a compiler the products run through
oneDNN where that is exact on this CPU and quick: with the activations shifted to unsigned, the form that VNNI
multiplies (signed ones end up in a reference loop a thousand times as slow). On an accelerator they are torch's.
Where none of these is right they run in float32 on pieces of the weight. Called by quantization.py.
"""

from abc import ABC, abstractmethod
from functools import cache
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from swarm_model.inference_linears import (
    LARGEST,
    TRIAL_INPUTS,
    TRIAL_ROWS,
    InferenceLinear,
    NativeLinear,
    first_that_works,
    outputs_at_once,
    round_rows,
    trial_linear,
)

QUANTIZED_AT_ONCE: Final = 1 << 24  # weights that are held in float32 while loading
PANEL: Final = 16  # outputs, and numbers of a vector: what the native kernel's weight is filled up to
FEWEST_ROWS: Final = 32  # that torch's product is given: on CUDA it refuses fewer than 17
SIZES_MULTIPLE: Final = 8  # of inputs and outputs that it takes there
TOLERANCE: Final = 1e-6  # sums of integers are exact: what is left is the rounding of their product with the scales
CPU: Final = torch.device("cpu")


class Int8Linear(InferenceLinear, ABC):
    """A linear layer with an 8-bit weight; subclasses multiply."""

    scales: torch.Tensor  # [out features], of a product of integers and of a token's largest value

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight = linear.weight.detach()
        rows = max(1, QUANTIZED_AT_ONCE // self.in_features)
        parts = [round_rows(part.float()) for part in torch.split(weight, rows)]
        self.packed = self._pack(torch.cat([integers for integers, _ in parts]))
        largest = torch.cat([largest for _, largest in parts])[:, 0]
        self.register_buffer("scales", largest / LARGEST**2, persistent=False)
        if self.bias is not None:
            self.bias = self.bias.float()

    @abstractmethod
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map `[..., in features]` to `[..., out features]`."""

    @abstractmethod
    def _pack(self, weight: torch.Tensor) -> torch.Tensor:
        """Bring an int8 weight `[out features, in features]` into the form that multiplying wants."""


class NativeInt8Linear(NativeLinear, Int8Linear):
    """Rounds, multiplies and scales in one call."""

    operator = "int8_linear"

    def _weight(self) -> tuple[torch.Tensor, ...]:
        return self.packed, self.scales

    def _pack(self, weight: torch.Tensor) -> torch.Tensor:
        """Lay a weight out in panels of 16 outputs with four inputs side by side, shifted to unsigned.

        Returns uint8 `[panels, in features / 4, 64]`, filled up with zeros.
        """
        outputs, inputs = weight.shape
        filled = F.pad(weight, (0, -inputs % PANEL, 0, -outputs % PANEL))
        quads = filled.view(-1, PANEL, filled.shape[1] // 4, 4).transpose(1, 2)  # [panels, in features / 4, 16, 4]
        return quads.reshape(len(quads), -1, 4 * PANEL).view(torch.uint8).bitwise_xor_(128)


class RoundedInt8Linear(Int8Linear, ABC):
    """Rounds and scales by torch; subclasses multiply integers."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        integers, largest = round_rows(inputs.reshape(-1, self.in_features).float())
        outputs = self._multiply(integers).mul_(largest)  # [rows, out features]
        if self.bias is not None:
            outputs.add_(self.bias)
        return outputs.to(inputs.dtype).view(*inputs.shape[:-1], self.out_features)

    @abstractmethod
    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply int8 `[rows, in features]` with the weight and its scales: float32 `[rows, out features]`."""


class OneDNNInt8Linear(RoundedInt8Linear):
    """Multiplies integers by oneDNN."""

    def _pack(self, weight: torch.Tensor) -> torch.Tensor:
        packed: torch.Tensor = torch.ops.onednn.qlinear_prepack(weight, None)
        return packed

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        shifted = rows.view(torch.uint8).bitwise_xor(128)  # adds 128
        zeros = _zeros(self.out_features)
        products: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            shifted, 1.0, 128, self.packed, self.scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return products


class TorchInt8Linear(RoundedInt8Linear):
    """Multiplies integers by torch, for accelerators: products of few rows are filled up to what they take."""

    def _pack(self, weight: torch.Tensor) -> torch.Tensor:
        return F.pad(weight, (0, -weight.shape[1] % SIZES_MULTIPLE, 0, -weight.shape[0] % SIZES_MULTIPLE))

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        filled = F.pad(rows, (0, -self.in_features % SIZES_MULTIPLE, 0, max(0, FEWEST_ROWS - len(rows))))
        products = torch._int_mm(filled, self.packed.t())[: len(rows), : self.out_features]
        return products * self.scales


class PlainInt8Linear(RoundedInt8Linear):
    """Multiplies in float32, on any device."""

    quick = False

    def _pack(self, weight: torch.Tensor) -> torch.Tensor:
        return weight

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        floats = rows.float()
        parts = torch.split(self.packed, outputs_at_once(self.in_features, rows.device))
        return torch.cat([floats @ part.float().t() for part in parts], dim=1).mul_(self.scales)


@cache
def int8_linear_class(device: torch.device = CPU) -> type[Int8Linear]:
    """Choose how a device multiplies 8-bit integers, by trying it: without VNNI, for one, oneDNN's sums overflow."""
    kinds = (NativeInt8Linear, OneDNNInt8Linear) if device.type == "cpu" else (TorchInt8Linear,)
    linear = trial_linear(torch.float32, device)
    linear.weight[0] = 1.0  # sums as large as they get
    linear.weight[1] = -1.0
    generator = torch.Generator().manual_seed(2)
    rows = torch.randint(-127, 128, (TRIAL_ROWS, TRIAL_INPUTS), generator=generator).float().to(device)
    rows[0] = LARGEST
    return first_that_works(kinds, PlainInt8Linear, linear, rows, TOLERANCE)


@cache
def _zeros(size: int) -> torch.Tensor:
    """The zero points that oneDNN wants of a symmetric weight; all layers of one size share them."""
    return torch.zeros(size, dtype=torch.long)
