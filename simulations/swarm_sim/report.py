"""What a simulation showed: numbers from the logs of its sessions, and how they look to people.

Pure: `simulation.py` fills the logs, `run.py` prints the report. Everything in a Report but `real_s` and what follows
from it is the same in every run of one seed.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text


@dataclass(slots=True)
class SessionLog:
    """What one session's client saw, in virtual seconds."""

    started_s: float
    prompt_tokens: int
    token_times_s: list[float] = field(default_factory=list)
    retries: int = 0
    guesses_right: int = 0
    failure: str | None = None  # an error's code
    first_wrong_token: int | None = None  # where the answer left the model's own

    @property
    def has_finished(self) -> bool:
        return self.failure is None and self.first_wrong_token is None


@dataclass(frozen=True, slots=True)
class Report:
    """The numbers of one run; times in milliseconds, None where there was nothing to measure."""

    seed: int
    nodes: int
    sessions: int
    finished: int
    failed: dict[str, int]  # by the error's code
    wrong: int  # sessions with a token that is not the model's
    retries: int
    crashes: int
    left_over: int  # sessions that nodes still kept when all had ended
    tokens: int
    guesses_right: int  # tokens that clients guessed, of sessions that finished
    virtual_s: float
    tokens_per_s: float
    first_token_ms: dict[str, float] | None  # p50, p95
    token_ms: dict[str, float] | None  # p50, p95, p99, between two tokens of one session
    frames: int
    megabytes: float
    events: int
    unhandled: list[str]  # exceptions that nobody caught: bugs
    trace_hash: str
    real_s: float

    @property
    def is_right(self) -> bool:
        """Every token is the model's, every node is empty, no exception was lost; sessions may have failed by type."""
        return not (self.wrong or self.left_over or self.unhandled)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "virtual_s_per_s": self.virtual_s / self.real_s}


def percentiles(values: Sequence[float], *shares: int) -> dict[str, float] | None:
    """Return {"p50": ...} by nearest rank; None for no values."""
    ordered = sorted(values)
    if not ordered:
        return None
    return {f"p{share}": ordered[max(0, -(-share * len(ordered) // 100) - 1)] for share in shares}


def first_token_ms(logs: Sequence[SessionLog]) -> dict[str, float] | None:
    """Return percentiles of the time from a session's start to its first token."""
    return percentiles([1000 * (log.token_times_s[0] - log.started_s) for log in logs if log.token_times_s], 50, 95)


def token_ms(logs: Sequence[SessionLog]) -> dict[str, float] | None:
    """Return percentiles of the time between two tokens of one session."""
    gaps = [1000 * (later - earlier) for log in logs for earlier, later in pairwise(log.token_times_s)]
    return percentiles(gaps, 50, 95, 99)


def failures(logs: Sequence[SessionLog]) -> dict[str, int]:
    """Return how many sessions failed, by the error's code, the most frequent first."""
    return dict(Counter(log.failure for log in logs if log.failure is not None).most_common())


def report_view(report: Report) -> Group:
    """Return the report as people see it."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    failed = ", ".join(f"{count} {reason}" for reason, count in report.failed.items()) or "none"
    table.add_row("sessions", f"{report.finished} of {report.sessions} finished, {report.retries} changes of route")
    table.add_row("failed", failed)
    table.add_row("tokens", f"{report.tokens:,}{'' if report.wrong else ', each as the model computes it'}")
    if report.guesses_right:
        table.add_row("guessed", f"{report.guesses_right:,} of them")
    table.add_row("throughput", f"{report.tokens_per_s:,.1f} tokens/s")
    table.add_row("time to first token", _times(report.first_token_ms))
    table.add_row("between tokens", _times(report.token_ms))
    table.add_row("network", f"{report.frames:,} frames, {report.megabytes:,.1f} MB, {report.crashes} crashes")
    speed = report.virtual_s / report.real_s
    table.add_row(
        "simulated", f"{report.virtual_s:,.1f} s in {report.real_s:.1f} s ({speed:,.1f}x), {report.events:,} events"
    )
    table.add_row("trace hash", f"[bold]{report.trace_hash}[/]")
    faults = []
    if report.wrong:
        faults.append(Text(f"{report.wrong} sessions got tokens that the model does not compute", style="bold red"))
    if report.left_over:
        faults.append(Text(f"{report.left_over} sessions were left on nodes", style="bold red"))
    faults += [Text(f"unhandled: {line}", style="bold red") for line in report.unhandled]
    return Group(table, *faults)


def _times(values: dict[str, float] | None) -> str:
    return ", ".join(f"{name} {value:,.1f} ms" for name, value in values.items()) if values else "none"
