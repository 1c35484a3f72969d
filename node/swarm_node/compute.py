"""Where the computing happens: a driver takes steps from the event loop, runs them in batches and hands back outputs.

Owns the hand-over. `ComputeThread` is production's: one thread that never blocks the loop and runs whatever is ready as
soon as it is free, without a timer. `VirtualCompute` is the simulator's: the same scheduler and contract on the loop
itself, a batch taking the time that its executor says. Both own their scheduler and executor: nobody else may touch
them while the driver runs.
"""

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from swarm_net.links import Clock
from swarm_net.session_errors import ComputeFailed
from swarm_node.errors import ComputeThreadFailed
from swarm_node.executor import Executor, Output, Piece, Prefix, TimedExecutor
from swarm_node.scheduler import Scheduler, Slice, Work

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ran:
    """One piece of a work has run."""

    part: Slice
    output: Output
    started_s: float
    ended_s: float
    batch_tokens: int


@dataclass(frozen=True, slots=True)
class Adopt:
    """Let a session begin with what is kept of its prefix; `on_done` is called on the loop with the tokens cached."""

    session: bytes
    prefix: Prefix
    on_done: Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Void:
    """Forget a session's waiting steps of older epochs; `on_done` is called on the loop with their tokens."""

    session: bytes
    below_epoch: int
    on_done: Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget a session, its steps and its KV; `on_done` is called on the loop when nothing of it is left."""

    session: bytes
    on_done: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Hold:
    """Let a session's steps wait."""

    session: bytes


@dataclass(frozen=True, slots=True)
class Release:
    """Let a session's steps run again."""

    session: bytes


Command = Work | Adopt | Void | Drop | Hold | Release
Deliver = Callable[[list[Ran]], None]


class Compute(Protocol):
    """What the node uses."""

    def start(self, deliver: Deliver) -> None:
        """Begin; `deliver` is called on the loop with the outputs of each batch."""

    def submit(self, commands: Sequence[Command]) -> None:
        """Hand over commands, in order; never blocks."""

    async def stop(self) -> None:
        """End after the batch that runs; what waits is forgotten."""


class _Core:
    """What both drivers share: commands in, batches run."""

    def __init__(self, executor: Executor, scheduler: Scheduler, clock: Clock) -> None:
        self.executor = executor
        self.scheduler = scheduler
        self.clock = clock

    def obey(self, command: Command) -> Callable[[], None] | None:
        """Take one command; returns what the loop has to be told."""
        match command:
            case Work():
                self.scheduler.add(command)
            case Adopt(session, prefix, on_adopted):
                return partial(on_adopted, self.executor.adopt(session, prefix))
            case Void(session, below_epoch, on_voided):
                return partial(on_voided, self.scheduler.void(session, below_epoch))
            case Hold(session):
                self.scheduler.hold(session)
            case Release(session):
                self.scheduler.release(session)
            case Drop(session, on_done):
                self.scheduler.drop(session)
                self.executor.drop(session)
                return on_done
        return None

    def run(self, pieces: list[Piece]) -> list[Output]:
        """Run a batch. If the executor raises, run its pieces one by one: whose piece it was, fails alone."""
        try:
            outputs = self.executor.run(pieces)
        except Exception as error:
            log.exception("executor failed pieces=%d tokens=%d", len(pieces), sum(piece.count for piece in pieces))
            if len(pieces) > 1:
                return [output for piece in pieces for output in self.run([piece])]
            return [ComputeFailed(reason=type(error).__name__)]
        assert len(outputs) == len(pieces)
        return outputs


