"""What a caller gets back: tokens while they come, and the whole generation at its end.

Plain frozen values without behaviour; `msgspec.to_builtins` makes them JSON.
"""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["length", "stop", "eos"]


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One of the likeliest tokens at a place."""

    id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """One token as it comes; `text` is what became certain with it: maybe nothing, maybe more than this token."""

    id: int
    text: str
    logprob: float | None = None
    finish_reason: FinishReason | None = None  # on the last token
    top_logprobs: tuple[TopLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt, that all hops of the first route still had


@dataclass(frozen=True, slots=True)
class RouteHop:
    """One node of a route and the blocks [start, end) that it computed."""

    peer: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Retry:
    """A route that was given up, and why; the tokens up to there were kept."""

    peers: tuple[str, ...]
    tokens_done: int
    error: str
    message: str


@dataclass(frozen=True, slots=True)
class HopTimes:
    """Medians over the tokens behind the first; `wire_ms` is the way from the hop before, by the clocks' offset."""

    peer: str
    compute_ms: float
    queue_ms: float
    wire_ms: float


@dataclass(frozen=True, slots=True)
class Timings:
    """`tokens_per_s` counts the tokens behind the first and the time since it; None where there were none."""

    time_to_first_token_s: float
    total_s: float
    tokens_per_s: float | None
    hops: tuple[HopTimes, ...]
    return_wire_ms: float | None  # from the last hop back to the client
    overhead_ms: float | None  # of a decode step: all the time in which no hop computed; None where there were none


@dataclass(frozen=True, slots=True)
class Drafted:
    """How many steps carried guesses, how many guesses, and how many of those were right."""

    steps: int
    sent: int
    accepted: int


@dataclass(frozen=True, slots=True)
class HopReceipt:
    """What one hop was paid for in one session; `paid` and `price_per_hour` count the currency's smallest unit.

    `units` are tokens in a block, but for `embedding`, `head` and `logprobs` (tokens) and `kv` (pages and seconds).
    """

    peer: str
    start: int
    end: int
    units: dict[str, int]
    rated_ms: float
    price_per_hour: int
    paid: int
    currency: str
    decimals: int
    channel: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a generation cost: every hop of every route, those that failed among them; `paid` by currency."""

    hops: tuple[HopReceipt, ...]

    @property
    def paid(self) -> dict[str, int]:
        """What was paid in all, in the smallest unit of each currency."""
        totals: dict[str, int] = {}
        for hop in self.hops:
            totals[hop.currency] = totals.get(hop.currency, 0) + hop.paid
        return totals


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished generation; `token_ids` are the new ones, an end-of-sequence id among them."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage
    seed: int | None  # None: greedy
    model: str
    revision: str
    route: tuple[RouteHop, ...]  # the last one, if routes were changed
    codec: str  # that activations travelled in, on that route
    retries: tuple[Retry, ...]
    timings: Timings
    logprobs: list[float] | None = None
    top_logprobs: list[tuple[TopLogprob, ...]] | None = None
    drafts: Drafted | None = None  # where drafts were asked for
    receipt: Receipt = Receipt(())  # without hops where all was free
