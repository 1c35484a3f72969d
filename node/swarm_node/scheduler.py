"""What runs next: a pure scheduler over the steps that wait.

Owns the queue of steps and the rule that picks a batch from it: every decode and verify step that is ready, then pieces
of prefill into what is left of the token budget. A session has at most one piece in a batch, and its steps never
overtake each other, so that the KV of a step is there before the next one runs. A verify step is never cut: its tokens
are judged together. Called by `compute.py`; knows no clock and no torch.

Mixing prefill chunks into decode batches: Agrawal et al. 2024 (Sarathi-Serve), section 4.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swarm_net.messages import Candidate, HopTiming, StepKind
from swarm_node.executor import Draw, Piece
from swarm_node.gathering import Gathering
from swarm_node.pacing import Pace
from swarm_node.turns import Turns


@dataclass(slots=True)
class Work:
    """One accepted step that waits; `done` of its `count` tokens have been handed out."""

    session: bytes
    epoch: int
    frame: int
    position: int
    count: int
    kind: StepKind
    blocks: tuple[int, int]
    data: memoryview
    dtype: str  # of the activations in `data`
    sample: bool
    draw: Draw | None
    arrived_s: float
    ids: NDArray[np.int32] | None = None  # [count], where the last hop needs them
    tip: int = 0
    candidates: tuple[Candidate, ...] = ()
    codec: str = "raw"  # of the activations that come and go
    trail: tuple[HopTiming, ...] = ()
    hops: int = 1  # of its session's route
    acknowledge: bool = False  # tell the client when it has run
    sealed: bytes = b""  # for later hops
    wire_us: int = 0
    done: int = 0

    @property
    def left(self) -> int:
        return self.count - self.done

    @property
    def is_urgent(self) -> bool:
        """Whether somebody waits for it token by token."""
        return self.kind == "verify" or (self.kind == "decode" and self.count == 1)


@dataclass(frozen=True, slots=True)
class Slice:
    """The part of a work that runs in this batch."""

    work: Work
    piece: Piece
    is_end: bool  # of the work's tokens


class Scheduler:
    """Picks batches of at most `token_budget` tokens, prefill in chunks of `chunk_tokens`.

    Decode and verify steps may exceed the budget, up to `max_decode_tokens`: each is a token or a few, and a session
    that waited for its turn would pay with latency for what hardly costs more.
    """

    def __init__(
        self,
        *,
        token_budget: int = 256,
        chunk_tokens: int = 256,
        max_decode_tokens: int = 256,
        turns: Turns | None = None,
        gathering: Gathering | None = None,
    ) -> None:
        """`turns` rules who runs where sessions may have more KV than the pool holds, `gathering` which decode steps
        wait for each other; without it none does."""
        self.token_budget = token_budget
        self.chunk_tokens = chunk_tokens
        self.max_decode_tokens = max_decode_tokens
        self._queues: OrderedDict[bytes, deque[Work]] = OrderedDict()  # by session, in order of arrival
        self._held: dict[bytes, None] = {}
        self._pace = Pace()
        self._gathering = gathering
        self._turns = turns
        self.wait_until_s: float | None = None
        self.waiting_tokens = 0

    def __bool__(self) -> bool:
        """Whether anything may run now."""
        return any(session not in self._held for session in self._queues)

    def add(self, work: Work) -> None:
        """Queue a step behind the others of its session."""
        self._queues.setdefault(work.session, deque()).append(work)
        self.waiting_tokens += work.left

    def void(self, session: bytes, below_epoch: int) -> int:
        """Forget a session's steps of older epochs; return how many tokens waited in them."""
        queue = self._queues.get(session)
        if queue is None:
            return 0
        kept = deque(work for work in queue if work.epoch >= below_epoch)
        forgotten = sum(work.left for work in queue) - sum(work.left for work in kept)
        self.waiting_tokens -= forgotten
        if kept:
            self._queues[session] = kept
        else:
            del self._queues[session]
        return forgotten

    def hold(self, session: bytes) -> None:
        """Let a session's steps wait until `release`: its outputs have nowhere to go."""
        self._held[session] = None

    def release(self, session: bytes) -> None:
        """Let a session's steps run again."""
        self._held.pop(session, None)

    def drop(self, session: bytes) -> None:
        """Forget all of a session's steps."""
        self.release(session)
        if self._gathering is not None:
            self._gathering.drop(session)
        if self._turns is not None:
            self._turns.drop(session)
        if (queue := self._queues.pop(session, None)) is not None:
            self.waiting_tokens -= sum(work.left for work in queue)

    def next(self, now_s: float) -> list[Slice]:
        """Take the next batch; tell `ran` what it took. Empty if nothing may run, or nothing before `wait_until_s`.

        All pieces of a batch run the same blocks: those of the session that has waited longest.
        """
        self.wait_until_s = None
        heads = [queue[0] for session, queue in self._queues.items() if session not in self._held]
        if self._turns is not None:
            heads = self._turns.admit(heads, now_s)
            self.wait_until_s = self._turns.next_turn_s
        if not heads:
            return []
        ready = [work for work in heads if work.blocks == heads[0].blocks]
        prefills = [work for work in ready if not work.is_urgent]
        urgent = list(self._first(work for work in ready if work.is_urgent))
        if self._gathering is not None and urgent:
            urgent = self._gathered(self._gathering, urgent, now_s, at_once=bool(prefills))
            if not urgent:
                return []
        batch = [self._take(work, work.left) for work in urgent]
        if batch:
            self._pace.took_decode(min(part.work.arrived_s for part in batch))
        if not prefills:
            return batch
        most = max(self.token_budget - sum(part.piece.count for part in batch), 0)
        budget = self._pace.prefill_budget(now_s, decodes=bool(batch), most=most) if most else 0
        if not batch and budget == 0:
            self.wait_until_s = self._pace.look_again_s(now_s)
        for work in prefills:
            tokens = min(work.left, self.chunk_tokens, budget)
            if tokens == 0:
                break
            batch.append(self._take(work, tokens))
            budget -= tokens
        return batch

    def ran(self, batch: Sequence[Slice], started_s: float, ended_s: float) -> None:
        """A batch from `next` has run."""
        urgent = sum(part.piece.count for part in batch if part.work.is_urgent)
        tokens = sum(part.piece.count for part in batch)
        self._pace.ran(ended_s, decode_tokens=urgent, prefill_tokens=tokens - urgent, seconds=ended_s - started_s)
        decoded = [part.work.session for part in batch if part.work.is_urgent]
        if decoded and self._gathering is not None:
            seconds = ended_s - started_s if urgent == tokens else None
            self._gathering.ran(decoded, batch[0].work.blocks, ended_s, seconds)

    def _first(self, urgent: Iterable[Work]) -> Iterator[Work]:
        """Yield decode and verify steps, longest waiting first, as far as they fit, and at least one."""
        tokens = 0
        for work in urgent:
            tokens += work.left
            if tokens > max(self.max_decode_tokens, work.left):
                return
            yield work

    def _gathered(self, gathering: Gathering, urgent: list[Work], now_s: float, *, at_once: bool) -> list[Work]:
        """Choose the steps to run together now, all of them if `at_once`; none where it pays to wait for more."""
        if not at_once:
            hops = max(work.hops for work in urgent)
            sessions = [work.session for work in urgent]
            most, until_s = gathering.plan(now_s, sessions, urgent[0].blocks, hops=hops)
            if until_s is not None:
                self.wait_until_s = until_s if self.wait_until_s is None else min(self.wait_until_s, until_s)
                return []
            urgent = urgent[:most]
        gathering.took([(work.session, work.arrived_s) for work in urgent])
        return urgent

    def _take(self, work: Work, tokens: int) -> Slice:
        start, end = work.done, work.done + tokens
        is_end = end == work.count
        width = len(work.data) // work.count
        piece = Piece(
            session=work.session,
            blocks=work.blocks,
            position=work.position + start,
            count=tokens,
            data=work.data[start * width : end * width],
            draw=work.draw if is_end else None,
            dtype=work.dtype,
            codec=work.codec,
        )
        work.done = end
        self.waiting_tokens -= tokens
        queue = self._queues.pop(work.session)
        if is_end:
            queue.popleft()
        if queue:
            self._queues[work.session] = queue  # behind the others: prefills take turns
        return Slice(work, piece, is_end)
