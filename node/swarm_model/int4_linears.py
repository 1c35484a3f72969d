"""Linear layers with 4-bit weights: groups of inputs share a scale and an offset, activations stay whole.

Made for memory, and for decoding a few sessions: for many rows, unpacking costs more than reading less saves. Runs on
torch's own kernels where they are right and quick on this device, else in float32 on unpacked pieces. Called by
quantization.py.
"""

from abc import ABC, abstractmethod
from functools import cache
from typing import Final

import torch
from torch import nn

from swarm_model.inference_linears import (
    InferenceLinear,
    first_that_works,
    outputs_at_once,
    trial_linear,
    trial_rows,
)

GROUPS: Final = (64, 32)  # inputs that share a scale: the first that divides a layer's inputs
OUTPUTS_MULTIPLE: Final = 16  # what torch's kernel takes
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

    scales_and_offsets: torch.Tensor  # [groups, out features, 2], in the activations' dtype

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        group = group_size(linear)
        assert group is not None
        self.group = group
        rows = max(OUTPUTS_MULTIPLE, QUANTIZED_AT_ONCE // self.in_features // OUTPUTS_MULTIPLE * OUTPUTS_MULTIPLE)
        parts = [_quantize(part, group) for part in torch.split(linear.weight.detach(), rows)]
        self.packed = self._pack(torch.cat([integers for integers, _ in parts]))
        scales_and_offsets = torch.cat([each for _, each in parts]).transpose(0, 1).contiguous()
        self.register_buffer("scales_and_offsets", scales_and_offsets, persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map `[..., in features]` to `[..., out features]`."""
        outputs = self._multiply(inputs.reshape(-1, self.in_features))
        if self.bias is not None:
            outputs.add_(self.bias)
        return outputs.view(*inputs.shape[:-1], self.out_features)

    @abstractmethod
    def _pack(self, weight: torch.Tensor) -> torch.Tensor:
        """Bring pairs of 4-bit integers, uint8 `[out features, in features / 2]`, into the form `_multiply` wants."""

    @abstractmethod
    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply `[rows, in features]` with the weight: `[rows, out features]`."""


class CpuInt4Linear(Int4Linear):
    """Unpacks in registers, by torch's kernel for CPUs."""

    def _pack(self, weight: torch.Tensor) -> torch.Tensor:
        packed: torch.Tensor = torch._convert_weight_to_int4pack_for_cpu(_unpair(weight).int(), 1)
        return packed

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        return torch._weight_int4pack_mm_for_cpu(rows, self.packed, self.group, self.scales_and_offsets)


class CudaInt4Linear(Int4Linear):
    """The same by torch's kernel for NVIDIA's tensor cores, which takes bfloat16 alone."""

    def _pack(self, weight: torch.Tensor) -> torch.Tensor:
        tiles = next(tiles for tiles in INNER_TILES if self.in_features % (TILE * tiles) == 0)
        packed: torch.Tensor = torch._convert_weight_to_int4pack(weight, tiles)
        return packed

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        return torch._weight_int4pack_mm(rows, self.packed, self.group, self.scales_and_offsets)


class PlainInt4Linear(Int4Linear):
    """Unpacks pieces into float32, on any device."""

    quick = False

    def _pack(self, weight: torch.Tensor) -> torch.Tensor:
        return weight

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
        return torch.cat(outputs, dim=1).to(rows.dtype)


@cache
def int4_linear_class(dtype: torch.dtype, device: torch.device = CPU) -> type[Int4Linear]:
    """Choose how a device multiplies with 4-bit weights, by trying it."""
    kinds = {"cpu": (CpuInt4Linear,), "cuda": (CudaInt4Linear,)}.get(device.type, ())
    linear, rows = trial_linear(dtype, device), trial_rows(dtype, device)
    return first_that_works(kinds, PlainInt4Linear, linear, rows, TOLERANCE)


def _quantize(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round `[outputs, inputs]` to pairs of 4-bit integers, uint8 `[outputs, inputs / 2]`, and `[outputs, groups, 2]`.

    Between a group's smallest and largest value; the scale and offset are rounded to the weight's dtype first, so that
    their rounding is not an error on top.
    """
    groups = weight.float().view(len(weight), -1, group)
    low, high = groups.aminmax(dim=2, keepdim=True)
    scales = ((high - low) / LEVELS).to(weight.dtype).clamp_min(torch.finfo(weight.dtype).tiny)
    offsets = (low + MIDDLE * scales.float()).to(weight.dtype)
    integers = ((groups - offsets.float()) / scales.float()).round_().add_(MIDDLE).clamp_(0, LEVELS)
    pairs = integers.to(torch.uint8).view(len(weight), -1, 2)
    return pairs[..., 0] << 4 | pairs[..., 1], torch.cat([scales, offsets], dim=2)


def _unpair(pairs: torch.Tensor) -> torch.Tensor:
    """Give the 4-bit integers of uint8 `[outputs, inputs / 2]` one by one: uint8 `[outputs, inputs]`."""
    return torch.stack([pairs >> 4, pairs & 15], dim=2).view(len(pairs), -1)
