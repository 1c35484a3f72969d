"""A real swarm on this machine: node processes, the first of which the others join.

Owns their start in order, their data directories and their end, however this process ends. Used by `local.py`, by
end-to-end tests and by benchmarks.
"""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from swarm_node.data_dir import RunningNode, running
from swarm_sim.node_process import NodeProcess

NODE_PROGRAM = (sys.executable, "-m", "swarm_node")


@dataclass(frozen=True, slots=True)
class LocalSwarmPlan:
    """What to start: one node a span."""

    model: Path
    splits: tuple[tuple[int, int], ...]
    dtype: str = "auto"
    threads: int = 1  # of each node
    kv_memory: str = "256MiB"  # of each node
    price: str = "0"  # of an hour of each node; empty: what nodes ask by default
    arguments: tuple[str, ...] = ()  # more, for every node
    own_arguments: tuple[tuple[str, ...], ...] = ()  # more, for each node in turn
    environment: Mapping[str, str] = field(default_factory=dict)  # on top of our own
    ready_timeout_s: float = 120.0
    stop_timeout_s: float = 10.0
    program: tuple[str, ...] = NODE_PROGRAM


class LocalSwarm:
    """An async context manager: inside, all nodes are ready; behind it, none is left."""

    def __init__(self, plan: LocalSwarmPlan) -> None:
        self.plan = plan
        self.nodes = [NodeProcess(number, span) for number, span in enumerate(plan.splits)]
        self._directory: Path | None = None

    @property
    def bootstrap(self) -> list[str]:
        """The addresses of all nodes that are ready."""
        return [address for node in self.nodes if node.state == "ready" for address in node.bootstrap[:1]]

    @property
    def pids(self) -> list[int]:
        return [node.pid for node in self.nodes]

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the first node, then the others together; raises NodeDown for the first that does not get ready."""
        self._directory = Path(tempfile.mkdtemp(prefix="swarm-local-"))
        first, *others = self.nodes
        await self._start(first, [])
        try:
            async with asyncio.TaskGroup() as group:
                for node in others:
                    group.create_task(self._start(node, first.bootstrap))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def stop(self) -> None:
        """End all nodes, together, and remove what they stored."""
        try:
            await asyncio.gather(*(node.stop(self.plan.stop_timeout_s) for node in reversed(self.nodes)))
        finally:
            for node in self.nodes:
                if node.is_running:
                    node.send_signal(signal.SIGKILL)
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def directory(self) -> Path:
        """A folder that is removed when the swarm ends; nodes keep theirs in it."""
        assert self._directory is not None, "before it is started"
        return self._directory

    def running(self) -> list[RunningNode]:
        """Return the nodes as their operator finds them."""
        return [
            node for each in self.nodes for node in running(self.directory, str(self.directory / f"node-{each.number}"))
        ]

    def kill(self, number: int, how: signal.Signals = signal.SIGKILL) -> None:
        """End one node as a crash would (SIGKILL), or send it another signal."""
        self.nodes[number].send_signal(how)

    async def _start(self, node: NodeProcess, bootstrap: list[str]) -> None:
        threads = str(self.plan.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1", **self.plan.environment}
        await node.start(self._command(node, bootstrap), environment)
        await node.ready(self.plan.ready_timeout_s)

    def _command(self, node: NodeProcess, bootstrap: list[str]) -> list[str]:
        plan, (start, end) = self.plan, node.span
        command = [*plan.program, "start", "--json", "--model", str(plan.model), "--blocks", f"{start}:{end}"]
        command += ["--listen", "127.0.0.1:0", "--data-dir", f"{self._directory}/node-{node.number}"]
        command += ["--dtype", plan.dtype, "--threads", str(plan.threads), "--kv-memory", plan.kv_memory]
        command += ["--price", plan.price] if plan.price else []
        for address in bootstrap:
            command += ["--bootstrap", address]
        own = plan.own_arguments[node.number] if plan.own_arguments else ()
        return [*command, *plan.arguments, *own]