class ComputeThread:
    """Runs batches in one thread of its own."""

    def __init__(self, executor: Executor, scheduler: Scheduler, clock: Clock) -> None:
        self._core = _Core(executor, scheduler, clock)
        self._inbox: queue.SimpleQueue[Sequence[Command] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="compute", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deliver: Deliver | None = None
        self._ended: asyncio.Future[None] | None = None

    def start(self, deliver: Deliver) -> None:
        self._loop, self._deliver = asyncio.get_running_loop(), deliver
        self._ended = self._loop.create_future()
        self._thread.start()

    def submit(self, commands: Sequence[Command]) -> None:
        self._inbox.put(commands)  # bounded by what sessions may have on their way: see sessions.py

    async def stop(self) -> None:
        if self._ended is not None:
            self._inbox.put(None)
            await asyncio.wait([self._ended])

    async def ended(self) -> None:
        """Return when the thread has been stopped. Raises ComputeThreadFailed when it ended by itself: nothing runs."""
        assert self._ended is not None
        await asyncio.shield(self._ended)

    def _work(self) -> None:
        error: Exception | None = None
        try:
            self._run()
        except Exception as raised:
            log.exception("the compute thread failed")
            error = ComputeThreadFailed(f"{type(raised).__name__}: {raised}")
        finally:
            self._call(self._settle, error)

    def _settle(self, error: Exception | None) -> None:
        assert self._ended is not None
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)

    def _run(self) -> None:
        core = self._core
        while self._drain():
            started_s = core.clock.monotonic()
            parts = core.scheduler.next(started_s)
            if not parts:
                continue
            pieces = [part.piece for part in parts]
            outputs = core.run(pieces)
            ended_s = core.clock.monotonic()
            self._hand_back(parts, outputs, started_s, ended_s)  # first: somebody waits for them
            core.scheduler.ran(parts, started_s, ended_s)

    def _drain(self) -> bool:
        """Take all commands that are there, waiting for one if nothing is ready; False: stop."""
        until_s = self._core.scheduler.wait_until_s
        wait = not self._core.scheduler or until_s is not None
        timeout_s = None if until_s is None else max(0.0, until_s - self._core.clock.monotonic())
        while True:
            try:
                commands = self._inbox.get(block=wait, timeout=timeout_s)
            except queue.Empty:
                return True
            if commands is None:
                return False
            wait = False
            for command in commands:
                if (done := self._core.obey(command)) is not None:
                    self._call(done)

    def _hand_back(self, parts: list[Slice], outputs: list[Output], started_s: float, ended_s: float) -> None:
        assert self._deliver is not None
        tokens = sum(part.piece.count for part in parts)
        self._call(
            self._deliver,
            [Ran(part, output, started_s, ended_s, tokens) for part, output in zip(parts, outputs, strict=True)],
        )

    def _call(self, callback: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is left to be told
            self._loop.call_soon_threadsafe(callback, *arguments)


class VirtualCompute:
    """Runs batches on the loop, in modelled time: no thread."""

    def __init__(self, executor: TimedExecutor, scheduler: Scheduler, clock: Clock) -> None:
        self._core = _Core(executor, scheduler, clock)
        self._executor = executor
        self._inbox: list[Command] = []  # obeyed between batches, as by a thread
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, deliver: Deliver) -> None:
        self._task = asyncio.get_running_loop().create_task(self._work(deliver), name="virtual compute")

    def submit(self, commands: Sequence[Command]) -> None:
        self._inbox.extend(commands)
        self._ready.set()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _work(self, deliver: Deliver) -> None:
        core = self._core
        while True:
            commands, self._inbox = self._inbox, []
            for command in commands:
                if (done := core.obey(command)) is not None:
                    done()
            started_s = core.clock.monotonic()
            parts = core.scheduler.next(started_s)
            if not parts:
                self._ready.clear()
                until_s = core.scheduler.wait_until_s
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if until_s is None else max(0.0, until_s - started_s)):
                        await self._ready.wait()
                continue
            pieces = [part.piece for part in parts]
            await asyncio.sleep(self._executor.duration_s(pieces))
            outputs = core.run(pieces)
            tokens = sum(piece.count for piece in pieces)
            ended_s = core.clock.monotonic()
            core.scheduler.ran(parts, started_s, ended_s)
            deliver(
                [Ran(part, output, started_s, ended_s, tokens) for part, output in zip(parts, outputs, strict=True)]
            )
