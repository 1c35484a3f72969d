"""How a node tells what happens: lines and bars for people, one JSON object a line for programs.

Owns the look of both. The program reports events by name with plain fields; programs get every event as it is, people
get words for those that they care about.
"""

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from swarm_ledger.show import for_terminal
from swarm_node.settings import Sourced, shown

Advance = Callable[
    [str, int, int], None
]  # stage, bytes done, bytes in all; decode steps in the stage that counts those
STAGES = {
    "build": "compiling kernels for",
    "fetch": "downloading",
    "read": "loading",
    "record": "recording decode steps of",
    "digest": "checking",
}
COUNTED = "record"  # the stage that is no matter of bytes


class Reporter(Protocol):
    """Where the program's events go."""

    def event(self, name: str, **fields: Any) -> None: ...

    def progress(self, title: str) -> AbstractContextManager[Advance]: ...


class JsonReporter:
    """One object a line on standard output; `now_s` is a clock."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s

    def event(self, name: str, **fields: Any) -> None:
        sys.stdout.write(json.dumps({"event": name, **fields}) + "\n")
        sys.stdout.flush()

    @contextmanager
    def progress(self, title: str) -> Iterator[Advance]:
        """Tell each further hundredth of a stage, with the stage's mean rate and the time left at that rate."""
        told: tuple[str, int] = ("", -1)
        first_s, first_bytes = 0.0, 0

        def advance(stage: str, done: int, total: int) -> None:
            nonlocal told, first_s, first_bytes
            now_s, part = self._now_s(), 100 * done // max(total, 1)
            if stage != told[0]:
                first_s, first_bytes = now_s, done
            elif part <= told[1]:
                return
            told = (stage, part)
            if stage == COUNTED:
                self.event("progress", title=title, stage=stage, done=done, total=total)
                return
            rate = (done - first_bytes) / (now_s - first_s) if now_s > first_s and done > first_bytes else None
            self.event(
                "progress",
                title=title,
                stage=stage,
                done_bytes=done,
                total_bytes=total,
                bytes_per_s=None if rate is None else round(rate),
                left_s=None if rate is None else round((total - done) / rate, 1),
            )

        yield advance


SLOWER_MODES = {
    "recurrent": "the running states of sessions are computed one after the other",
    "session": "sessions are computed one after the other",
}


class PeopleReporter:
    """Words, a bar for what takes long, and the command to pass on."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)

    def event(self, name: str, **fields: Any) -> None:
        match name:
            case "starting":
                self._console.print(f"[bold]{escape(fields['model'])}[/]  data in {escape(fields['data_dir'])}")
            case "joined":
                self._console.print(f"joined the swarm through {len(fields['bootstrap'])} node(s)")
            case "span":
                start, end = fields["blocks"]
                self._console.print(
                    f"blocks [bold]{start}:{end}[/] of {fields['num_blocks']}, {fields['dtype']}"
                    + ("" if fields["quantization"] == "none" else f" quantized to {fields['quantization']}")
                    + f" on {fields['device']}"
                )
            case "ready":
                self._ready(fields)
            case "warning":
                self._console.print(f"[yellow]{escape(for_terminal(fields['message']))}[/]")
            case "stopping":
                self._console.print(f"stopping: {fields['sessions']} session(s) end")
            case "stopped":
                self._console.print(
                    f"stopped after {fields['sessions']} session(s), {fields['tokens']} token(s) computed"
                )

    def _ready(self, fields: dict[str, Any]) -> None:
        table = Table.grid(padding=(0, 2))
        table.add_row("peer", fields["peer_id"])
        table.add_row("listening", ", ".join(address.rsplit("/p2p/", 1)[0] for address in fields["bootstrap"]))
        table.add_row(
            "speed", f"{fields['decode_tokens_per_s']:.0f} tokens/s, prefill {fields['prefill_tokens_per_s']:.0f}"
        )
        table.add_row("KV", f"{fields['kv_tokens']:,} tokens")
        if fields["mode"] != "paged":
            table.add_row("mode", f"{fields['mode']}: {SLOWER_MODES[fields['mode']]}")
        self._console.print("[bold green]ready[/]")
        self._console.print(table)
        address = fields["bootstrap"][0]
        model = escape(shlex.quote(fields["source"]))
        self._console.print("\na friend joins with")
        self._console.print(f"  swarm-node start --model {model} --bootstrap {address}", soft_wrap=True)
        self._console.print("and anybody generates with")
        self._console.print(
            f'  swarm-client generate --model {escape(fields["model"])} --bootstrap {address} "Once upon a time"',
            soft_wrap=True,
        )
        self._console.print("[dim]Ctrl-C stops the node[/]")

    @contextmanager
    def progress(self, title: str) -> Iterator[Advance]:
        """Show a bar for each stage: bytes, bytes a second, time left, or how many of how many."""
        title_and_bar, left = (TextColumn("{task.description}"), BarColumn()), TimeRemainingColumn()
        in_bytes = (*title_and_bar, DownloadColumn(binary_units=True), TransferSpeedColumn(), left)
        counted = (*title_and_bar, MofNCompleteColumn(), left)
        with Progress(*in_bytes, console=self._console, transient=True) as bar:
            tasks: dict[str, TaskID] = {}

            def advance(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    for earlier in tasks.values():
                        bar.remove_task(earlier)
                    tasks.clear()
                    bar.columns = counted if stage == COUNTED else in_bytes
                    tasks[stage] = bar.add_task(f"{STAGES.get(stage, stage)} {title}", total=total, completed=done)
                bar.update(tasks[stage], completed=done, total=total)

            yield advance


def show_settings(values: dict[str, Any], sourced: Sourced) -> None:
    """Show people what is set and where it comes from, whole: a value longer than the line goes on in the next."""
    console = Console(highlight=False)
    table = Table("setting", "value", "from")
    for column in table.columns[1:]:
        column.overflow = "fold"
    for name, value in values.items():
        table.add_row(name, escape(shown(name, value)), escape(sourced.origins[name]))
    console.print(table)
    for warning in sourced.warnings:
        console.print(f"[yellow]{escape(warning)}[/]")


def report_error(error: Exception, remedy: str, code: str, *, as_json: bool) -> None:
    """Say what went wrong and what to do: to people on standard error, to programs as an event."""
    if as_json:
        JsonReporter().event("error", error=code, message=str(error), remedy=remedy)
    else:
        console = Console(stderr=True, highlight=False)
        console.print(f"[bold red]error[/] {escape(for_terminal(str(error)))}", soft_wrap=True)
        console.print(f"      {escape(for_terminal(remedy))}", soft_wrap=True)
