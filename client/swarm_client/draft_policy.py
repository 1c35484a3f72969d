"""How many guesses a step should carry, from what guesses and steps turned out to be worth; pure.

Owns the running estimates: how often a guess is right after a match of some length, and how long a step takes with and
without guesses. A step with k guesses is expected to bring 1 + p1 + p1 p2 + ... tokens; what is sent is the number of
guesses with the most tokens a second, and none where that would be no more than without. Times come with every result;
hits also from guesses that were made and not sent. Made by a `Drafter`, fed by `drafting.py`.

Estimates err, so losses are on a budget besides: what guesses may cost in all is a share of the steps without them.
"""

from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Final, Protocol

MOST_TOKENS: Final = 15  # with the known token 16 rows: beyond, hardly any text is so sure of itself
STRENGTHS: Final = 9
PRIOR_RATES: Final = (0.3, 0.1, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85)  # of a guess being right, by strength
PRIOR_WEIGHT: Final = 2.0  # observations
HITS_KEPT: Final = 0.98  # of an observation when the next one comes: texts change
ROW_COST: Final = 0.03  # of a step, for each guess, until it is measured
LEAST_ROW_COST: Final = 0.005  # whatever was measured: a step with guesses is never quicker than one without
WORTH_IT: Final = 1.05  # times as many tokens a second, or guesses are left alone
FIRST_LOSS: Final = 1.0  # steps that guesses may cost
LOSS_SHARE: Final = 0.04  # and more of them with each step without
LOSSES_KEPT: Final = 0.995  # of the account at each step
PLAIN_STEPS_FIRST: Final = 3
TIMES_TO_KNOW: Final = 3
PLAIN_STEP_EVERY: Final = 64  # steps, to know what one takes now
FIRST_PROBE: Final = 8  # steps without guesses before one is tried against the estimates; then twice as many


class DraftPolicy(Protocol):
    """Decides for one generation."""

    def ask(self, room: int) -> int:
        """Return how many guesses to ask for, of those that there is room for."""

    def keep(self, strength: int, guesses: int) -> int:
        """Return how many of the guesses made are sent."""

    def learn(self, guesses: Sequence[int], strength: int, sent: int, tokens: Sequence[int], took_s: float) -> None:
        """Take a step's outcome: what was guessed, how much of it was sent, what came, and how long that took."""

    def start_route(self) -> None:
        """Forget the times: another route has others."""


class PayingDrafts:
    """Sends guesses where they pay; `is_free`: making them costs nothing, so they may be made to learn from."""

    def __init__(self, *, is_free: bool, strength: int = 4) -> None:
        self._is_free = is_free
        self._strength = strength  # of guesses that are not made yet
        self._hits = [0.0] * STRENGTHS
        self._tries = [0.0] * STRENGTHS
        self._budget = FIRST_LOSS  # steps
        self._wait = FIRST_PROBE
        self._since_sent = 0
        self.start_route()

    def start_route(self) -> None:
        self._plain_s: deque[float] = deque(maxlen=15)
        self._sizes = [_Size() for _ in range(MOST_TOKENS.bit_length())]
        self._since_plain = 0

    def ask(self, room: int) -> int:
        most = min(room, MOST_TOKENS)
        return most if self._is_free else self._best(self._strength, most)

    def keep(self, strength: int, guesses: int) -> int:
        return self._best(strength, guesses) if self._is_free else guesses

    def learn(self, guesses: Sequence[int], strength: int, sent: int, tokens: Sequence[int], took_s: float) -> None:
        for place, (guess, token) in enumerate(zip(guesses, tokens, strict=False)):
            at = min(strength + place, STRENGTHS - 1)
            self._tries[at] = self._tries[at] * HITS_KEPT + 1.0
            self._hits[at] = self._hits[at] * HITS_KEPT + (guess == token)
            if guess != token:
                break
        self._budget *= LOSSES_KEPT
        for size in self._sizes:
            size.forget()
        if not sent:
            self._plain_s.append(took_s)
            self._budget += LOSS_SHARE
            self._since_plain = 0
            self._since_sent += 1
            return
        self._sizes[_size(sent)].add(len(tokens), took_s)
        self._since_plain += 1
        self._since_sent = 0
        is_gain = len(tokens) > self._costs()[_size(sent)]
        self._wait = FIRST_PROBE if is_gain else min(2 * self._wait, 32 * FIRST_PROBE)

    def _best(self, strength: int, most: int) -> int:
        """Return the number of guesses with the most tokens a second; 0 where none is better."""
        if len(self._plain_s) < PLAIN_STEPS_FIRST or self._since_plain >= PLAIN_STEP_EVERY:
            return 0
        costs = self._costs()
        balance = sum(size.tokens - size.steps * cost for size, cost in zip(self._sizes, costs, strict=True))
        if balance + self._budget <= 0.0:
            return 0
        best, worth, likely, tokens = 0, 0.0, 1.0, 1.0
        for count in range(1, min(most, self._tried()) + 1):
            likely *= self._rate(min(strength + count - 1, STRENGTHS - 1))
            tokens += likely
            if tokens / costs[_size(count)] > worth:
                best, worth = count, tokens / costs[_size(count)]
        return best if worth >= WORTH_IT or self._since_sent >= self._wait else 0

    def _tried(self) -> int:
        """How many guesses may be sent: no size before the one below it is known."""
        known = [len(size.times_s) >= TIMES_TO_KNOW for size in self._sizes[:-1]]
        sizes = next((size for size, is_known in enumerate(known) if not is_known), len(known))
        return int(2 ** (sizes + 1)) - 1

    def _rate(self, strength: int) -> float:
        """How often a guess of this strength is right."""
        return (self._hits[strength] + PRIOR_WEIGHT * PRIOR_RATES[strength]) / (self._tries[strength] + PRIOR_WEIGHT)

    def _costs(self) -> list[float]:
        """How long a step with guesses takes, in steps without, by size: as measured, or as smaller ones let expect."""
        plain_s = median(self._plain_s)
        costs: list[float] = []
        cost, rows, row_cost = 1.0, 0, ROW_COST
        for number, size in enumerate(self._sizes):
            more = 1.5 * 2**number - rows  # guesses on average than the size below
            expected = cost + row_cost * more
            # Before much is measured, what is expected counts twice: one hiccup decides nothing.
            measured = median((expected, expected, *(time_s / plain_s for time_s in size.times_s)))
            rows = 1.5 * 2**number
            cost = max(measured, 1.0 + LEAST_ROW_COST * rows, cost)
            row_cost = max(ROW_COST, (cost - 1.0) / rows / 2)  # rows come cheaper by the dozen
            costs.append(cost)
        return costs


class _Size:
    """What is known of steps with about so many guesses: 1, 2 to 3, 4 to 7, 8 to 15."""

    def __init__(self) -> None:
        self.times_s: deque[float] = deque(maxlen=9)
        self.steps = 0.0  # the more recent, the more they count
        self.tokens = 0.0  # that they brought

    def add(self, tokens: int, took_s: float) -> None:
        self.times_s.append(took_s)
        self.steps += 1.0
        self.tokens += tokens

    def forget(self) -> None:
        self.steps *= LOSSES_KEPT
        self.tokens *= LOSSES_KEPT


def _size(sent: int) -> int:
    return sent.bit_length() - 1
