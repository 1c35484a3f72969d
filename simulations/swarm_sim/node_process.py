"""One node of a local swarm: a child process, what it tells on standard output, and its end.

Owns the process and its group; knows the events of `swarm-node start --json`, not what a node does. Each node is a
group of its own, so that a Ctrl-C in the terminal reaches the one who started them and nobody else, and so that what a
node started itself (the DHT daemon) ends with it.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from swarm_net.tasks import TaskScope
from swarm_sim.errors import NodeDown

State = Literal["waiting", "starting", "ready", "failed", "stopped"]

LINES_KEPT = 20
MAX_LINE_BYTES = 1 << 20
LAST_LINES_S = 0.5


class NodeProcess:
    """Starts with `start`, is ready after `ready`, ends with `stop` or by itself."""

    def __init__(self, number: int, span: tuple[int, int]) -> None:
        self.number = number
        self.span = span
        self.state: State = "waiting"
        self.doing = ""  # what it last told of its start, for people
        self.facts: dict[str, Any] = {}  # the fields of its ready event
        self.started_s = 0.0
        self.ready_after_s: float | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._started = asyncio.Event()  # its start: it is ready, or gone
        self._tasks = TaskScope()
        self._stopping = False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def bootstrap(self) -> list[str]:
        """The addresses by which it can be joined; empty before it is ready."""
        return list(self.facts.get("bootstrap", []))

    @property
    def peer(self) -> str:
        return str(self.facts.get("peer_id", ""))

    @property
    def last_lines(self) -> tuple[str, ...]:
        """What it last wrote to standard error, and its errors."""
        return tuple(self._lines)

    async def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the process on a leash; returns as soon as it runs."""
        self.state, self.started_s = "starting", time.monotonic()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "swarm_sim.leash", str(os.getpid()), *command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,
            limit=MAX_LINE_BYTES,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        readers = (
            self._tasks.start(self._read_events(self._process.stdout), name=f"events of node {self.number}"),
            self._tasks.start(self._read_errors(self._process.stderr), name=f"errors of node {self.number}"),
        )
        self._tasks.start(self._watch(self._process, readers), name=f"end of node {self.number}")

    async def ready(self, timeout_s: float) -> None:
        """Wait until it serves; raises NodeDown if it ends before that or takes too long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._started.wait()
        except TimeoutError:
            raise self._down(f"was not ready within {timeout_s:g} s") from None
        if self.state != "ready":
            assert self._process is not None
            raise self._down(f"ended with code {self._process.returncode} before it was ready")

    async def exited(self) -> int:
        """Wait for its end and return its code (negative: the signal that ended it)."""
        assert self._process is not None
        return await self._process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the node alone, or with SIGKILL to all that it started as well."""
        with contextlib.suppress(ProcessLookupError):
            if number is signal.SIGKILL:
                os.killpg(self.pid, number)
            elif self.is_running:
                os.kill(self.pid, number)

    async def stop(self, patience_s: float) -> None:
        """End it: SIGTERM, and what is left after `patience_s`, or when this is cancelled, with SIGKILL."""
        self._stopping = True
        if self._process is None:
            return
        self.send_signal(signal.SIGTERM)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self._process.wait()
        finally:
            self.send_signal(signal.SIGKILL)
        await self._process.wait()
        await self._tasks.close()
        if self.state != "failed":
            self.state = "stopped"

    def _down(self, reason: str) -> NodeDown:
        self.state = "failed"
        return NodeDown(node=self.number, span=self.span, reason=reason, output=self.last_lines)

    async def _watch(self, process: asyncio.subprocess.Process, readers: tuple[asyncio.Task[None], ...]) -> None:
        """Notice an end that nobody asked for, with its last lines; a child of the node may hold the pipes open."""
        await process.wait()
        await asyncio.wait(readers, timeout=LAST_LINES_S)
        if not self._stopping:
            self.state = "failed"
            self._started.set()

    async def _read_errors(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self._lines.append(line.decode(errors="replace").rstrip())

    async def _read_events(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            try:
                event = json.loads(line)
                kind = event["event"]
            except (ValueError, TypeError, KeyError):
                self._lines.append(line.decode(errors="replace").rstrip())
                continue
            self._on_event(str(kind), event)

    def _on_event(self, kind: str, event: dict[str, Any]) -> None:
        match kind:
            case "ready":
                self.facts, self.doing = event, ""
                self.ready_after_s = time.monotonic() - self.started_s
                self.state = "ready"
                self._started.set()
            case "progress":
                done, total = (event.get(f"{name}_bytes", event.get(name, 0)) for name in ("done", "total"))
                share = 100 * done // max(total, 1)
                self.doing = f"{event.get('title', '')} {share} %"
            case "error":
                self._lines.append(f"{event.get('message', '')}\n    {event.get('remedy', '')}")
            case "warning":
                self._lines.append(str(event.get("message", "")))
            case _:
                self.doing = kind
