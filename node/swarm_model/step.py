"""One packed step: where each session's chunk stands in the batch, at which positions, in which KV slots.

Owns what all blocks of a step share, built once, when the first of them asks: positions, slots, masks, tables. Knows
pages, not tensors of the pool. Called by span.py, read by attention.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any, Final

import numpy as np
import torch

from swarm_model.kernels import Layout
from swarm_model.pages import PageTable
from swarm_model.transfers import Transfers


@dataclass(frozen=True, slots=True)
class Stretch:
    """One chunk's rows `[offset, offset + tokens)` of a step; its session then holds `length` tokens.

    `first_slot` is where the session's tokens begin if its pages follow one another, otherwise None: then
    `Step.slots_of` names them all. Kernels that attend to all sessions at once read the step's layout instead.
    """

    offset: int
    tokens: int
    length: int
    first_slot: int | None
    pages: list[int]


class Step:
    """Chunks of several sessions as one sequence of rows."""

    def __init__(
        self,
        tables: Sequence[PageTable],
        tokens: Sequence[int],
        page_size: int,
        dtype: torch.dtype,
        transfers: Transfers,
        caches: Sequence[Any] = (),
    ) -> None:
        """`tables` already hold the chunks' tokens; `tokens` says how many of each are new.

        `caches` are what the sessions keep besides pages, in the order of the chunks, where they keep such.
        """
        self.caches = caches
        self.stretches: list[Stretch] = []
        self.position_list: list[int] = []
        self.slot_list: list[int] = []
        self.tables: Final = tables
        self.page_size: Final = page_size
        self._transfers, self._dtype = transfers, dtype
        self._masks: dict[tuple[int, int, int, int], torch.Tensor] = {}
        self._slots: dict[int, torch.Tensor] = {}
        self._layouts: dict[int, Layout | None] = {}
        slots = self.slot_list
        for table, count in zip(tables, tokens, strict=True):
            past, pages = table.tokens - count, table.pages
            first_slot = pages[0] * page_size if table.contiguous else None
            if first_slot is not None:
                slots.extend(range(first_slot + past, first_slot + table.tokens))
            else:
                slots.extend(pages[at // page_size] * page_size + at % page_size for at in range(past, table.tokens))
            self.stretches.append(Stretch(len(self.position_list), count, table.tokens, first_slot, pages))
            self.position_list.extend(range(past, table.tokens))
        self.tokens = len(self.position_list)
        # The ends alone do not tell: pages 5, 9, 7 begin and end where 5, 6, 7 do.
        in_order = len(tables) == 1 and slots[-1] - slots[0] == len(slots) - 1
        in_order = in_order and (tables[0].contiguous or slots == list(range(slots[0], slots[-1] + 1)))
        self.first_slot = slots[0] if in_order else None

    @cached_property
    def positions(self) -> torch.Tensor:
        """Each row's place in its session, `[1, tokens]`."""
        return self._transfers.to_device(torch.tensor([self.position_list]))

    @cached_property
    def slots(self) -> torch.Tensor:
        """Each row's place in the pool, `[tokens]`."""
        return self._transfers.to_device(torch.tensor(self.slot_list))

    def layout(self, longest_chunk: int) -> Layout | None:
        """What kernels are told: of the first chunks up to one that is longer than `longest_chunk` rows, if any."""
        if longest_chunk not in self._layouts:
            short = list(takewhile(lambda stretch: stretch.tokens <= longest_chunk, self.stretches))
            self._layouts[longest_chunk] = self._layout(short) if short else None
        return self._layouts[longest_chunk]

    def _layout(self, stretches: Sequence[Stretch]) -> Layout:
        lengths = np.array([stretch.length for stretch in stretches], np.int32)
        row_ends = np.array([0, *(stretch.offset + stretch.tokens for stretch in stretches)], np.int32)
        tables = [table.pages for table in self.tables[: len(stretches)]]
        pages = np.zeros((len(tables), max(map(len, tables))), np.int32)
        for row, table in zip(pages, tables, strict=True):
            row[: len(table)] = table
        return Layout.of(row_ends, lengths, pages, self.page_size, self._transfers)

    def slots_of(self, stretch: Stretch) -> torch.Tensor:
        """The slots of a stretch whose pages do not follow one another, `[length]`."""
        if (slots := self._slots.get(stretch.offset)) is None:
            first_slots = np.array(stretch.pages, np.int64)[:, None] * self.page_size
            flat = (first_slots + np.arange(self.page_size)).ravel()[: stretch.length]
            slots = self._slots[stretch.offset] = self._transfers.to_device(torch.from_numpy(flat))
        return slots

    def mask(self, tokens: int, length: int, window: int, chunk: int = 0) -> torch.Tensor:
        """What the last `tokens` of `length` tokens may attend to, as a term to add to scores: `[tokens, length]`.

        `window` 0 means all tokens before, otherwise that many, the token itself included. With `chunk`, tokens attend
        within chunks of so many tokens alone; the `length` tokens begin with a chunk.
        """
        key = (tokens, length, window, chunk)
        if (mask := self._masks.get(key)) is None:
            device = self._transfers.device
            rows = torch.arange(length - tokens, length, device=device)[:, None]
            columns = torch.arange(length, device=device)
            hidden = columns > rows
            if window:
                hidden |= columns <= rows - window
            if chunk:
                hidden |= columns < rows // chunk * chunk
            mask = torch.zeros(tokens, length, dtype=self._dtype, device=device)
            mask.masked_fill_(hidden, float("-inf"))
            self._masks[key] = mask
        return mask
