"""Prefixes that sessions share: no session ever reads what another wrote, and nobody runs short for what is kept."""

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from swarm_model.pages import OutOfPages, PageAllocator, SessionKey
from swarm_model.prefixes import CHUNK_TOKENS, PrefixCache
from swarm_model.span import Chunk, Span
from tests.model.families import load_spans

PAGES, PAGE_SIZE = 24, 16
SCOPE = b"one client"
keys = st.sampled_from([SessionKey(name) for name in (b"a", b"b", b"c", b"d")])


def names(ids: Sequence[int]) -> tuple[bytes, ...]:
    """One name for each whole chunk, of everything up to its end."""
    ends = range(CHUNK_TOKENS, len(ids) + 1, CHUNK_TOKENS)
    return tuple(sha256(repr(list(ids[:end])).encode()).digest() for end in ends)


class SharingHistory(RuleBasedStateMachine):
    """Sessions come with prompts that begin alike, write, go back, and end, in any order."""

    page_size = PAGE_SIZE

    def __init__(self) -> None:
        super().__init__()
        self.pages = PageAllocator(PAGES, self.page_size)
        self.prefixes = PrefixCache(self.pages)
        self.memory: dict[tuple[int, int], int] = {}
        self.prompts: dict[SessionKey, list[int]] = {}
        self.written: dict[SessionKey, list[int]] = {}

    @rule(key=keys, beginnings=st.lists(st.integers(0, 1), max_size=3), rest=st.integers(1, 40))
    def begin(self, key: SessionKey, beginnings: list[int], rest: int) -> None:
        if key in self.prompts:
            return
        prompt = [kind for kind in beginnings for _ in range(CHUNK_TOKENS)] + [9] * rest
        cached = self.prefixes.adopt(key, SCOPE, names(prompt))
        assert cached <= len(prompt)
        self.prompts[key], self.written[key] = prompt, prompt[:cached]

    @precondition(lambda self: self.prompts)
    @rule(data=st.data(), tokens=st.integers(1, 100), back=st.integers(0, 200), other=st.booleans())
    def write(self, data: st.DataObject, tokens: int, back: int, other: bool) -> None:
        """Write the prompt on, or go back and write something else."""
        key = data.draw(st.sampled_from(sorted(self.prompts)))
        position = max(0, len(self.written[key]) - back)
        # What a session is named by has to be what it writes: another text may follow only what it wrote before.
        follows = self.prompts[key][position : position + tokens]
        ids = [7] * tokens if other and position >= len(names(self.prompts[key])) * CHUNK_TOKENS else follows
        if not ids:
            return
        try:
            self._write(key, position, ids)
        except OutOfPages as shortage:
            self.prefixes.make_room(shortage.needed)
            try:
                self._write(key, position, ids)
            except OutOfPages:
                assert self.prefixes.evictable == 0

    def _write(self, key: SessionKey, position: int, ids: list[int]) -> None:
        if (copy := self.pages.make_own(key, position)) is not None:
            for place in range(self.page_size):
                self.memory[copy[1], place] = self.memory.get((copy[0], place), -1)
        del self.written[key][position:]  # also where the place that follows fails: the session was cut
        table = self.pages.place(key, position, len(ids))
        for offset, token in enumerate(ids):
            page, place = divmod(position + offset, self.page_size)
            self.memory[table.pages[page], place] = token
        self.written[key] += ids
        self.prefixes.wrote(key, position, position + len(ids))

    @precondition(lambda self: self.prompts)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.prompts)))
        self.prefixes.forget(key)
        self.pages.drop(key)
        del self.prompts[key], self.written[key]

    @invariant()
    def every_session_reads_what_it_wrote(self) -> None:
        for key, ids in self.written.items():
            if not ids:
                continue
            pages = self.pages.table(key).pages
            places = [divmod(place, self.page_size) for place in range(len(ids))]
            assert [self.memory[pages[page], place] for page, place in places] == ids

    @invariant()
    def pages_are_free_or_held(self) -> None:
        held = sum(self.pages.holders(page) > 0 for page in range(PAGES))
        assert held + self.pages.free == PAGES

    def teardown(self) -> None:
        for key in self.prompts:
            self.prefixes.forget(key)
            self.pages.drop(key)
        assert self.pages.free + self.prefixes.evictable == PAGES
        self.prefixes.make_room(PAGES)
        assert self.pages.free == PAGES
        assert len(self.prefixes) == 0


