"""Where the time of a generation went; pure. Fed by `token_stream.py` with the trail of each answer."""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from swarm_client.results import HopTimes, Timings
from swarm_net.messages import Trail


class _Step(NamedTuple):
    trail: Trail  # never empty
    return_wire_us: int
    took_s: float

    @property
    def overhead_s(self) -> float:
        return max(0.0, self.took_s - sum(hop.compute_us for hop in self.trail) / 1e6)


class StepTimes:
    """Collects what hops report, and when tokens came; `now_s` is any monotonic clock's."""

    def __init__(self, started_s: float) -> None:
        self._started_s = started_s
        self._first_s: float | None = None
        self._last_s = started_s
        self._tokens = 0
        self._decodes: list[_Step] = []
        self._prefills: list[_Step] = []

    def start_route(self) -> None:
        """Forget the hops so far: a new route has others."""
        self._decodes.clear()
        self._prefills.clear()

    def add(self, now_s: float, trail: Trail, return_wire_us: int, *, is_prefill: bool, tokens: int = 1) -> float:
        """Count a step's tokens; an empty trail says nothing about hops. Returns the time since the step before."""
        took_s = now_s - self._last_s
        if self._first_s is None:
            self._first_s = now_s
        self._last_s = now_s
        self._tokens += tokens
        if trail:
            (self._prefills if is_prefill else self._decodes).append(_Step(trail, return_wire_us, took_s))
        return took_s

    def summary(self, peers: Sequence[str]) -> Timings:
        """Return the medians over decode steps; over the prefill where there were no others."""
        steps = self._decodes or self._prefills
        first_s = self._last_s if self._first_s is None else self._first_s
        decoding_s = self._last_s - first_s
        return Timings(
            time_to_first_token_s=first_s - self._started_s,
            total_s=self._last_s - self._started_s,
            tokens_per_s=(self._tokens - 1) / decoding_s if decoding_s > 0 else None,
            hops=tuple(
                HopTimes(
                    peer=peer,
                    compute_ms=median(step.trail[place].compute_us for step in steps) / 1000,
                    queue_ms=median(step.trail[place].queue_us for step in steps) / 1000,
                    wire_ms=median(step.trail[place].wire_us for step in steps) / 1000,
                )
                for place, peer in enumerate(peers)
                if steps
            ),
            return_wire_ms=median(step.return_wire_us for step in steps) / 1000 if steps else None,
            overhead_ms=median(step.overhead_s for step in self._decodes) * 1000 if self._decodes else None,
        )
