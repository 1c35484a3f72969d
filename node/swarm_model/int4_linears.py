"""Linear layers with 4-bit weights, of which groups share a scale and an offset; activations are 8-bit integers.

A token's row is rounded by its own largest value, as in int8_linears.py: beside the weights' rounding that changes
little, and products of integers are quick. With AVX-512 VNNI a kernel of our own does it all in one call
(`native/int4_linear.cpp`); else torch's own kernels do, where they are right and quick on this device, and last float32
on unpacked pieces. Called by quantization.py.
"""

from abc import ABC, abstractmethod
from functools import cache
from typing import Final

import torch
from torch import nn

from swarm_model.inference_linears import (
    LARGEST,
    InferenceLinear,
    NativeLinear,
    first_that_works,
    outputs_at_once,
    round_rows,
    trial_linear,
    trial_rows,
)

GROUPS: Final = (64, 32)  # inputs that share a scale: the first that divides a layer's inputs
OUTPUTS_MULTIPLE: Final = 16  # what the kernels take
PANEL: Final = 16  # outputs that lie together for the native one
LEVELS: Final = 15
MIDDLE: Final = 8
QUANTIZED_AT_ONCE: Final = 1 << 22  # weights that are held in float32 and int32 while loading
TOLERANCE: Final = 2e-2  # of the largest output: kernels add in bfloat16
TILE: Final = 16  # inputs
INNER_TILES: Final = (8, 4, 2)  # that a thread of the CUDA kernel holds, the more the quicker
CPU: Final = torch.device("cpu")


def group_size(linear: nn.Linear) -> int | None:
    """Give the number of inputs that share a scale; None for a layer whose sizes do not fit."""
    if linear.out_features % OUTPUTS_MULTIPLE:
        return None
    return next((group for group in GROUPS if linear.in_features % group == 0), None)


class Int4Linear(InferenceLinear, ABC):
    """A linear layer with a 4-bit weight; subclasses unpack and multiply."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        group = group_size(linear)
        assert group is not None
        self.group = group
        rows = max(OUTPUTS_MULTIPLE, QUANTIZED_AT_ONCE // self.in_features // OUTPUTS_MULTIPLE * OUTPUTS_MULTIPLE)
        parts = [_quantize(part, group) for part in torch.split(linear.weight.detach(), rows)]
        self._keep(torch.cat([pairs for pairs, _ in parts]), torch.cat([each for _, each in parts]))
        if self.bias is not None:
            self.bias = self.bias.float()

    @abstractmethod
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map `[..., in features]` to `[..., out features]`."""

    @abstractmethod
    def _keep(self, pairs: torch.Tensor, scales_and_offsets: torch.Tensor) -> None:
        """Bring the weight into the form that multiplying wants; see `_quantize`."""


