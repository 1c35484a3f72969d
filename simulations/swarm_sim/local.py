"""`swarm-sim local`: a real swarm on this machine, from its start to the table of where a token's time went.

Owns what people and programs see of it, and the signals that end it; `local_swarm.py` starts and stops the processes,
`swarm_client` generates.
"""

import asyncio
import json
import os
import shlex
import signal
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from swarm_client import AsyncRemoteModel
from swarm_client.money import WalletOptions
from swarm_client.results import Generation
from swarm_ledger.accounts import address_text
from swarm_ledger.currencies import Currency
from swarm_ledger.errors import MissingPackage
from swarm_node.operator import ask_status
from swarm_sim.demo_model import demo_model_path
from swarm_sim.errors import BadOption, NodeDown
from swarm_sim.local_swarm import LocalSwarm, LocalSwarmPlan
from swarm_sim.node_process import NodeProcess
from swarm_sim.splits import split_checkpoint

if TYPE_CHECKING:
    from swarm_sim.local_money import LocalMoney

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
    price: str
    ledger: Literal["embedded", "evm"]
    keep: bool
    as_json: bool


def local_command(options: LocalOptions) -> int:
    """Run the swarm and return the exit code; raises what a person can act on."""
    model = (options.model or demo_model_path()).resolve()
    if not model.is_dir():
        raise BadOption("--model", f"{model} is not a directory")
    splits = split_checkpoint(model, options.nodes)
    threads = max(1, len(os.sched_getaffinity(0)) // options.nodes) if hasattr(os, "sched_getaffinity") else 1
    plan = LocalSwarmPlan(model=model, splits=splits, dtype=options.dtype, threads=threads, price=options.price)
    show = _Show(options, model)
    try:
        with asyncio.Runner() as runner:
            runner.run(_until_signal(options, plan, show))
    except asyncio.CancelledError:
        return 0 if show.is_done else INTERRUPTED
    return 0


async def _until_signal(options: LocalOptions, plan: LocalSwarmPlan, show: "_Show") -> None:
    """Run; a signal cancels whatever is under way, and a second one the patience with which nodes are stopped."""
    program = asyncio.current_task()
    assert program is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, program.cancel)
    async with AsyncExitStack() as stack:
        money = None
        if options.ledger == "evm":
            money = await _money(len(plan.splits), stack, show)
            own = tuple(money.arguments(number, options.price) for number in range(len(plan.splits)))
            plan = replace(plan, price="", own_arguments=own)
        swarm = LocalSwarm(plan)
        with show.starting(swarm):
            await stack.enter_async_context(swarm)
        wallet = money.wallet if money is not None else WalletOptions(folder=swarm.directory / "wallet")
        await _generate(options, swarm, wallet, show)
        if options.keep:
            show.kept(swarm)
            await _first_to_end(swarm)


async def _money(nodes: int, stack: AsyncExitStack, show: "_Show") -> "LocalMoney":
    """Start a chain for as long as the stack lasts."""
    try:
        from swarm_sim.local_money import local_money
    except ImportError as error:
        raise MissingPackage(str(error.name), "chain") from error
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="swarm-money-"))
    money = await stack.enter_async_context(local_money(Path(folder), nodes))
    show.chain(money)
    return money


async def _generate(options: LocalOptions, swarm: LocalSwarm, wallet: WalletOptions, show: "_Show") -> None:
    async with (
        AsyncRemoteModel.connect(str(swarm.plan.model), swarm.bootstrap, wallet=wallet) as model,
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
        show.generated(swarm, tokens.generation, await _earned(swarm) if tokens.generation.receipt.hops else [])


async def _earned(swarm: LocalSwarm) -> list[dict[str, Any]]:
    """Have all nodes redeem what they were paid, and return what they say of it."""
    return list(await asyncio.gather(*(ask_status(node, redeem=True) for node in swarm.running())))


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

    def chain(self, money: "LocalMoney") -> None:
        """Say where nodes are paid."""
        contract = address_text(money.contract)
        self._console.print(f"paid on [bold]{money.kind}[/] at {money.url}, contract {contract}", soft_wrap=True)

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

    def generated(self, swarm: LocalSwarm, generation: Generation, earned: list[dict[str, Any]]) -> None:
        self.is_done = True
        if self._options.as_json:
            print(json.dumps(_as_json(swarm, generation, earned)), flush=True)
            return
        timings = generation.timings
        self._console.print("\n")
        self._console.print(_hops_table(swarm.nodes, generation))
        rate = f", [bold]{timings.tokens_per_s:.1f} tokens/s[/]" if timings.tokens_per_s else ""
        self._console.print(
            f"{generation.usage.completion_tokens} tokens: the first after "
            f"[bold]{1000 * timings.time_to_first_token_s:.0f} ms[/]{rate}"
        )
        if earned:
            self._console.print()
            self._console.print(_money_table(swarm.nodes, generation, earned))
            self._console.print(_difference(generation, earned))

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


def _money_table(nodes: list[NodeProcess], generation: Generation, earned: list[dict[str, Any]]) -> Table:
    """What the client paid to each node, and what the node says it has earned, to the smallest unit."""
    numbers = {node.peer: str(node.number) for node in nodes}
    by_peer = {row["peer_id"]: row["price"] for row in earned if "price" in row}
    first = generation.receipt.hops[0]
    heads = ("node", "rated ms", f"client paid, {first.currency}", "node earned", "redeemed", "unclaimed")
    table = Table(*heads, box=None, padding=(0, 2))
    for column in table.columns[1:]:
        column.justify = "right"
    totals, currency = [0, 0, 0, 0], Currency(first.currency, first.decimals)
    for hop in generation.receipt.hops:
        price = by_peer[hop.peer]
        amounts = [hop.paid, price["earned"], price["redeemed"], price["unclaimed"]]
        totals = [total + amount for total, amount in zip(totals, amounts, strict=True)]
        cells = [currency.number(amount, 6) for amount in amounts]
        table.add_row(numbers.get(hop.peer, "?"), f"{hop.rated_ms:.1f}", *cells)
    table.add_row("all", "", *(f"[bold]{currency.number(total, 6)}[/]" for total in totals))
    return table


def _difference(generation: Generation, earned: list[dict[str, Any]]) -> str:
    """Say whether what the client paid is what the nodes have earned."""
    first = generation.receipt.hops[0]
    currency = Currency(first.currency, first.decimals)
    paid = generation.receipt.paid[first.currency]
    got = sum(row["price"]["earned"] for row in earned if "price" in row)
    if paid == got:
        return f"the client paid [bold]{currency.format(paid)}[/]: what the nodes have earned, to the smallest unit"
    return f"[bold red]the client paid {currency.format(paid)}, the nodes have earned {currency.format(got)}[/]"


def _as_json(swarm: LocalSwarm, generation: Generation, earned: list[dict[str, Any]]) -> dict[str, Any]:
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
    money = {"earned": {row["peer_id"]: row["price"] for row in earned if "price" in row}} if earned else {}
    return {"nodes": nodes, "generation": msgspec.to_builtins(generation), **money}
