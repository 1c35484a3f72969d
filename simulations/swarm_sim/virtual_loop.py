"""An asyncio event loop in virtual time: nothing waits, everything happens in one order.

Owns time, the order of callbacks and the refusal of all that would let the real world in. When nothing is ready, time
jumps to the next timer; timers of one instant run in the order in which they were set. Whether a program's second run
equals its first is then up to the program: its randomness must be seeded, and it must not iterate over sets of what
hashes by address or by `PYTHONHASHSEED` (tasks and futures are taken care of, see `ordered_tasks.py`). Our code takes
clocks, randomness, transports, stores and executors as arguments, so nothing is patched here: code that calls
`time.time()` itself reads the real clock.

Of asyncio's own, this uses what `BaseEventLoop` of 3.11 to 3.14 keeps for loops that bring their own `_run_once`:
`_ready`, `_stopping`, `_timer_handle_cancelled`, `_write_to_self`, and `Handle`'s `_run`, `_callback`, `_cancelled`.

Used by `run.py` and by tests, as `run(main(...))`.
"""

import asyncio
import gc
import heapq
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, NoReturn, TypeVar, TypeVarTuple

from swarm_sim.errors import BudgetSpent, Deadlock, RealWorld
from swarm_sim.ordered_tasks import OrderedFuture, OrderedTask
from swarm_sim.trace import Trace
from swarm_sim.waiting import describe_waiting

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

EXECUTOR_DELAY_S = 0.001
MAX_EVENTS = 100_000_000
CLEAN_UP_EVENTS = 1_000_000  # granted when the budget is spent, for the tasks to be cancelled
EVENTS_PER_COLLECTION = 200_000
TIMERS_KEPT = 1_000  # cancelled ones, before the heap is cleaned


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs callbacks in virtual time; `run_forever` raises Deadlock or BudgetSpent when nothing can come of it."""

    _ready: deque[asyncio.Handle]
    _stopping: bool

    def __init__(
        self, *, trace: Trace | None = None, max_events: int = MAX_EVENTS, executor_delay_s: float = EXECUTOR_DELAY_S
    ) -> None:
        super().__init__()
        self.trace = trace or Trace()
        self.events = 0
        self._max_events = max_events
        self._executor_delay_s = executor_delay_s
        self._now_s = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_cancelled = 0
        self._numbers = 0
        self._thread = threading.get_ident()
        self.set_task_factory(_ordered_task)

    def next_number(self) -> int:
        """Return the next of the numbers that order what this loop makes."""
        self._numbers += 1
        return self._numbers

    def create_future(self) -> asyncio.Future[Any]:
        return OrderedFuture(self.next_number(), loop=self)

    # -- time --------------------------------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now_s

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now_s + max(delay, 0.0), callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        self._check_closed()  # type: ignore[attr-defined]
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, self.next_number(), timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self._timers_cancelled += 1  # an upper bound: a timer may be cancelled after it ran
        if self._timers_cancelled > TIMERS_KEPT and self._timers_cancelled * 2 > len(self._timers):
            self._timers = [timer for timer in self._timers if not timer[2].cancelled() and timer[2] is not handle]
            heapq.heapify(self._timers)
            self._timers_cancelled = 0

    def _run_once(self) -> None:
        if self.events > self._max_events:
            self._max_events += CLEAN_UP_EVENTS
            raise BudgetSpent(self.events, self._now_s, describe_waiting(asyncio.all_tasks(self)))
        ready, timers = self._ready, self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if not ready and not self._stopping:
            if not timers:
                raise Deadlock(self._now_s, describe_waiting(asyncio.all_tasks(self)))
            self._now_s = max(self._now_s, timers[0][0])
        while timers and timers[0][0] <= self._now_s:
            timer = heapq.heappop(timers)[2]
            if not timer.cancelled():
                ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                self._run_handle(handle)

    def _run_handle(self, handle: asyncio.Handle) -> None:
        self.events += 1
        if self.events % EVENTS_PER_COLLECTION == 0:
            gc.collect()
        self.trace.callback(self._now_s, handle._callback)  # type: ignore[attr-defined]
        handle._run()

    # -- the real world ----------------------------------------------------------------------------------------------

    def run_in_executor(self, executor: object, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """Run `func` here and now; its result arrives after the modelled delay."""
        future = self.create_future()
        try:
            result = func(*args)
        except Exception as error:
            self.call_later(self._executor_delay_s, _unless_done, future, future.set_exception, error)
        else:
            self.call_later(self._executor_delay_s, _unless_done, future, future.set_result, result)
        return future

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        if threading.get_ident() != self._thread:
            raise RealWorld("a callback from another thread")
        return self.call_soon(callback, *args, context=context)

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Do nothing: there is none."""

    def _write_to_self(self) -> None:
        """Do nothing: nobody sleeps in a selector."""

    def _process_events(self, event_list: object) -> None:
        """Do nothing: there are no I/O events."""


def run(main: Coroutine[Any, Any, T], *, trace: Trace | None = None, max_events: int = MAX_EVENTS) -> T:
    """Run a coroutine to its end in virtual time and return its result.

    Garbage is collected every so many events, not when memory happens to call for it, so that what finalizers do comes
    at the same place in every run.

    Raises what the coroutine raises; Deadlock and BudgetSpent if it can or may not end.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=lambda: VirtualLoop(trace=trace, max_events=max_events)) as runner:
            return runner.run(main)
    finally:
        if collects:
            gc.enable()


def running_loop() -> VirtualLoop:
    """Return the virtual loop that the caller runs on."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def _ordered_task(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T] | Generator[Any, None, T], **options: Any
) -> OrderedTask[T]:
    assert isinstance(loop, VirtualLoop)
    return OrderedTask(coroutine, loop.next_number(), loop=loop, **options)


def _unless_done(future: asyncio.Future[Any], resolve: Callable[[Any], None], value: object) -> None:
    if not future.done():
        resolve(value)


_REFUSED = (
    "add_reader", "add_signal_handler", "add_writer", "connect_accepted_socket", "connect_read_pipe",
    "connect_write_pipe", "create_connection", "create_datagram_endpoint", "create_server", "create_unix_connection",
    "create_unix_server", "getaddrinfo", "getnameinfo", "remove_reader", "remove_signal_handler", "remove_writer",
    "sendfile", "sock_accept", "sock_connect", "sock_recv", "sock_recv_into", "sock_recvfrom", "sock_recvfrom_into",
    "sock_sendall", "sock_sendfile", "sock_sendto", "start_tls", "subprocess_exec", "subprocess_shell",
)  # fmt: skip


def _refusal(operation: str) -> Callable[..., NoReturn]:
    def refuse(*_arguments: object, **_options: object) -> NoReturn:
        raise RealWorld(operation)

    return refuse


for _operation in _REFUSED:
    setattr(VirtualLoop, _operation, _refusal(_operation))
