"""The tensors behind the KV pages of a span's blocks.

Owns the memory and its layout, `[slots, kv heads, head size]` a block, slot = page * page size + place in the page, so
that tokens whose pages follow one another lie in memory as one sequence. Which page belongs to whom: pages.py. Called
by attention.py.
"""

from dataclasses import dataclass
from typing import Final

import torch


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one block keeps of one token."""

    kv_heads: int
    key_size: int
    value_size: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        return self.kv_heads * (self.key_size + self.value_size) * dtype.itemsize


class KVPool:
    """Keys and values of `pages` pages for each block of a span."""

    def __init__(
        self, shapes: list[KVShape], *, pages: int, page_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        slots = pages * page_size
        self.page_size: Final = page_size
        self.keys: Final = [
            torch.zeros(slots, shape.kv_heads, shape.key_size, dtype=dtype, device=device) for shape in shapes
        ]
        self.values: Final = [
            torch.zeros(slots, shape.kv_heads, shape.value_size, dtype=dtype, device=device) for shape in shapes
        ]
