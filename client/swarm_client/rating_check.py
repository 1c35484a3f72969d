"""Whether hops are paid for more time than there was: their ratings against the clock of whoever waits; pure.

A node measures its own rating and is paid by it, whatever a step really takes; what it reports of that cannot be
checked either. But no hop has computed for longer than its client has waited. One that is paid for much more asks for
another machine's time than its own. Called by `payment.py`; what follows from it is decided in `token_stream.py`.
"""

from collections.abc import Mapping
from typing import Final

TOLERANCE: Final = 2.0  # times the time there was: ratings are measured once, on a machine that may have been busy
LEAST_S: Final = 1.0  # of waiting, before anything is said


class RatingCheck:
    """One session's time, and what of it each peer is paid for."""

    def __init__(self) -> None:
        self._began_s: float | None = None
        self._answered_s = 0.0
        self._rated_s: Mapping[str, float] = {}

    def sent(self, now_s: float) -> None:
        """A step leaves."""
        if self._began_s is None:
            self._began_s = self._answered_s = now_s

    def answered(self, now_s: float, rated_s: Mapping[str, float]) -> None:
        """A step was answered; `rated_s` is what each peer computed until then, by its rating."""
        self._answered_s, self._rated_s = now_s, rated_s

    @property
    def overrated(self) -> tuple[str, ...]:
        """The peers whose rating cannot be true."""
        if self._began_s is None or (waited_s := self._answered_s - self._began_s) < LEAST_S:
            return ()
        return tuple(peer for peer, rated_s in self._rated_s.items() if rated_s > TOLERANCE * waited_s)
