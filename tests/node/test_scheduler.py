"""The scheduler under any history of steps, voids and drops."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from swarm_net.messages import StepKind
from swarm_node.scheduler import Scheduler, Slice, Work

BUDGET, CHUNK, DECODES = 16, 8, 12
session_ids = st.sampled_from([b"a", b"b", b"c", b"d"])


def work_of(
    session: bytes, position: int, count: int, epoch: int = 0, start: int = 0, kind: StepKind | None = None
) -> Work:
    return Work(
        session=session,
        epoch=epoch,
        frame=0,
        position=position,
        count=count,
        kind=kind or ("prefill" if count > 1 else "decode"),
        blocks=(start, 8),
        data=memoryview(np.arange(position, position + count, dtype="<i4").tobytes()),
        dtype="",
        sample=True,
        draw=None,
        arrived_s=0.0,
    )


class SchedulerHistory(RuleBasedStateMachine):
    """Beside the scheduler runs a model: for each session the tokens that must still run, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(token_budget=BUDGET, chunk_tokens=CHUNK, max_decode_tokens=DECODES)
        self.expected: dict[bytes, list[tuple[int, int]]] = {}  # (epoch, position) of each token
        self.ends: dict[bytes, int] = {}
        self.held: set[bytes] = set()

    @rule(session=session_ids)
    def hold(self, session: bytes) -> None:
        self.scheduler.hold(session)
        self.held.add(session)

    @rule(session=session_ids)
    def release(self, session: bytes) -> None:
        self.scheduler.release(session)
        self.held.discard(session)

    @rule(session=session_ids, count=st.integers(1, 40), epoch=st.integers(0, 2), block=st.sampled_from([0, 4]))
    def add(self, session: bytes, count: int, epoch: int, block: int) -> None:
        start = self.ends.get(session, 0)
        self.scheduler.add(work_of(session, start, count, epoch, block))
        self.expected.setdefault(session, []).extend((epoch, start + token) for token in range(count))
        self.ends[session] = start + count

    @rule(session=session_ids, count=st.integers(2, 9))
    def add_a_verify_step(self, session: bytes, count: int) -> None:
        start = self.ends.get(session, 0)
        self.scheduler.add(work_of(session, start, count, kind="verify"))
        self.expected.setdefault(session, []).extend((0, start + token) for token in range(count))
        self.ends[session] = start + count

    @rule(session=session_ids, epoch=st.integers(0, 3))
    def void(self, session: bytes, epoch: int) -> None:
        self.scheduler.void(session, epoch)
        self.expected[session] = [token for token in self.expected.get(session, []) if token[0] >= epoch]

    @rule(session=session_ids)
    def drop(self, session: bytes) -> None:
        self.scheduler.drop(session)
        self.expected.pop(session, None)
        self.held.discard(session)

    @rule()
    def run_a_batch(self) -> None:
        waiting = {session for session, tokens in self.expected.items() if tokens} - self.held
        batch = self.scheduler.next(0.0)
        assert bool(batch) == bool(waiting)
        self._check_rules(batch)
        for part in batch:
            tokens = self.expected[part.piece.session]
            ran = [(part.work.epoch, part.piece.position + token) for token in range(part.piece.count)]
            assert tokens[: len(ran)] == ran, "a session's tokens run in order, each once"
            assert np.frombuffer(part.piece.data, "<i4").tolist() == [position for _, position in ran]
            del tokens[: len(ran)]

    def _check_rules(self, batch: list[Slice]) -> None:
        assert not {part.piece.session for part in batch} & self.held
        assert len({part.piece.session for part in batch}) == len(batch)
        assert len({part.piece.blocks for part in batch}) <= 1
        verify = [part for part in batch if part.work.kind == "verify"]
        assert all(part.piece.count == part.work.count for part in verify)
        urgent = [part for part in batch if part.piece.count == 1 or part in verify]
        assert len(urgent) == 1 or sum(part.piece.count for part in urgent) <= DECODES
        prefill = [part.piece.count for part in batch if part not in urgent]
        assert sum(prefill) <= BUDGET
        assert all(count <= CHUNK for count in prefill)

    @invariant()
    def the_count_of_waiting_tokens_is_right(self) -> None:
        assert self.scheduler.waiting_tokens == sum(len(tokens) for tokens in self.expected.values())
        assert bool(self.scheduler) == any(
            tokens for session, tokens in self.expected.items() if session not in self.held
        )


TestSchedulerHistory = SchedulerHistory.TestCase


def test_decode_goes_before_prefill_and_prefills_take_turns() -> None:
    scheduler = Scheduler(token_budget=8, chunk_tokens=8)
    scheduler.add(work_of(b"long", 0, 24))
    scheduler.add(work_of(b"other", 0, 8))
    scheduler.add(work_of(b"chat", 5, 1))
    batches = [[(part.piece.session, part.piece.count) for part in scheduler.next(0.0)] for _ in range(6)]
    assert batches[0] == [(b"chat", 1), (b"long", 7)]
    assert batches[1] == [(b"other", 8)]
    assert batches[2:5] == [[(b"long", 8)], [(b"long", 8)], [(b"long", 1)]]
    assert batches[5] == []


def test_prefill_fills_what_decode_leaves_whoever_came_first() -> None:
    scheduler = Scheduler(token_budget=BUDGET, chunk_tokens=CHUNK)
    for session, count in ((b"a", 1), (b"b", 5), (b"c", 1), (b"d", 20)):
        scheduler.add(work_of(session, 0, count))
    assert {part.piece.session: part.piece.count for part in scheduler.next(0.0)} == {
        b"a": 1,
        b"b": 5,
        b"c": 1,
        b"d": 8,
    }


def test_verify_steps_go_whole_with_decode_steps_up_to_their_limit() -> None:
    scheduler = Scheduler(token_budget=8, chunk_tokens=8, max_decode_tokens=10)
    scheduler.add(work_of(b"long", 0, 8))
    for session, count in ((b"a", 5), (b"b", 5), (b"c", 20), (b"d", 1)):
        scheduler.add(work_of(session, 9, count, kind="verify"))
    batches = [[(part.piece.session, part.piece.count) for part in scheduler.next(0.0)] for _ in range(4)]
    assert batches == [[(b"a", 5), (b"b", 5)], [(b"c", 20)], [(b"d", 1), (b"long", 7)], [(b"long", 1)]]
