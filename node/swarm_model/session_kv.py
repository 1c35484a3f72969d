"""What sessions keep in a span's KV pages: room for what comes next, shared prefixes, and host memory for who waits.

Owns the pool, its page tables, the prefix cache and what was swapped out; `span.py` computes. When pages run short,
first prefixes that nobody uses go, then the sessions that ran longest ago move to host memory and come back when their
next chunk does. So a session that was admitted never fails because others came: the caller admits no more than pages
and swap space hold together, and none that is larger than the pool.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from swarm_model.kv_pool import KVPool
from swarm_model.pages import OutOfPages, PageAllocator, PageTable, SessionKey
from swarm_model.prefixes import PrefixCache


@dataclass(slots=True)
class _Swapped:
    """The first `tokens` tokens of a session in host memory; rows are those of KVPool.read_pages."""

    tokens: int
    rows: list[torch.Tensor]


class SessionKV:
    """Keys and values of all sessions of a span."""

    def __init__(self, pool: KVPool, pages: int) -> None:
        self.pool: Final = pool
        self.pages: Final = PageAllocator(pages, pool.page_size)
        self._prefixes = PrefixCache(self.pages)
        self._used: OrderedDict[SessionKey, None] = OrderedDict()  # sessions in pages, longest unused first
        self._swapped: dict[SessionKey, _Swapped] = {}

    @property
    def free(self) -> int:
        """Count the pages that sessions could take, those of kept prefixes included."""
        return self.pages.free + self._prefixes.evictable

    @property
    def swapped(self) -> int:
        """Count the sessions in host memory."""
        return len(self._swapped)

    def tokens(self, session: SessionKey) -> int:
        """Count the tokens kept for a session; one that is not known has none."""
        if (swapped := self._swapped.get(session)) is not None:
            return swapped.tokens
        return self.pages.tokens(session)

    def adopt(self, session: SessionKey, scope: bytes, digests: Sequence[bytes]) -> int:
        """See PrefixCache.adopt."""
        tokens = self._prefixes.adopt(session, scope, digests)
        if tokens:
            self._used[session] = None
        return tokens

    def place(self, session: SessionKey, position: int, tokens: int, busy: Collection[SessionKey]) -> PageTable:
        """Keep a session's first `position` tokens and make room for `tokens` behind them; see PageAllocator.place.

        The sessions in `busy` stay where they are. Raises OutOfPages: not even without all others is there room.
        """
        while True:
            try:
                self._swap_in(session, position)
                if (copy := self.pages.make_own(session, position)) is not None:
                    self.pool.copy_page(*copy)
                table = self.pages.place(session, position, tokens)
            except OutOfPages as shortage:
                if not self._make_room(shortage.needed, session, busy):
                    raise
            else:
                self._used[session] = None
                self._used.move_to_end(session)
                return table

    def wrote(self, session: SessionKey, position: int, end: int) -> None:
        """Say that a session's keys and values from `position` to `end` are computed."""
        self._prefixes.wrote(session, position, end)

    def truncate(self, session: SessionKey, tokens: int) -> None:
        """Forget a session's tokens behind the first `tokens`."""
        if (swapped := self._swapped.get(session)) is not None:
            swapped.tokens = min(swapped.tokens, tokens)
        self.pages.truncate(session, tokens)
        if not self.pages.tokens(session):
            self._used.pop(session, None)

    def drop(self, session: SessionKey) -> None:
        """Free what a session has, but for its prefix; one that is not known is already dropped."""
        self._prefixes.forget(session)
        self._swapped.pop(session, None)
        self._used.pop(session, None)
        self.pages.drop(session)

    def _make_room(self, pages: int, session: SessionKey, busy: Collection[SessionKey]) -> bool:
        """Free pages for a session; False if nothing is left that could go."""
        before = self.pages.free
        self._prefixes.make_room(pages)
        if self.pages.free > before:
            return True
        for other in self._used:
            if other != session and other not in busy:
                self._swap_out(other)
                return True
        return False

    def _swap_out(self, session: SessionKey) -> None:
        table = self.pages.table(session)
        self._swapped[session] = _Swapped(table.tokens, self.pool.read_pages(table.pages))
        # What it would keep of its prefix later lies in other pages then.
        self._prefixes.forget(session)
        self._used.pop(session)
        self.pages.drop(session)

    def _swap_in(self, session: SessionKey, position: int) -> None:
        """Bring back a session's first `position` tokens. Raises OutOfPages with nothing changed."""
        swapped = self._swapped.get(session)
        if swapped is None:
            return
        if kept := min(position, swapped.tokens):
            table = self.pages.place(session, 0, kept)
            self.pool.write_pages(table.pages, swapped.rows)
            self._used[session] = None
        del self._swapped[session]
