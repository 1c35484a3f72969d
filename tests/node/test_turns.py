"""Sessions take turns in a pool that does not hold them all: never too many, and everyone's turn comes."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from swarm_node.scheduler import Scheduler
from swarm_node.turns import TURN_S, Turns
from tests.node.test_scheduler import work_of

POOL, PAGE = 64, 4


@dataclass
class Session:
    session: bytes
    position: int
    count: int = 1


def pages(session: Session) -> int:
    return -(-(session.position + session.count) // PAGE)


sessions = st.lists(st.integers(0, POOL - 40), min_size=1, max_size=8).map(
    lambda lengths: [Session(bytes([number]), length) for number, length in enumerate(lengths)]
)


@given(sessions)
def test_where_all_fit_nobody_waits(waiting: list[Session]) -> None:
    turns = Turns(sum(pages(session) for session in waiting) * PAGE, PAGE)
    assert turns.admit(waiting, 0.0) == waiting
    assert turns.next_turn_s is None


@given(sessions, st.lists(st.floats(0.0, 0.3), min_size=60, max_size=60))
def test_the_pool_holds_whoever_runs_and_every_turn_comes(waiting: list[Session], steps_s: list[float]) -> None:
    turns, now_s = Turns(POOL, PAGE), 0.0
    last_ran_s = {session.session: 0.0 for session in waiting}
    for step_s in steps_s:
        admitted = turns.admit(waiting, now_s)
        assert sum(pages(session) for session in admitted) * PAGE <= POOL
        if not admitted:
            assert turns.next_turn_s is not None
            assert now_s < turns.next_turn_s <= now_s + TURN_S
        for session in admitted:
            last_ran_s[session.session] = now_s
            session.position = min(session.position + 1, POOL - 1)
            waiting.remove(session)
            waiting.append(session)
        if len(admitted) == len(waiting):
            assert turns.next_turn_s is None
        # Each other session has its turn at most once before one's own.
        assert now_s - min(last_ran_s.values()) <= (len(waiting) + 1) * (TURN_S + 0.3)
        now_s += step_s


def test_a_scheduler_says_when_the_next_turn_comes() -> None:
    scheduler = Scheduler(turns=Turns(POOL, PAGE))
    for name in (b"a", b"b"):
        scheduler.add(work_of(name, POOL - 1, 1))
    assert [part.work.session for part in scheduler.next(0.0)] == [b"a"]
    assert scheduler.next(0.1) == []
    assert scheduler.wait_until_s == TURN_S
    assert [part.work.session for part in scheduler.next(TURN_S)] == [b"b"]
    scheduler.drop(b"a")
    assert scheduler.next(2 * TURN_S) == []
    assert scheduler.wait_until_s is None


def test_a_session_that_ends_makes_room_at_once() -> None:
    scheduler = Scheduler(turns=Turns(POOL, PAGE))
    scheduler.add(work_of(b"a", POOL - 1, 1))
    scheduler.next(0.0)
    scheduler.add(work_of(b"b", POOL - 1, 1))
    scheduler.drop(b"a")
    assert [part.work.session for part in scheduler.next(0.0)] == [b"b"]
