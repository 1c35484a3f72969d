"""How much prefill a batch may hold while other sessions decode: pure estimates from what batches took.

Owns the rule that keeps tokens flowing beside long prompts. Each decode step earns a credit of time: what it may be
slowed down by on average. Prefill spends it, be it in a batch with decode steps or by making one wait; what it really
took is charged, so the average holds whatever was estimated. A piece of prefill waits until the credit pays for one
that is worth it: with a long context even a small one costs much, since it reads all keys and values. Between two
decode steps (another hop has the session) prefill gets what probably ends before the next one arrives. When nobody
decodes it gets the whole budget. Called by `scheduler.py` with the present as an argument.

Stall-free batching with a bounded token budget: Agrawal et al. 2024 (Sarathi-Serve), section 4.2.
"""

from typing import Final

STRETCH: Final = 1.75  # of a decode step beside a prefill, on average; with what comes on top, it stays below twice
MOST_CREDIT: Final = 2.5  # decode steps: how long one may be held up at a time
WORTH_TOKENS: Final = 16  # of prefill in one piece: fewer are not worth what they cost besides
PATIENCE: Final = 1.5  # times what a session is usually away: a processor may idle for so long for its next step
MISSED: Final = 3.0  # times what a session is usually away, after which it is not waited for any more
TICK_S: Final = 1e-4
WEIGHT: Final = 0.3  # of the newest measurement


class Pace:
    """What batches take on this machine, when the next decode step is due, and what it may still be slowed down by."""

    def __init__(self) -> None:
        self._decode_s: float | None = None  # a batch of decode steps alone
        self._prefill_token_s: float | None = None  # each further token of prefill in a batch
        self._away_s: float | None = None  # from a decode step's output until the next step comes
        self._left_s: float | None = None  # when the last outputs of decode steps left
        self._credit_s = 0.0
        self._held_until_s = 0.0  # when the last batch of prefill alone has ended
        self._held_s = 0.0  # and how long it took

    def took_decode(self, arrived_s: float) -> None:
        """A batch with decode steps begins, the first of which came then."""
        self._credit_s -= min(max(0.0, self._held_until_s - arrived_s), self._held_s)
        self._held_until_s = 0.0
        if self._left_s is not None:
            away_s = max(0.0, arrived_s - self._left_s)
            if self._away_s is None or away_s < MISSED * (self._away_s + (self._decode_s or 0.0)):
                self._away_s = _averaged(self._away_s, away_s)

    def ran(self, now_s: float, *, decode_tokens: int, prefill_tokens: int, seconds: float) -> None:
        """A batch has run."""
        decode_s = self._decode_s or 0.0
        if decode_tokens:
            self._left_s = now_s
            self._credit_s = min(self._credit_s + (STRETCH - 1.0) * decode_s, MOST_CREDIT * decode_s)
        if decode_tokens and not prefill_tokens:
            self._decode_s = _averaged(self._decode_s, seconds)
        elif prefill_tokens:
            # A batch reads the weights once, however many tokens it has: what decoding takes is not prefill's.
            added_s = max(seconds - decode_s, 0.1 * seconds)
            self._prefill_token_s = _averaged(self._prefill_token_s, added_s / prefill_tokens)
            if decode_tokens:
                self._credit_s -= added_s
            else:
                self._held_until_s, self._held_s = now_s, seconds

    def look_again_s(self, now_s: float) -> float:
        """When prefill may run alone after all, if no decode step comes: it is late then, or will not come."""
        left_s, away_s = self._left_s or 0.0, self._away_s or 0.0
        late_s = left_s + PATIENCE * away_s
        return late_s if now_s < late_s else left_s + MISSED * (away_s + (self._decode_s or 0.0)) + TICK_S

    def prefill_budget(self, now_s: float, *, decodes: bool, most: int) -> int:
        """Return how many tokens of prefill to add to a batch that decodes, or to run alone; at most `most`.

        0 alone: nothing before `look_again_s`.
        """
        if self._decode_s is None or self._left_s is None:
            return most
        if decodes:
            is_full = self._credit_s >= MOST_CREDIT * self._decode_s
            return self._worth(self._credit_s, WORTH_TOKENS if is_full else 0, most)
        away_s, idle_s = self._away_s or 0.0, now_s - self._left_s
        if idle_s > MISSED * (away_s + self._decode_s):
            return most
        if self._credit_s < 0.0:
            return 0  # a step has waited for prefill
        is_late = idle_s >= PATIENCE * away_s
        return self._worth(away_s - idle_s - self._decode_s, WORTH_TOKENS if is_late else 0, most)

    def _worth(self, spare_s: float, least: int, most: int) -> int:
        """Return how many tokens some time pays for, if they are worth a piece, or the least."""
        if self._prefill_token_s is None:
            return min(most, WORTH_TOKENS if spare_s > 0.0 else least)
        tokens = int(max(spare_s, 0.0) / self._prefill_token_s)
        return min(most, tokens if tokens >= WORTH_TOKENS else least)


def _averaged(before: float | None, newest: float) -> float:
    return newest if before is None else before + WEIGHT * (newest - before)