class NativeInt4Linear(NativeLinear, Int4Linear):
    """Rounds, unpacks, multiplies and scales in one call."""

    operator = "int4_linear"

    def _weight(self) -> tuple[torch.Tensor, ...]:
        return (self.packed,)

    def _keep(self, pairs: torch.Tensor, scales_and_offsets: torch.Tensor) -> None:
        """Lay the weight out in panels of 16 outputs, as `native/int4_linear.cpp` reads them.

        A panel's group has the outputs' scales, their offsets, and their weights, of which a byte holds two: of an
        input of the group's first half, and of one of its second.
        """
        panels, groups = len(pairs) // PANEL, self.in_features // self.group
        quads = _unpair(pairs).view(panels, PANEL, groups, 2, self.group // 8, 4).permute(3, 0, 2, 4, 1, 5)
        weights = (quads[0] | quads[1] << 4).reshape(panels, groups, -1)
        by_panel = scales_and_offsets.view(panels, PANEL, groups, 2).permute(0, 2, 3, 1).contiguous()
        self.packed = torch.cat([by_panel.view(torch.uint8).view(panels, groups, -1), weights], dim=2)


class RoundedInt4Linear(Int4Linear, ABC):
    """Rounds and scales by torch; subclasses multiply integers."""

    scales_and_offsets: torch.Tensor  # bfloat16 [groups, out features, 2]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        integers, largest = round_rows(inputs.reshape(-1, self.in_features).float())
        outputs = self._multiply(integers) * (largest / LARGEST)
        if self.bias is not None:
            outputs.add_(self.bias)
        return outputs.to(inputs.dtype).view(*inputs.shape[:-1], self.out_features)

    def _keep(self, pairs: torch.Tensor, scales_and_offsets: torch.Tensor) -> None:
        self.packed = self._pack(pairs)
        self.register_buffer("scales_and_offsets", scales_and_offsets.transpose(0, 1).contiguous(), persistent=False)

    @abstractmethod
    def _pack(self, pairs: torch.Tensor) -> torch.Tensor:
        """Bring pairs of 4-bit integers, uint8 `[out features, in features / 2]`, into the form `_multiply` wants."""

    @abstractmethod
    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply int8 `[rows, in features]` with the weight: float32 or bfloat16 `[rows, out features]`."""


class CpuInt4Linear(RoundedInt4Linear):
    """Unpacks in registers, by torch's kernel for CPUs; bfloat16 holds all integers of 8 bits."""

    def _pack(self, pairs: torch.Tensor) -> torch.Tensor:
        packed: torch.Tensor = torch._convert_weight_to_int4pack_for_cpu(_unpair(pairs).int(), 1)
        return packed

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        return torch._weight_int4pack_mm_for_cpu(rows.bfloat16(), self.packed, self.group, self.scales_and_offsets)


class CudaInt4Linear(RoundedInt4Linear):
    """The same by torch's kernel for NVIDIA's tensor cores."""

    def _pack(self, pairs: torch.Tensor) -> torch.Tensor:
        tiles = next(tiles for tiles in INNER_TILES if self.in_features % (TILE * tiles) == 0)
        packed: torch.Tensor = torch._convert_weight_to_int4pack(pairs, tiles)
        return packed

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        return torch._weight_int4pack_mm(rows.bfloat16(), self.packed, self.group, self.scales_and_offsets)


class PlainInt4Linear(RoundedInt4Linear):
    """Unpacks pieces into float32, on any device."""

    quick = False

    def _pack(self, pairs: torch.Tensor) -> torch.Tensor:
        return pairs

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        at_once = outputs_at_once(self.in_features, rows.device)
        floats = rows.float()
        outputs = []
        for first in range(0, self.out_features, at_once):
            piece = _unpair(self.packed[first : first + at_once]).float()  # [outputs, in features]
            of_piece = self.scales_and_offsets[:, first : first + at_once].float().transpose(0, 1)
            scales, offsets = of_piece[..., :1], of_piece[..., 1:]  # [outputs, groups, 1]
            weight = piece.view(len(piece), -1, self.group).sub_(MIDDLE).mul_(scales).add_(offsets).view(len(piece), -1)
            outputs.append(floats @ weight.t())
        return torch.cat(outputs, dim=1)


@cache
def int4_linear_class(dtype: torch.dtype, device: torch.device = CPU) -> type[Int4Linear]:
    """Choose how a device multiplies with 4-bit weights, by trying it."""
    kinds = {"cpu": (NativeInt4Linear, CpuInt4Linear), "cuda": (CudaInt4Linear,)}.get(device.type, ())
    linear, rows = trial_linear(dtype, device), trial_rows(dtype, device)
    return first_that_works(kinds, PlainInt4Linear, linear, rows, TOLERANCE)


def _quantize(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round `[outputs, inputs]` to pairs of 4-bit integers, uint8 `[outputs, inputs / 2]`, and `[outputs, groups, 2]`.

    Between a group's smallest and largest value; the scale and offset, bfloat16, are rounded first, so that their
    rounding is not an error on top.
    """
    groups = weight.float().view(len(weight), -1, group)
    low, high = groups.aminmax(dim=2, keepdim=True)
    scales = ((high - low) / LEVELS).bfloat16().clamp_min(torch.finfo(torch.bfloat16).tiny)
    offsets = (low + MIDDLE * scales.float()).bfloat16()
    integers = ((groups - offsets.float()) / scales.float()).round_().add_(MIDDLE).clamp_(0, LEVELS)
    pairs = integers.to(torch.uint8).view(len(weight), -1, 2)
    return pairs[..., 0] << 4 | pairs[..., 1], torch.cat([scales, offsets], dim=2)


def _unpair(pairs: torch.Tensor) -> torch.Tensor:
    """Give the 4-bit integers of uint8 `[outputs, inputs / 2]` one by one: uint8 `[outputs, inputs]`."""
    return torch.stack([pairs >> 4, pairs & 15], dim=2).view(len(pairs), -1)
