"""Which prefixes are still in the pages: a pure cache of page runs that ended sessions leave for later ones.

Owns the index digest -> pages, and what is thrown out when pages run short: least recently used first, the end of a
prefix before its beginning. A prefix is known by digests, one for each CHUNK_TOKENS tokens, each covering everything
before it; `scope` says who may share with whom. What the digests promise about the pages cannot be checked here: the
scope has to keep apart who does not trust each other. Called by the span.

Sharing pages by a hash chain over token ids: vLLM's automatic prefix caching (Kwon et al. 2023, section 4.4).
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from swarm_model.pages import PageAllocator, SessionKey

CHUNK_TOKENS: Final = 64


@dataclass(slots=True)
class _Filling:
    """A session whose prefix is known by name; `kept` of these names are in the cache."""

    scope: bytes
    digests: Sequence[bytes]
    kept: int
    started: bool = False


class PrefixCache:
    """Keeps the pages of prefixes for as long as nobody needs them for something else."""

    def __init__(self, pages: PageAllocator) -> None:
        self._pages = pages
        # Kept are whole pages: where these are larger than chunks, only every so many chunks.
        self._tokens = max(CHUNK_TOKENS, pages.page_size)
        self._every, rest = divmod(self._tokens, CHUNK_TOKENS)
        self._pages_each, more = divmod(self._tokens, pages.page_size)
        assert not rest, "pages are a number of whole chunks"
        assert not more, "chunks are a number of whole pages"
        self._chunks: OrderedDict[tuple[bytes, bytes], tuple[int, ...]] = OrderedDict()  # least recently used first
        self._filling: dict[SessionKey, _Filling] = {}

    def __len__(self) -> int:
        """Count the chunks kept."""
        return len(self._chunks)

    @property
    def evictable(self) -> int:
        """Count the pages that nobody but this cache holds."""
        return sum(self._pages.holders(page) == 1 for pages in self._chunks.values() for page in pages)

    def adopt(self, session: SessionKey, scope: bytes, digests: Sequence[bytes]) -> int:
        """Let a new session begin with the longest prefix that is kept for its scope; return its tokens.

        What the session computes of the rest will be kept in turn.
        """
        found: list[tuple[int, ...]] = []
        digests = digests[self._every - 1 :: self._every]
        for digest in digests:
            if (pages := self._chunks.get((scope, digest))) is None:
                break
            found.append(pages)
        for digest in reversed(digests[: len(found)]):  # the beginning last, so that it stays longest
            self._chunks.move_to_end((scope, digest))
        self._filling[session] = _Filling(scope, digests, len(found))
        if found:
            self._pages.adopt(session, [page for pages in found for page in pages])
        return len(found) * self._tokens

    def wrote(self, session: SessionKey, position: int, end: int) -> None:
        """Keep what a session has computed of its prefix: tokens `[position, end)` are new in its pages."""
        filling = self._filling.get(session)
        if filling is None:
            return
        if not filling.started:  # what all hops of a route have may be less than what is kept here
            filling.started, filling.kept = True, min(filling.kept, position // self._tokens)
        if position < filling.kept * self._tokens:
            # It goes back and may go on with other tokens: the names do not tell any more what is in its pages.
            del self._filling[session]
            return
        table = self._pages.table(session)
        each = self._pages_each
        while filling.kept < len(filling.digests) and end >= (filling.kept + 1) * self._tokens:
            name = filling.scope, filling.digests[filling.kept]
            if name not in self._chunks:
                pages = tuple(table.pages[filling.kept * each : (filling.kept + 1) * each])
                self._pages.hold(pages)
                self._chunks[name] = pages
            filling.kept += 1
        if filling.kept == len(filling.digests):
            del self._filling[session]

    def forget(self, session: SessionKey) -> None:
        """The session has ended; what it left is kept."""
        self._filling.pop(session, None)

    def make_room(self, pages: int) -> None:
        """Throw out what was not used for longest until so many pages are free, or nothing is left that would help."""
        for name in list(self._chunks):
            if self._pages.free >= pages:
                return
            held = self._chunks[name]
            if any(self._pages.holders(page) == 1 for page in held):
                del self._chunks[name]
                self._pages.let_go(held)
