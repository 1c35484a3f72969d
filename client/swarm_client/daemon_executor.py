"""A thread for work that may take long and must not hold up the end of the program.

The standard library waits at exit for the workers of its executors, whatever they do. Called by draft_checkpoint.py,
local_model.py and model.py.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class DaemonExecutor(Executor):
    """One thread that is started with the first work and abandoned when the interpreter ends."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._waiting: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._futures: list[Future[object]] = []
        self._started = self._closed = False

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> "Future[_T]":
        future: Future[_T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            if self._closed:
                raise RuntimeError("the executor is shut down")
            if not self._started:
                self._started = True
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
            self._futures = [one for one in self._futures if not one.done()]
            self._futures.append(future)  # type: ignore[arg-type]
            self._waiting.put(run)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more. With `wait`, waits for what was submitted."""
        with self._lock:
            self._closed = True
            futures = list(self._futures)
            self._waiting.put(None)
        if cancel_futures:
            for future in futures:
                future.cancel()
        if wait:
            for future in futures:
                if not future.cancelled():
                    future.exception()

    def _work(self) -> None:
        while (run := self._waiting.get()) is not None:
            run()
