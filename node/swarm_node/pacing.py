"""How much prefill a batch may hold while other sessions decode: pure estimates from what batches took.

Owns the rule that keeps tokens flowing beside long prompts. A batch that also decodes may take `STRETCH` times what
decoding alone takes; the rest of that time goes to prefill. Between two decode steps (another hop has the session)
prefill gets what probably ends before the next one arrives, and nothing, for that short while, if that is next to
nothing. When nobody decodes it gets the whole budget. Called by `scheduler.py` with the present as an argument.

Stall-free batching with a bounded token budget: Agrawal et al. 2024 (Sarathi-Serve), section 4.2.
"""

from typing import Final

STRETCH: Final = 1.7  # of a token's interval beside a prefill; with what it waits for, it stays below twice
LEAST_TOKENS: Final = 8  # of prefill in a batch: a prompt always moves on
PATIENCE: Final = 1.5  # times what a session is usually away: a processor may idle for so long for its next step
MISSED: Final = 3.0  # times what a session is usually away, after which it is not waited for any more
WEIGHT: Final = 0.3  # of the newest measurement


class Pace:
    """What batches take on this machine, and when the next decode step is due."""

    def __init__(self) -> None:
        self._decode_s: float | None = None  # a batch of decode steps alone
        self._prefill_token_s: float | None = None  # each further token of prefill in a batch
        self._away_s: float | None = None  # from a decode step's output until the next step comes
        self._left_s: float | None = None  # when the last outputs of decode steps left

    def took_decode(self, arrived_s: float) -> None:
        """A batch with decode steps begins, the first of which came then."""
        if self._left_s is not None:
            away_s = max(0.0, arrived_s - self._left_s)
            if self._away_s is None or away_s < MISSED * (self._away_s + (self._decode_s or 0.0)):
                self._away_s = _averaged(self._away_s, away_s)

    def ran(self, now_s: float, *, decode_tokens: int, prefill_tokens: int, seconds: float) -> None:
        """A batch has run."""
        if decode_tokens:
            self._left_s = now_s
        if decode_tokens and not prefill_tokens:
            self._decode_s = _averaged(self._decode_s, seconds)
        elif prefill_tokens >= LEAST_TOKENS:
            # A batch reads the weights once, however many tokens it has: what decoding takes is not prefill's.
            token_s = max(seconds - (self._decode_s or 0.0), 0.1 * seconds) / prefill_tokens
            self._prefill_token_s = _averaged(self._prefill_token_s, token_s)

    @property
    def expected_s(self) -> float:
        """By when the next decode step should have come, with some patience."""
        return (self._left_s or 0.0) + PATIENCE * (self._away_s or 0.0)

    def prefill_budget(self, now_s: float, *, decodes: bool, most: int) -> int:
        """Return how many tokens of prefill to add to a batch that decodes, or to run alone; at most `most`.

        0: nothing alone before `expected_s`.
        """
        if self._decode_s is None or self._left_s is None:
            return most
        if decodes:
            spare_s = (STRETCH - 1.0) * self._decode_s
        else:
            away_s, idle_s = self._away_s or 0.0, now_s - self._left_s
            if idle_s > MISSED * (away_s + self._decode_s):
                return most
            spare_s = away_s - idle_s - self._decode_s
            if spare_s < LEAST_TOKENS * (self._prefill_token_s or 0.0) and now_s < self.expected_s:
                return 0
        if self._prefill_token_s is None:
            return min(most, LEAST_TOKENS)
        return min(most, max(LEAST_TOKENS, int(spare_s / self._prefill_token_s)))


def _averaged(before: float | None, newest: float) -> float:
    return newest if before is None else before + WEIGHT * (newest - before)
