"""One packed step: where each session's chunk stands in the batch, at which positions, in which KV slots.

Owns what all blocks of a step share, built once before the first of them: positions, slots, masks. Knows pages, not
tensors of the pool. Called by span.py, read by attention.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from swarm_model.pages import PageTable


@dataclass(frozen=True, slots=True)
class Stretch:
    """One chunk's rows `[offset, offset + tokens)` of a step; its session then holds `length` tokens.

    `first_slot` is where the session's tokens begin if its pages follow one another; otherwise `slots` names them all.
    """

    offset: int
    tokens: int
    length: int
    first_slot: int
    slots: torch.Tensor | None  # [length]


class Step:
    """Chunks of several sessions as one sequence of rows."""

    def __init__(
        self,
        tables: Sequence[PageTable],
        tokens: Sequence[int],
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        caches: Sequence[Any] = (),
    ) -> None:
        """`tables` already hold the chunks' tokens; `tokens` says how many of each are new.

        `caches` are what the sessions keep besides pages, in the order of the chunks, where they keep such.
        """
        self.caches = caches
        self.stretches: list[Stretch] = []
        self._device, self._dtype = device, dtype
        self._masks: dict[tuple[int, int, int, int], torch.Tensor] = {}
        positions: list[int] = []
        slots: list[int] = []
        for table, count in zip(tables, tokens, strict=True):
            past = table.tokens - count
            first_slot, all_slots = table.pages[0] * page_size, None
            if table.contiguous:
                slots.extend(range(first_slot + past, first_slot + table.tokens))
            else:
                session = [page * page_size + place for page in table.pages for place in range(page_size)]
                slots.extend(session[past : table.tokens])
                all_slots = torch.tensor(session[: table.tokens], device=device)
            self.stretches.append(Stretch(len(positions), count, table.tokens, first_slot, all_slots))
            positions.extend(range(past, table.tokens))
        self.tokens = len(positions)
        self.positions = torch.tensor([positions], device=device)  # [1, tokens]
        self.slots = torch.tensor(slots, device=device)  # [tokens]
        self.first_slot = slots[0] if slots[-1] - slots[0] == len(slots) - 1 and len(tables) == 1 else None

    def mask(self, tokens: int, length: int, window: int, chunk: int = 0) -> torch.Tensor:
        """What the last `tokens` of `length` tokens may attend to, as a term to add to scores: `[tokens, length]`.

        `window` 0 means all tokens before, otherwise that many, the token itself included. With `chunk`, tokens attend
        within chunks of so many tokens alone; the `length` tokens begin with a chunk.
        """
        key = (tokens, length, window, chunk)
        if (mask := self._masks.get(key)) is None:
            rows = torch.arange(length - tokens, length, device=self._device)[:, None]
            columns = torch.arange(length, device=self._device)
            hidden = columns > rows
            if window:
                hidden |= columns <= rows - window
            if chunk:
                hidden |= columns < rows // chunk * chunk
            mask = torch.zeros(tokens, length, dtype=self._dtype, device=self._device)
            mask.masked_fill_(hidden, float("-inf"))
            self._masks[key] = mask
        return mask
