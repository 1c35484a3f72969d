"""The tensors behind the KV pages of a span's blocks.

Owns the memory and its layout: tensors `[slots, kv heads, head size]` a block, slot = page * page size + place in the
page, so that tokens whose pages follow one another are one slice. On a CPU each head's tokens lie side by side, as
attention reads them. Which page belongs to whom: pages.py. Called by attention.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

ALIGNMENT: Final = 64  # bytes, a cache line


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one layer keeps of one token."""

    kv_heads: int
    key_size: int
    value_size: int
    latent: bool = False  # a compressed form, which the block expands to keys and values: see latents.py

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        return self.kv_heads * (self.key_size + self.value_size) * dtype.itemsize


class KVPool:
    """Keys and values of `pages` pages for each layer that keeps such, by its index in the model."""

    def __init__(
        self, shapes: dict[int, KVShape], *, pages: int, page_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        slots = pages * page_size
        self.shapes: Final = shapes
        self.pages: Final = pages
        self.page_size: Final = page_size
        self.keys: Final[dict[int, torch.Tensor]] = {}
        self.values: Final[dict[int, torch.Tensor]] = {}
        self.latents: Final[dict[int, torch.Tensor]] = {}  # keys and values of a token side by side
        for layer, shape in shapes.items():
            if shape.latent:
                whole = _zeros((slots, shape.kv_heads, shape.key_size + shape.value_size), dtype, device)
                self.latents[layer] = whole
                self.keys[layer], self.values[layer] = whole[..., : shape.key_size], whole[..., shape.key_size :]
            else:
                self.keys[layer] = _zeros((slots, shape.kv_heads, shape.key_size), dtype, device)
                self.values[layer] = _zeros((slots, shape.kv_heads, shape.value_size), dtype, device)
        self._pools: Final = (*self.keys.values(), *self.values.values())
        self._device: Final = device

    def copy_page(self, source: int, target: int) -> None:
        """Copy the keys and values of a page in every block."""
        size = self.page_size
        for pool in self._pools:
            pool[target * size : (target + 1) * size] = pool[source * size : (source + 1) * size]

    def read_pages(self, pages: Sequence[int]) -> list[torch.Tensor]:
        """Copy pages to host memory: `[len(pages) * page size, kv heads, size]` for each pool, keys before values."""
        slots = self._slots(pages)
        return [pool.index_select(0, slots).cpu() for pool in self._pools]

    def write_pages(self, pages: Sequence[int], rows: Sequence[torch.Tensor]) -> None:
        """Fill pages with the first of the rows that `read_pages` gave."""
        slots = self._slots(pages)
        for pool, source in zip(self._pools, rows, strict=True):
            pool.index_copy_(0, slots, source[: len(slots)].to(pool.device))

    def _slots(self, pages: Sequence[int]) -> torch.Tensor:
        places = torch.arange(self.page_size)
        slots = torch.tensor(pages)[:, None] * self.page_size + places
        return slots.flatten().to(self._device)


def _zeros(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros whose memory, on a CPU, the system hands out page by page when it is first written: torch writes them all.

    A node then takes what its sessions use, not its limit, and starts at once. The first two of three dimensions are
    swapped in memory there.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return torch.from_numpy(raw[start : start + size]).view(dtype).view(shape[1], shape[0], shape[2]).transpose(0, 1)
