"""How much rated time a session has used at one hop; pure, no clock, the same integer on both sides.

Each token counts by its own position, so chunks, batches and the number of steps that it came in change nothing. The
node counts the steps that it accepts, the client those that it sends; who has lost steps has counted less, never more.
"""

from dataclasses import dataclass, field
from typing import Final, Literal

from swarm_ledger.quotes import BUCKET_ENDS, Quote, bucket, rate_at

Line = Literal["prefill", "decode", "draft", "replay", "cached", "embedding", "head", "logprobs", "kv"]
Work = Literal["prefill", "decode", "verify", "replay"]
LINES: Final[tuple[Line, ...]] = (
    "prefill",
    "cached",
    "decode",
    "draft",
    "replay",
    "embedding",
    "head",
    "logprobs",
    "kv",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a hop does for a session, besides how many tokens: agreed when the session is opened."""

    blocks: int
    is_first: bool
    is_last: bool
    logprobs: bool = False
    pages: int = 0  # of KV that are kept for the session


@dataclass(slots=True)
class Meter:
    """Counts one session at one hop."""

    quote: Quote
    place: Place
    rated_ns: int = 0
    units: dict[Line, int] = field(default_factory=dict)
    opening: tuple[int, int] = (0, 0)  # cached tokens and seconds of lease that the first step will count

    @property
    def amount(self) -> int:
        """What the session owes by now, rounded down once."""
        return self.quote.amount(self.rated_ns)

    @property
    def computed_ns(self) -> int:
        """The rated time without leases of KV, which are paid ahead."""
        return self.rated_ns - self.units.get("kv", 0) * self.quote.rates.page_second

    def begin(self, cached_tokens: int, lease_s: int) -> None:
        """Note what the opening gives. It counts with the first step: a session that never ran costs nothing."""
        self.opening = cached_tokens, lease_s

    def lease(self, seconds: int) -> None:
        """Count a lease of the session's pages, as it was granted."""
        self._add("kv", self.place.pages * seconds, self.quote.rates.page_second)

    def cached(self, tokens: int) -> None:
        """Count tokens that were computed for an earlier session and kept."""
        self._add("cached", tokens * self.place.blocks, self.quote.rates.cached)

    def step(self, kind: Work, position: int, count: int, draws: int) -> None:
        """Count a step of `count` tokens from `position` on, behind `draws` of which a token is drawn.

        A verify step is one token to decode and guesses behind it.
        """
        if self.opening != (0, 0):
            cached_tokens, lease_s = self.opening
            self.opening = (0, 0)
            self.cached(cached_tokens)
            self.lease(lease_s)
        rates = self.quote.rates
        if kind == "verify":
            self._tokens("decode", rates.decode, position, 1)
            self._tokens("draft", rates.draft, position + 1, count - 1)
        else:
            self._tokens(kind, getattr(rates, kind), position, count)
        if self.place.is_first:
            self._add("embedding", count, rates.embedding)
        if draws and self.place.is_last:
            self._add("head", draws, rates.head)
            if self.place.logprobs:
                self._add("logprobs", draws, rates.logprobs)

    def cost_of(self, kind: Work, position: int, count: int, draws: int) -> int:
        """Return by how much a step would raise `amount`."""
        trial = Meter(self.quote, self.place, self.rated_ns, opening=self.opening)
        trial.step(kind, position, count, draws)
        return trial.amount - self.amount

    def copy(self) -> "Meter":
        """Return a meter that stands where this one does."""
        return Meter(self.quote, self.place, self.rated_ns, dict(self.units), self.opening)

    def _tokens(self, line: Line, rates: tuple[int, ...], position: int, count: int) -> None:
        end = position + count
        while position < end:
            number = bucket(position)
            until = min(end, BUCKET_ENDS[number]) if number < len(BUCKET_ENDS) else end
            self._add(line, (until - position) * self.place.blocks, rate_at(rates, number))
            position = until

    def _add(self, line: Line, units: int, rate_ns: int) -> None:
        if units:
            self.units[line] = self.units.get(line, 0) + units
            self.rated_ns += units * rate_ns
