"""How many decode steps share a batch, and whether it waits for some that are due: pure estimates from their rhythms.

A batch reads the span's weights once, however many steps it has, so a step that comes just after a batch has begun
costs another whole reading. Left alone, sessions fall into more and smaller batches than there are hops to work on
them, and stay so. Each session has a rhythm: it is away, at its client and at other hops, for about as long as last
time. If sessions are away for as long as n batches take, n + 1 batches keep this hop busy, and more only make each
other wait; so their share is the (n + 1)th part of the sessions, for at most as many batches as a route has hops.
Where fewer are ready, the batch waits for others that are due soon, if that pays: with k steps ready and m more due,
waiting costs the k that time, and spares each of the m the fixed cost of a batch less that time, not once but for as
many rounds as those who ran together come back together. Where two shares are ready, one of them runs.
Called by `scheduler.py` with the present as an argument.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

WEIGHT: Final = 0.3  # of the newest rhythm
LATE: Final = 0.5  # of a batch's fixed cost, after which a session is not waited for any more
GONE: Final = 3.0  # times what it is usually away, after which a session does not count any more
LASTS: Final = 8.0  # rounds at most that a batch is supposed to stay together
COMES_BACK: Final = 0.8  # the share of a batch that stays together, until it is known
LEARNS: Final = 0.1  # of it with each batch
FORGETS: Final = 0.05  # of what batches cost, with each new one


@dataclass(slots=True)
class _Rhythm:
    group: object  # only sessions of one group share batches
    batch: int  # in which it ran last
    left_s: float
    away_s: float | None = None

    @property
    def due_s(self) -> float:
        return self.left_s + (self.away_s or 0.0)


class Gathering:
    """The rhythms of the sessions that decode here, and what their batches cost."""

    def __init__(self) -> None:
        self._rhythms: dict[bytes, _Rhythm] = {}
        self._cost = BatchCost()
        self._batch = 0
        self._comes_back = COMES_BACK

    def took(self, steps: Sequence[tuple[bytes, float]]) -> None:
        """A batch begins: its sessions, and when their steps came."""
        here: dict[int, int] = {}
        for session, at_s in steps:
            if (rhythm := self._rhythms.get(session)) is not None:
                away_s = max(0.0, at_s - rhythm.left_s)
                before_s = away_s if rhythm.away_s is None else rhythm.away_s
                rhythm.away_s = before_s + WEIGHT * (away_s - before_s)
                here[rhythm.batch] = here.get(rhythm.batch, 0) + 1
        if len(self._rhythms) < 2:
            return  # nobody who could have stayed together
        ran_together = Counter(rhythm.batch for rhythm in self._rhythms.values())
        for batch, back in here.items():
            if (mates := ran_together[batch] - 1) > 0:
                self._comes_back += LEARNS * ((back - 1) / mates - self._comes_back)

    def ran(self, sessions: Sequence[bytes], group: object, now_s: float, seconds: float | None) -> None:
        """A batch has ended and its outputs leave; `seconds` is what it took, None if there was more in it."""
        self._batch += 1
        for session in sessions:
            rhythm = self._rhythms.setdefault(session, _Rhythm(group, self._batch, now_s))
            rhythm.group, rhythm.batch, rhythm.left_s = group, self._batch, now_s
        if seconds is not None:
            self._cost.add(len(sessions), seconds)

    def drop(self, session: bytes) -> None:
        """Forget a session."""
        self._rhythms.pop(session, None)

    def plan(self, now_s: float, ready: Collection[bytes], group: object, *, hops: int) -> tuple[int, float | None]:
        """Return how many of the ready steps to run, and until when to wait for more of their group, None to run.

        `hops` is how many work on these sessions in turn.
        """
        here, away_s, others = set(ready), [], []
        if len(here) == 1 and self._rhythms.keys() <= here:
            return 1, None  # alone: nobody to wait for
        fixed_s, each_s = self._cost.fixed_s, self._cost.each_s
        for session, rhythm in self._rhythms.items():
            if rhythm.away_s is None or rhythm.group != group:
                continue
            if session not in here:
                if now_s >= rhythm.left_s + GONE * (rhythm.away_s + fixed_s):
                    continue
                others.append(rhythm.due_s)
            away_s.append(rhythm.away_s)
        if not away_s or fixed_s <= 0.0:
            return len(here), None
        sessions, usual_away_s = len(here) + len(others), sum(away_s) / len(away_s)
        batches = 1 + int(usual_away_s / (fixed_s + each_s * sessions / hops))
        if hops > 1:
            batches = min(batches, hops)  # those that are away may wait for each other
        share = -(-sessions // batches)
        spares_s = fixed_s - len(here) * each_s
        if sessions * (fixed_s + each_s) > usual_away_s + fixed_s + each_s:  # else they would not meet again
            spares_s *= min(LASTS, 1.0 / max(1e-9, 1.0 - self._comes_back))
        late_s = LATE * fixed_s
        due_s = sorted(at_s for at_s in others if now_s < at_s + late_s)
        for more, at_s in enumerate(due_s[: max(0, share - len(here))], 1):
            wait_s = max(0.0, at_s - now_s)
            if wait_s < fixed_s and (len(here) + more) * wait_s < more * spares_s:
                return share, at_s + late_s
        return share if len(here) >= 2 * share else len(here), None


class BatchCost:
    """What a batch takes: a fixed time and one for each step, by least squares over the last batches."""

    def __init__(self) -> None:
        self._weight = self._steps = self._seconds = self._squares = self._products = 0.0

    def add(self, steps: int, seconds: float) -> None:
        """Learn what a batch took; older ones count ever less."""
        keeps = 1.0 - FORGETS
        self._weight = self._weight * keeps + 1.0
        self._steps = self._steps * keeps + steps
        self._seconds = self._seconds * keeps + seconds
        self._squares = self._squares * keeps + steps * steps
        self._products = self._products * keeps + steps * seconds

    @property
    def each_s(self) -> float:
        """Seconds that another step adds; 0 while all batches were of one size."""
        spread = self._squares * self._weight - self._steps**2
        if spread <= 1e-6 * self._squares * self._weight:
            return 0.0
        slope = (self._products * self._weight - self._steps * self._seconds) / spread
        return max(0.0, min(slope, self._seconds / self._steps))

    @property
    def fixed_s(self) -> float:
        """Seconds that a batch takes besides its steps; 0 before the first one."""
        return (self._seconds - self.each_s * self._steps) / self._weight if self._weight else 0.0
