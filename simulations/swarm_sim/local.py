"""`swarm-sim local`: a real swarm on this machine, from its start to the table of where a token's time went.

Owns what people and programs see of it, and the signals that end it; `local_swarm.py` starts and stops the processes,
`swarm_client` generates.
"""

import asyncio
import json
import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from swarm_client import AsyncRemoteModel
from swarm_client.results import Generation
from swarm_sim.demo_model import demo_model_path
from swarm_sim.errors import BadOption, NodeDown
from swarm_sim.local_swarm import LocalSwarm, LocalSwarmPlan
from swarm_sim.node_process import NodeProcess
from swarm_sim.splits import split_checkpoint

STATE_STYLES = {"waiting": "dim", "starting": "yellow", "ready": "green", "failed": "bold red", "stopped": "dim"}
INTERRUPTED = 130  # what shells make of a program that Ctrl-C ended


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """The command's options."""

    model: Path | None
    nodes: int
    prompt: str
    max_new_tokens: int
    temperature: float
    seed: int
    dtype: str
    keep: bool
    as_json: bool


def local_command(options: LocalOptions) -> int:
    """Run the swarm and return the exit code; raises what a person can act on."""
    model = (options.model or demo_model_path()).resolve()
    if not model.is_dir():
        raise BadOption("--model", f"{model} is not a directory")
    splits = split_checkpoint(model, options.nodes)
    threads = max(1, len(os.sched_getaffinity(0)) // options.nodes) if hasattr(os, "sched_getaffinity") else 1
    plan = LocalSwarmPlan(model=model, splits=splits, dtype=options.dtype, threads=threads)
    show = _Show(options, model)
    try:
        with asyncio.Runner() as runner:
            runner.run(_until_signal(options, LocalSwarm(plan), show))
    except asyncio.CancelledError:
        return 0 if show.is_done else INTERRUPTED
    return 0


async def _until_signal(options: LocalOptions, swarm: LocalSwarm, show: "_Show") -> None:
    """Run; a signal cancels whatever is under way, and a second one the patience with which nodes are stopped."""
    program = asyncio.current_task()
    assert program is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, program.cancel)
    async with AsyncExitStack() as stack:
        with show.starting(swarm):
            await stack.enter_async_context(swarm)
        await _generate(options, swarm, show)
        if options.keep:
            show.kept(swarm)
            await _first_to_end(swarm)


async def _generate(options: LocalOptions, swarm: LocalSwarm, show: "_Show") -> None:
    async with (
        AsyncRemoteModel.connect(str(swarm.plan.model), swarm.bootstrap) as model,
        model.stream(
            options.prompt,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            seed=options.seed,
        ) as tokens,
    ):
        async for token in tokens:
            show.text(token.text)
        assert tokens.generation is not None
        show.generated(swarm, tokens.generation)


async def _first_to_end(swarm: LocalSwarm) -> None:
    """Wait until a node ends by itself; raises NodeDown."""
    ends = [asyncio.ensure_future(node.exited()) for node in swarm.nodes]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for end in ends:
            end.cancel()
    node = next(node for node in swarm.nodes if not node.is_running)
    raise NodeDown(node=node.number, span=node.span, reason="ended", output=node.last_lines)


class _Show:
    """What is seen: tables and text for people, one object for programs."""

    def __init__(self, options: LocalOptions, model: Path) -> None:
        self.is_done = False  # what was asked for has been shown; a signal now is the way to end
        self._options = options
        self._model = model
        self._console = Console(highlight=False, quiet=options.as_json)

    @contextmanager
    def starting(self, swarm: LocalSwarm) -> Iterator[None]:
        """Show the nodes getting ready while they do."""
        self._console.print(f"[bold]{len(swarm.nodes)} nodes[/] serve {self._model}", soft_wrap=True)
        try:
            with Live(console=self._console, get_renderable=lambda: _nodes_table(swarm.nodes), refresh_per_second=4):
                yield
        finally:
            if not self._console.is_terminal:  # where Live ends its last frame without a line break
                self._console.print()
        self._console.print(f"\n[bold]{escape(self._options.prompt)}[/]", end="", soft_wrap=True)

    def text(self, text: str) -> None:
        self._console.print(text, end="", markup=False, soft_wrap=True)

    def generated(self, swarm: LocalSwarm, generation: Generation) -> None:
        self.is_done = True
        if self._options.as_json:
            print(json.dumps(_as_json(swarm, generation)), flush=True)
            return
        timings = generation.timings
        self._console.print("\n")
        self._console.print(_hops_table(swarm.nodes, generation))
        rate = f", [bold]{timings.tokens_per_s:.1f} tokens/s[/]" if timings.tokens_per_s else ""
        self._console.print(
            f"{generation.usage.completion_tokens} tokens: the first after "
            f"[bold]{1000 * timings.time_to_first_token_s:.0f} ms[/]{rate}"
        )

    def kept(self, swarm: LocalSwarm) -> None:
        model, address = shlex.quote(str(self._model)), swarm.bootstrap[0]
        self._console.print("\nthe swarm goes on; use it from another terminal")
        self._console.print(
            f"  swarm-client generate --model {model} --bootstrap {address} {shlex.quote(self._options.prompt)}",
            soft_wrap=True,
            markup=False,
        )
        self._console.print(f"  swarm-node start --model {model} --bootstrap {address}", soft_wrap=True, markup=False)
        self._console.print("[dim]Ctrl-C stops it[/]")


def _nodes_table(nodes: list[NodeProcess]) -> Table:
    table = Table("node", "blocks", "state", "peer", "ready after", box=None, padding=(0, 2))
    for node in nodes:
        start, end = node.span
        after = f"{node.ready_after_s:.1f} s" if node.ready_after_s is not None else node.doing
        state = f"[{STATE_STYLES[node.state]}]{node.state}[/]"
        table.add_row(str(node.number), f"{start}:{end}", state, node.peer[-8:], after)
    return table


def _hops_table(nodes: list[NodeProcess], generation: Generation) -> Table:
    """Where a token's time went, hop by hop: medians over the tokens behind the first."""
    numbers = {node.peer: str(node.number) for node in nodes}
    table = Table("hop", "node", "blocks", "compute ms", "queue ms", "wire ms", box=None, padding=(0, 2))
    for column in table.columns[3:]:
        column.justify = "right"
    for place, (hop, times) in enumerate(zip(generation.route, generation.timings.hops, strict=True)):
        milliseconds = (f"{value:.2f}" for value in (times.compute_ms, times.queue_ms, times.wire_ms))
        table.add_row(str(place), numbers.get(hop.peer, "?"), f"{hop.start}:{hop.end}", *milliseconds)
    if generation.timings.return_wire_ms is not None:
        table.add_row("", "client", "", "", "", f"{generation.timings.return_wire_ms:.2f}")
    return table


def _as_json(swarm: LocalSwarm, generation: Generation) -> dict[str, Any]:
    import msgspec

    nodes = [
        {
            "node": node.number,
            "pid": node.pid,
            "peer_id": node.peer,
            "blocks": list(node.span),
            "ready_after_s": node.ready_after_s,
            "bootstrap": node.bootstrap,
        }
        for node in swarm.nodes
    ]
    return {"nodes": nodes, "generation": msgspec.to_builtins(generation)}
