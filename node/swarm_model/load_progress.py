"""How far the loading of a span is, as it is told to whoever waits for it. Made by span.py."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far loading is, in bytes, or in recorded steps. Stages come in this order.

    "build" compiles kernels, the first time on a machine; "fetch" comes only where something is downloaded, and
    "record" where decode steps are recorded.
    """

    stage: Literal["build", "fetch", "read", "record", "digest"]
    done: int
    total: int


class ByteProgress:
    """Adds up bytes and reports about a hundred times on the way."""

    def __init__(self, stage: Literal["read", "digest"], total: int, report: Callable[[LoadProgress], None]) -> None:
        self._stage, self._total, self._report = stage, total, report
        self._done = self._reported = 0

    def add(self, size: int) -> None:
        self._done += size
        if self._done - self._reported >= self._total // 100 or self._done >= self._total:
            self._reported = self._done
            # a tied embedding is read twice where a span is quantized part by part
            self._report(LoadProgress(self._stage, min(self._done, self._total), self._total))
