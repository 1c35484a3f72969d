"""Which task waits where: the report behind a deadlock.

Reads tasks and coroutines, changes nothing. Called by `VirtualLoop` when it gives up.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any

MAX_LINES = 40


def describe_waiting(tasks: Iterable[asyncio.Task[Any]]) -> str:
    """Return one line per place where tasks wait, how many there are first; the outermost call first."""
    places = Counter(_place(task) for task in tasks if not task.done())
    if not places:
        return "  no task is left"
    lines = [f"  {count} x {place}" for place, count in places.most_common(MAX_LINES)]
    if len(places) > MAX_LINES:
        lines.append(f"  and {len(places) - MAX_LINES} places more")
    return "\n".join(lines)


def _place(task: asyncio.Task[Any]) -> str:
    calls = [_call(frame) for frame in _await_chain(task.get_coro())]
    name = "" if task.get_name().startswith("Task-") else f"{task.get_name()}: "
    return name + (" > ".join(calls) or "not started")


def _call(frame: FrameType) -> str:
    return f"{frame.f_code.co_qualname} ({PurePath(frame.f_code.co_filename).name}:{frame.f_lineno})"


def _await_chain(awaited: object) -> list[FrameType]:
    """Return the suspended frames from a coroutine down to what it waits for."""
    frames: list[FrameType] = []
    while True:
        match awaited:
            case CoroutineType():
                frame, awaited = awaited.cr_frame, awaited.cr_await
            case GeneratorType():
                frame, awaited = awaited.gi_frame, awaited.gi_yieldfrom
            case AsyncGeneratorType():
                frame, awaited = awaited.ag_frame, awaited.ag_await
            case _:
                return frames
        if frame is not None:
            frames.append(frame)
