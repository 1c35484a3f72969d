"""Which KV page belongs to whom: a pure page allocator that keeps each session's pages side by side where it can.

Owns the mapping session -> page table, who holds each page, and the runs of free pages. The tensors behind the pages
live in kv_pool.py, the decision whom to refuse with the caller. Called by the span before each step.

A page may have several holders: sessions that share a prefix, and the cache that keeps it for the next one
(prefixes.py). Nobody writes to a page that somebody else holds: `make_own` gives a session a page of its own first.

Invariants: every page is free or has as many holders as tables and caches name it; a table holds just as many pages as
its tokens need; the free runs are sorted, do not touch, and together with the held pages cover the pool.

Pages as in PagedAttention (Kwon et al. 2023). Contiguity is a preference, never a promise: a session whose pages are
one run is read in place, the others are gathered. A new session therefore starts in the middle of the widest gap, where
both it and its left neighbour can grow.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NewType

SessionKey = NewType("SessionKey", bytes)


class OutOfPages(Exception):
    """Nothing was changed; `needed` pages were asked for and `free` are left."""

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(f"{needed} KV pages needed, {free} free")
        self.needed = needed
        self.free = free


@dataclass(slots=True)
class PageTable:
    """The pages of one session in token order, and how many tokens they hold."""

    pages: list[int] = field(default_factory=list)
    tokens: int = 0
    breaks: int = 0  # how many pages do not follow the one before them

    @property
    def contiguous(self) -> bool:
        return self.breaks == 0


class PageAllocator:
    """Hands out `pages` KV pages of `page_size` tokens each to sessions."""

    def __init__(self, pages: int, page_size: int) -> None:
        self.pages: Final = pages
        self.page_size: Final = page_size
        self.free = pages
        self._starts = [0] if pages else []  # sorted starts of the free runs
        self._ends = {0: pages} if pages else {}  # start of a free run -> its end, exclusive
        self._tables: dict[SessionKey, PageTable] = {}
        self._holders = [0] * pages

    def table(self, session: SessionKey) -> PageTable:
        return self._tables[session]

    def tokens(self, session: SessionKey) -> int:
        """Count the tokens held for a session; a session that is not known holds none."""
        table = self._tables.get(session)
        return 0 if table is None else table.tokens

    def sessions(self) -> list[SessionKey]:
        return list(self._tables)

    def place(self, session: SessionKey, position: int, tokens: int) -> PageTable:
        """Keep a session's first `position` tokens, forget the rest, and make room for `tokens` more behind them.

        `position` is at most the tokens held. Raises OutOfPages, with nothing changed, if there are too few pages.
        """
        table = self._tables.get(session)
        kept = self._pages_for(position)
        needed = self._pages_for(position + tokens) - kept
        given_back = 0 if table is None else sum(self._holders[page] == 1 for page in table.pages[kept:])
        if needed > self.free + given_back:
            raise OutOfPages(needed, self.free + given_back)
        if table is None:
            table = self._tables[session] = PageTable()
        elif position < table.tokens:
            self._cut(table, kept)
        if needed > 0:
            self._grow(table, needed)
        table.tokens = position + tokens
        return table

    def adopt(self, session: SessionKey, pages: Sequence[int]) -> PageTable:
        """Let a session that holds nothing yet begin with full pages that others hold."""
        assert session not in self._tables
        breaks = sum(after != before + 1 for before, after in pairwise(pages))
        table = self._tables[session] = PageTable(list(pages), len(pages) * self.page_size, breaks)
        self.hold(pages)
        return table

    def make_own(self, session: SessionKey, position: int) -> tuple[int, int] | None:
        """Give a session a page of its own for what it is about to write from `position` on.

        Returns (page, page) from and to which the caller has to copy, None if nothing is shared there. Everything
        behind `position` is forgotten. Raises OutOfPages with nothing changed.
        """
        table, index = self._tables.get(session), position // self.page_size
        if table is None or position % self.page_size == 0 or index >= len(table.pages):
            return None
        shared = table.pages[index]
        if self._holders[shared] == 1:
            return None
        if not self.free:
            raise OutOfPages(1, 0)
        self._cut(table, index)
        table.tokens = index * self.page_size
        self._grow(table, 1)
        table.tokens = position
        return shared, table.pages[index]

    def hold(self, pages: Iterable[int]) -> None:
        """Add a holder to each of these pages, which have one."""
        for page in pages:
            assert self._holders[page]
            self._holders[page] += 1

    def let_go(self, pages: Iterable[int]) -> None:
        """Take a holder from each of these pages; one that has none left is free."""
        for page in pages:
            self._release(page)

    def holders(self, page: int) -> int:
        return self._holders[page]

    def truncate(self, session: SessionKey, tokens: int) -> None:
        """Forget everything behind the first `tokens` tokens; a session that is left with none is dropped."""
        if tokens == 0:
            self.drop(session)
        elif (table := self._tables.get(session)) is not None and tokens < table.tokens:
            self._cut(table, self._pages_for(tokens))
            table.tokens = tokens

    def drop(self, session: SessionKey) -> None:
        """Free what a session owns; a session that is not known is already dropped."""
        if (table := self._tables.pop(session, None)) is not None:
            self._cut(table, 0)

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def _cut(self, table: PageTable, kept: int) -> None:
        for index in range(len(table.pages) - 1, kept - 1, -1):
            if index > 0 and table.pages[index] != table.pages[index - 1] + 1:
                table.breaks -= 1
            self._release(table.pages[index])
        del table.pages[kept:]

    def _grow(self, table: PageTable, needed: int) -> None:
        """Take pages behind the table's last one while they are free, then from the widest gaps."""
        while needed > 0:
            following = table.pages[-1] + 1 if table.pages else -1
            if following not in self._ends:
                following = self._best_start(needed)
                table.breaks += bool(table.pages)
            taken = self._take(following, needed)
            table.pages.extend(range(following, following + taken))
            needed -= taken

    def _best_start(self, needed: int) -> int:
        """Choose where `needed` pages without a neighbour go: into the widest gap, half of what is left before them."""
        start = max(self._starts, key=lambda start: self._ends[start] - start)
        spare = self._ends[start] - start - needed
        if start == 0 or spare <= 0:
            return start  # nobody on the left who might grow, or nothing to share
        return self._split(start, start + spare // 2)

    def _split(self, start: int, middle: int) -> int:
        """Make `middle` the start of a free run of its own, for the moment that passes until it is taken."""
        if middle > start:
            self._ends[middle] = self._ends[start]
            self._ends[start] = middle
            insort(self._starts, middle)
        return middle

    def _take(self, start: int, most: int) -> int:
        """Take up to `most` pages from the free run that begins at `start`; return how many."""
        end = self._ends.pop(start)
        taken = min(most, end - start)
        del self._starts[bisect_left(self._starts, start)]
        if start + taken < end:
            insort(self._starts, start + taken)
            self._ends[start + taken] = end
        self.free -= taken
        for page in range(start, start + taken):
            self._holders[page] = 1
        return taken

    def _release(self, page: int) -> None:
        """Take a holder from a page; without any it joins the free runs that it touches."""
        self._holders[page] -= 1
        if self._holders[page]:
            return
        at = bisect_left(self._starts, page)
        end = page + 1
        if end in self._ends:
            end = self._ends.pop(end)
            del self._starts[at]
        if at > 0 and self._ends[self._starts[at - 1]] == page:
            self._ends[self._starts[at - 1]] = end
        else:
            self._starts.insert(at, page)
            self._ends[page] = end
        self.free += 1
