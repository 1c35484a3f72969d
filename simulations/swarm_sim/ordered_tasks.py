"""Tasks and futures whose hash is the number of their creation.

asyncio keeps tasks and futures in sets (`TaskGroup`, `wait`, `all_tasks`), and a set's order follows the hashes, which
are addresses in memory by default: another run, another order. With these, sets iterate alike in every run. Made by
`VirtualLoop` only.
"""

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


class OrderedFuture(asyncio.Future[T]):
    """A future numbered by its loop."""

    def __init__(self, number: int, *, loop: asyncio.AbstractEventLoop) -> None:
        self.number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number


class OrderedTask(asyncio.Task[T]):
    """A task numbered by its loop."""

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, T] | Generator[Any, None, T],
        number: int,
        *,
        loop: asyncio.AbstractEventLoop,
        **options: Any,  # name, context, from 3.12 eager_start
    ) -> None:
        self.number = number  # first: asyncio registers the task in a set while it initializes it
        super().__init__(coroutine, loop=loop, **options)

    def __hash__(self) -> int:
        return self.number
