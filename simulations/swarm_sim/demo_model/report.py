"""How training is going, for people (a progress bar) or for programs (one JSON object a line).

Called by `train.py` and, a step at a time, by `fit.py`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from swarm_sim.demo_model.card import Facts


class Report(Protocol):
    """What a training run tells as it goes."""

    def started(self, model: str, parameters: int, steps: int) -> None: ...

    def stepped(self, step: int, loss: float) -> None: ...

    def evaluated(self, step: int, held_out_loss: float) -> None: ...

    def saved(self, directory: Path, facts: Facts, sample: str) -> None: ...


@contextmanager
def reporting(as_json: bool) -> Iterator[Report]:
    """Report on standard output for as long as the context lasts."""
    if as_json:
        yield JsonReport()
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[losses]}"))
    with Progress(TextColumn("{task.description}"), *columns) as bars:
        yield BarReport(bars)


class BarReport:
    """A bar for each model with its training and held-out loss, and a sample once it is saved."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._bar = TaskID(0)
        self._held_out = "not yet"

    def started(self, model: str, parameters: int, steps: int) -> None:
        self._bar = self._bars.add_task(f"{model}, {parameters / 1e6:.1f} M", total=steps, losses="")
        self._held_out = "not yet"

    def stepped(self, step: int, loss: float) -> None:
        self._bars.update(self._bar, completed=step, losses=f"loss {loss:.3f}, held out {self._held_out}")

    def evaluated(self, step: int, held_out_loss: float) -> None:
        self._held_out = f"{held_out_loss:.3f} at step {step}"

    def saved(self, directory: Path, facts: Facts, sample: str) -> None:
        self._bars.console.print(f"{directory}: held-out loss {facts.held_out_loss:.3f} at step {facts.best_step}")
        self._bars.console.print(sample, style="italic", markup=False)


class JsonReport:
    """The same events as JSON lines."""

    def started(self, model: str, parameters: int, steps: int) -> None:
        self._print(event="started", model=model, parameters=parameters, steps=steps)

    def stepped(self, step: int, loss: float) -> None:
        self._print(event="step", step=step, loss=round(loss, 4))

    def evaluated(self, step: int, held_out_loss: float) -> None:
        self._print(event="evaluated", step=step, held_out_loss=round(held_out_loss, 4))

    def saved(self, directory: Path, facts: Facts, sample: str) -> None:
        self._print(event="saved", directory=str(directory), sample=sample, facts=asdict(facts))

    def _print(self, **event: str | float | dict[str, Any]) -> None:
        print(json.dumps(event), flush=True)
