"""Attention of all short chunks of a step at once on a CPU, by the kernel in `native/paged_attention.cpp`.

torch attends one session after the other; what attending to all at once gains, `benchmarks/executor.py --only pages`
shows. Long chunks stay with torch, which multiplies matrices there. Chosen by acceleration.py where it gives what torch
gives.
"""

from typing import Final

import numpy as np
import torch

from swarm_model.kernels import Asked, Layout
from swarm_model.native_kernels import native_operator

LANES: Final = 16  # numbers of the widest vector, which heads are made of
LONGEST_CHUNK: Final = 16  # tokens; beyond, matrices are quicker than one token after the other


class NativeAttention:
    """One token after the other, the heads that share keys together."""

    name: Final = "native"
    longest_chunk: Final = LONGEST_CHUNK

    def __init__(self, page_size: int) -> None:
        """Raises ImportError where there is no kernel for this machine."""
        operator = native_operator("paged_attention")
        if operator is None:
            raise ImportError("there is no native kernel for this machine")
        self._operator: Final = operator
        self.page_size: Final = page_size
        self._tabled: Layout | None = None  # for which this is the table:
        self._tokens = torch.empty(0, 2, dtype=torch.int32)

    def serves(self, asked: Asked) -> bool:
        sizes = asked.key_size % LANES == 0 == asked.value_size % LANES
        return asked.is_plain and asked.softcap is None and sizes and asked.dtype in (torch.float32, torch.bfloat16)

    def replan(self, layout: Layout) -> None:
        pass

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        layout: Layout,
        asked: Asked,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        if self._tabled is not layout:
            self._tabled, self._tokens = layout, _tokens(layout)
        if query.stride(2) != 1:
            query = query.contiguous()
        outputs = query.new_empty(len(query), asked.heads, asked.value_size)
        self._operator(
            outputs, query, keys, values, self._tokens, layout.pages, layout.page_size, asked.scale, asked.window
        )
        return outputs


def _tokens(layout: Layout) -> torch.Tensor:
    """List each row's session, and how many of its tokens the row sees: int32 `[rows, 2]`."""
    if layout.decodes:
        sessions, lengths = np.arange(len(layout.host_lengths), dtype=np.int32), layout.host_lengths
    else:
        ends = layout.host_row_ends
        sessions = np.repeat(np.arange(len(layout.host_lengths), dtype=np.int32), np.diff(ends))
        rows = np.arange(ends[-1], dtype=np.int32)
        lengths = layout.host_lengths[sessions] - (ends[1:][sessions] - 1 - rows)
    return torch.from_numpy(np.stack((sessions, lengths), axis=1))