class SharingLargePages(SharingHistory):
    """Pages that hold two chunks each."""

    page_size = 2 * CHUNK_TOKENS


TestSharingHistory = SharingHistory.TestCase
TestSharingHistory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSharingLargePages = SharingLargePages.TestCase
TestSharingLargePages.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_what_was_used_last_stays_and_ends_go_before_beginnings() -> None:
    pages = PageAllocator(12, PAGE_SIZE)
    prefixes = PrefixCache(pages)

    def prompted(key: bytes, kinds: Sequence[int]) -> int:
        prompt = [kind for kind in kinds for _ in range(CHUNK_TOKENS)]
        session = SessionKey(key)
        cached = prefixes.adopt(session, SCOPE, names(prompt))
        if cached < len(prompt):
            pages.place(session, cached, len(prompt) - cached)
            prefixes.wrote(session, cached, len(prompt))
        prefixes.forget(session)
        pages.drop(session)
        return cached // CHUNK_TOKENS

    assert prompted(b"a", [1, 2]) == 0
    assert prompted(b"b", [3]) == 0
    assert prompted(b"c", [1, 2]) == 2
    prefixes.make_room(4)
    assert prompted(b"d", [1, 2]) == 2
    prefixes.make_room(8)
    assert prompted(b"e", [1]) == 1


@pytest.fixture
def span(checkpoint_of: Callable[[str], Path]) -> Span:
    """The first blocks: their hidden states depend on all keys and values before."""
    return load_spans(checkpoint_of("llama"), [0, 2], kv_bytes=1 << 20, page_size=PAGE_SIZE)[0]


def run(span: Span, key: SessionKey, position: int, ids: Sequence[int]) -> torch.Tensor:
    (output,) = span.forward([Chunk(key, position, torch.tensor(ids))])
    assert isinstance(output, torch.Tensor), output
    return output


def test_a_span_computes_the_same_behind_a_shared_prefix(span: Span) -> None:
    ids = [3 + number % 90 for number in range(3 * CHUNK_TOKENS + 5)]
    plain = run(span, SessionKey(b"plain"), 0, ids)
    first, second = SessionKey(b"first"), SessionKey(b"second")
    assert span.adopt(first, SCOPE, names(ids)) == 0
    run(span, first, 0, ids)
    cached = span.adopt(second, SCOPE, names(ids))
    assert cached == 3 * CHUNK_TOKENS
    assert torch.allclose(run(span, second, cached, ids[cached:]), plain[cached:], atol=1e-5)
    # Both go back into what they share, and on with other tokens: neither may see the other's.
    cut = 2 * CHUNK_TOKENS + 3
    for key, token in ((first, 11), (second, 12)):
        changed = [*ids[:cut], token, *ids[cut + 1 :]]
        expected = run(span, SessionKey(b"check"), 0, changed)
        span.drop(SessionKey(b"check"))
        assert torch.allclose(run(span, key, cut, changed[cut:]), expected[cut:], atol=1e-5)
    third = SessionKey(b"third")
    assert span.adopt(third, SCOPE, names(ids)) == cached
    assert torch.allclose(run(span, third, cached, ids[cached:]), plain[cached:], atol=1e-5)
    for key in (b"plain", b"first", b"second", b"third"):
        span.drop(SessionKey(key))
    assert span.pages_free == span.info.pages


def test_what_is_kept_gives_way_to_sessions(span: Span) -> None:
    ids = [3 + number % 90 for number in range(2 * CHUNK_TOKENS + 1)]
    key = SessionKey(b"kept")
    span.adopt(key, SCOPE, names(ids))
    run(span, key, 0, ids)
    span.drop(key)
    assert span.pages_free == span.info.pages
    sessions = [SessionKey(b"%d" % number) for number in range(span.info.pages)]
    for session in sessions:  # as many as there are pages: those that were kept are needed as well
        run(span, session, 0, [5] * PAGE_SIZE)
    assert span.pages_free == 0
    assert span.adopt(SessionKey(b"late"), SCOPE, names(ids)) == 0
    for session in sessions:
        span.drop(session)
    assert span.pages_free == span.info.pages
