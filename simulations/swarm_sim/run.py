"""`swarm-sim run`: a scenario on the terminal.

Owns how it looks: a progress bar where it takes long, the table, JSON. `simulation.py` does the work.
"""

import json
import logging
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from swarm_sim.errors import BadOption
from swarm_sim.report import report_view
from swarm_sim.scenario import Scenario
from swarm_sim.simulation import simulate
from swarm_sim.trace import Trace

PROGRESS_AFTER_S = 2.0


def _opened(trace_file: Path) -> TextIO:
    try:
        return trace_file.open("w")
    except OSError as error:
        raise BadOption("--trace", f"{trace_file} cannot be written: {error.strerror}") from error


def run_command(scenario: Scenario, *, trace_file: Path | None, as_json: bool) -> bool:
    """Simulate and print; returns False if the swarm did what it must not do, or nothing for anybody."""
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s %(message)s")
    console = Console(highlight=False)
    with ExitStack() as stack:
        log = stack.enter_context(_opened(trace_file)) if trace_file is not None else None
        bar = _LateBar(Console(stderr=True), stack)
        report = simulate(scenario, trace=Trace(log), progress=bar.advance)
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        console.print(
            f"[bold]{scenario.nodes} nodes[/] in {scenario.regions} regions, {scenario.blocks} blocks, "
            f"[bold]{scenario.sessions} sessions[/], {scenario.crashes_per_node_hour:g} crashes a node and hour, "
            f"seed {scenario.seed}\n",
            soft_wrap=True,
        )
        console.print(report_view(report))
    return report.is_right and (report.finished > 0 or not report.sessions)


class _LateBar:
    """A progress bar that shows itself on a terminal once there has been some waiting."""

    def __init__(self, console: Console, stack: ExitStack) -> None:
        self._console = console
        self._stack = stack
        self._shown_from_s = monotonic() + PROGRESS_AFTER_S
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def advance(self, done: int, total: int) -> None:
        if not self._console.is_terminal or monotonic() < self._shown_from_s:
            return
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = self._stack.enter_context(Progress(*columns, console=self._console, transient=True))
            self._task = self._bar.add_task("sessions", total=total)
        self._bar.update(self._task, completed=done)
