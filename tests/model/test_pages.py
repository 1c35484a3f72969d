"""The page allocator under any history of placements, cuts and drops."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from swarm_model.pages import OutOfPages, PageAllocator, SessionKey

PAGES, PAGE_SIZE = 12, 4
sessions = st.sampled_from([SessionKey(name) for name in (b"a", b"b", b"c", b"d")])


class AllocatorHistory(RuleBasedStateMachine):
    """Beside the allocator runs a model that stores, for each session, what stands in every token's place."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = PageAllocator(PAGES, PAGE_SIZE)
        self.memory: dict[tuple[int, int], int] = {}
        self.expected: dict[SessionKey, list[int]] = {}
        self.written = 0

    @rule(session=sessions, share=st.floats(0, 1), tokens=st.integers(1, 4 * PAGE_SIZE))
    def place(self, session: SessionKey, share: float, tokens: int) -> None:
        before = self.expected.get(session, [])
        position = round(share * len(before))
        held = -(-len(before) // PAGE_SIZE)
        if -(-(position + tokens) // PAGE_SIZE) - held > self.allocator.free:
            with pytest.raises(OutOfPages):
                self.allocator.place(session, position, tokens)
            return
        table = self.allocator.place(session, position, tokens)
        assert table.tokens == position + tokens
        self.expected[session] = before[:position]
        for place in range(position, position + tokens):
            self.written += 1
            self.memory[self._place(session, place)] = self.written
            self.expected[session].append(self.written)

    @rule(session=sessions, share=st.floats(0, 1))
    def truncate(self, session: SessionKey, share: float) -> None:
        tokens = int(share * len(self.expected.get(session, [])))
        self.allocator.truncate(session, tokens)
        if session in self.expected:
            del self.expected[session][tokens:]
            if tokens == 0:
                del self.expected[session]

    @rule(session=sessions)
    def drop(self, session: SessionKey) -> None:
        self.allocator.drop(session)
        self.expected.pop(session, None)

    @invariant()
    def every_session_reads_what_it_wrote(self) -> None:
        for session, tokens in self.expected.items():
            assert self.allocator.tokens(session) == len(tokens)
            assert [self.memory[self._place(session, position)] for position in range(len(tokens))] == tokens

    @invariant()
    def no_page_is_lost_or_handed_out_twice(self) -> None:
        owned = [page for session in self.expected for page in self.allocator.table(session).pages]
        assert len(owned) == len(set(owned)) == sum(-(-len(tokens) // PAGE_SIZE) for tokens in self.expected.values())
        assert self.allocator.free == PAGES - len(owned)
        assert set(self.allocator.sessions()) == set(self.expected)

    @invariant()
    def contiguous_says_what_the_pages_are(self) -> None:
        for session in self.expected:
            pages = self.allocator.table(session).pages
            assert self.allocator.table(session).contiguous == (pages == list(range(pages[0], pages[0] + len(pages))))

    def teardown(self) -> None:
        for session in list(self.expected):
            self.allocator.drop(session)
        table = self.allocator.place(SessionKey(b"all"), 0, PAGES * PAGE_SIZE)
        assert table.pages == list(range(PAGES))

    def _place(self, session: SessionKey, position: int) -> tuple[int, int]:
        return self.allocator.table(session).pages[position // PAGE_SIZE], position % PAGE_SIZE


TestAllocatorHistory = AllocatorHistory.TestCase


def test_a_refused_placement_changes_nothing() -> None:
    allocator = PageAllocator(pages=2, page_size=4)
    allocator.place(SessionKey(b"a"), 0, 5)
    with pytest.raises(OutOfPages) as refusal:
        allocator.place(SessionKey(b"a"), 3, 6)
    assert (refusal.value.needed, refusal.value.free) == (2, 1)
    assert allocator.tokens(SessionKey(b"a")) == 5


def test_sessions_that_take_turns_stay_contiguous_while_there_is_room() -> None:
    allocator = PageAllocator(pages=256, page_size=4)
    names = [SessionKey(bytes([number])) for number in range(8)]
    for position in range(60):
        for name in names:
            allocator.place(name, position, 1)
    assert all(allocator.table(name).contiguous for name in names)
