"""Which nodes a session goes through: every block exactly once, with the least latency per token that can be foreseen.

Owns the choice of a route from records; the snapshot (`snapshot.py`) gives the records, the client opens the session.
Pure: no clock, no network; the randomness is the caller's.

A hop may enter a node's span in its middle and leave it early. Cost of a hop: its blocks at the node's rate, raised by
the node's load (the price of a queue, rho^4 / (1 - rho)), and what every hop costs: the link and a forward. Shortest
path over block boundaries; because a session passes a node once, and nodes whose weights differ must not meet, the
search is A* over (boundary, nodes used so far), guided by the exact distances without those two rules (Hart, Nilsson
and Raphael 1968). Costs are whole nanoseconds, so that equal routes are equal, and chance spreads clients over them.

Numeric classes are mixed only if none covers the model alone. Nodes that say they have no room for the session are
taken only if no route avoids them: their record may be older than their memory's state, and their refusal has numbers.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import log
from typing import Final, Protocol

from swarm_net.errors import NoRoute
from swarm_net.links import PeerId
from swarm_net.messages import ModelId
from swarm_net.records import Record, missing_blocks

UNKNOWN_RATE_TOKENS_PER_S = 10.0  # of a node whose record gives no rate: nobody's first choice
UNKNOWN_RTT_S = 0.06
HOP_OVERHEAD_S = 0.001
MAX_BUSY = 0.99
MAX_TRIED = 100_000  # partial routes a search may look at, a third of a second

_NS = 1_000_000_000

_Price = Callable[[Record, int], float]  # seconds that so many blocks of a node count for


class Randomness(Protocol):
    """What is asked of a random source, such as random.Random."""

    def random(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Hop:
    """One node of a route and the blocks [start, end) that it computes."""

    record: Record
    start: int
    end: int

    @property
    def peer(self) -> PeerId:
        return PeerId(self.record.peer)


@dataclass(frozen=True, slots=True)
class Route:
    """Hops that cover the model exactly once, in order."""

    model: ModelId
    hops: tuple[Hop, ...]
    token_s: float  # estimated, of a session alone

    @property
    def peers(self) -> tuple[PeerId, ...]:
        return tuple(hop.peer for hop in self.hops)

    @property
    def numeric_classes(self) -> frozenset[str]:
        return frozenset(hop.record.numeric_class for hop in self.hops)


def route(
    records: Iterable[Record],
    model: ModelId,
    *,
    num_blocks: int,
    rng: Randomness,
    prefer_numeric_class: str | None = None,
    exclude: frozenset[PeerId] = frozenset(),
    max_tokens: int = 0,
    rtt_s: Mapping[PeerId, float] | None = None,
    spread: float = 0.0,
    may_end: Callable[[Record], bool] = lambda record: True,
) -> Route:
    """Return the cheapest route through these nodes; `max_tokens` is what a session needs room for.

    With `spread` each node's cost is raised by chance, by that share on average: clients who know the same then choose
    differently among nodes that are about as good, instead of all going to the best one. `may_end` says whether a node
    may be the last hop; others may still come before it.

    Raises NoRoute with exactly the ranges of blocks that no node serves; where all are served but weights differ so
    that no route is consistent, with the blocks in dispute.
    """
    serving = _newest(
        record
        for record in records
        if record.model.revision == model.revision
        and record.num_blocks == num_blocks
        and record.state == "online"
        and record.peer not in exclude
    )
    if missing := missing_blocks(serving, num_blocks):
        raise NoRoute(model=str(model), missing=missing)
    roomy = [record for record in serving if _has_room(record, max_tokens)]
    factors = {record.peer: 1.0 - spread * log(1.0 - rng.random()) for record in serving} if spread else {}

    def price_s(record: Record, blocks: int) -> float:
        known_rtt_s = (rtt_s or {}).get(PeerId(record.peer), UNKNOWN_RTT_S)
        return hop_s(record, blocks, known_rtt_s) * factors.get(record.peer, 1.0)

    for pool in (roomy, serving):
        if found := _best_in_classes(pool, num_blocks, prefer_numeric_class, price_s, rng, may_end):
            expected_s = sum(
                price_s(hop.record, hop.end - hop.start) / factors.get(hop.peer, 1.0) for hop in found.hops
            )  # what chance added is no delay
            return Route(model=model, hops=found.hops, token_s=expected_s)
    raise NoRoute(model=str(model), missing=(), disputed=_disputed(serving))


def hop_s(record: Record, blocks: int, rtt_s: float = UNKNOWN_RTT_S) -> float:
    """Return the estimated time that a token takes through so many blocks of a node, the way to it included."""
    rate = record.decode_tokens_per_s or UNKNOWN_RATE_TOKENS_PER_S
    busy = min(record.load.busy, MAX_BUSY)
    queue_price = busy**4 / (1 - busy)
    compute_s = HOP_OVERHEAD_S + blocks / ((record.end - record.start) * rate)
    return rtt_s / 2 + compute_s * (1 + queue_price)


# -- candidates ------------------------------------------------------------------------------------------------------


def _newest(records: Iterable[Record]) -> list[Record]:
    """Keep one record of each node, in an order that does not depend on theirs."""
    newest: dict[str, Record] = {}
    for record in records:
        if record.peer not in newest or newest[record.peer].sequence < record.sequence:
            newest[record.peer] = record
    return [newest[peer] for peer in sorted(newest)]


def _has_room(record: Record, max_tokens: int) -> bool:
    return max_tokens <= record.max_context and max_tokens <= record.load.kv_tokens_free


def _best_in_classes(
    pool: list[Record],
    num_blocks: int,
    preferred: str | None,
    price_s: _Price,
    rng: Randomness,
    may_end: Callable[[Record], bool],
) -> "_Found | None":
    classes: dict[str, list[Record]] = defaultdict(list)
    for record in pool:
        classes[record.numeric_class].append(record)

    def best(members: list[Record]) -> _Found | None:
        return _Search(members, num_blocks, price_s, rng, may_end).best()

    if preferred in classes and (found := best(classes[preferred])):
        return found
    alone = [found for members in classes.values() if (found := best(members))]
    if alone:
        return min(alone, key=lambda found: (found.cost_ns, rng.random()))
    return best(pool) if len(classes) > 1 else None


class _Claims:
    """Which weights nodes say they have, and who publishes other ones than somebody else.

    Pairs are looked at when a route would join them: records are free, and all pairs of thousands are not.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self._digests: dict[str, dict[int, bytes]] = defaultdict(dict)  # by node and block
        by_block: dict[int, dict[bytes, set[str]]] = defaultdict(lambda: defaultdict(set))
        for record in records:
            if record.block_digests:
                for block in range(record.start, record.end):
                    self._digests[record.peer][block] = digest = record.digest_of(block)
                    by_block[block][digest].add(record.peer)
        several = [by_digest.values() for by_digest in by_block.values() if len(by_digest) > 1]
        self.disputed: Final = frozenset(peer for nodes in several for same in nodes for peer in same)
        self._known: dict[tuple[str, str], bool] = {}

    def disagree(self, one: str, other: str) -> bool:
        """Whether two nodes publish different weights of a block that both serve."""
        if one not in self.disputed or other not in self.disputed:
            return False
        pair = (one, other) if one < other else (other, one)
        if pair not in self._known:
            first, second = self._digests[pair[0]], self._digests[pair[1]]
            self._known[pair] = any(first[block] != second[block] for block in first.keys() & second.keys())
        return self._known[pair]


def _disputed(records: Sequence[Record]) -> tuple[tuple[int, int], ...]:
    """Return the ranges of blocks for which nodes publish different weights."""
    digests: dict[int, set[bytes]] = defaultdict(set)
    for record in records:
        for block in range(record.start, record.end):
            if digest := record.digest_of(block):
                digests[block].add(digest)
    ranges: list[tuple[int, int]] = []
    for block in sorted(block for block, several in digests.items() if len(several) > 1):
        if ranges and ranges[-1][1] == block:
            ranges[-1] = (ranges[-1][0], block + 1)
        else:
            ranges.append((block, block + 1))
    return tuple(ranges)


# -- search ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Found:
    cost_ns: int
    hops: tuple[Hop, ...]


@dataclass(slots=True, order=True)
class _Partial:
    """Hops up to a boundary; ordered by the least total cost, then the one that is further, then by chance."""

    least_ns: int
    left: int
    chance: float
    cost_ns: int = field(compare=False)
    hops: tuple[Hop, ...] = field(compare=False)
    used: frozenset[str] = field(compare=False)


class _Search:
    """The cheapest chain of hops through one set of candidates."""

    def __init__(
        self,
        records: Sequence[Record],
        num_blocks: int,
        price_s: _Price,
        rng: Randomness,
        may_end: Callable[[Record], bool],
    ) -> None:
        self._num_blocks = num_blocks
        self._rng = rng
        self._claims = _Claims(records)
        # Leaving a span anywhere but at its end pays only where another begins.
        starts = sorted({record.start for record in records})
        boundaries = sorted({0, *starts, *(record.end for record in records)})
        self._entered: dict[int, list[tuple[Record, list[tuple[int, int]]]]] = {
            boundary: [
                (
                    record,
                    [
                        (end, cost_ns)
                        for end, cost_ns in _exits(record, boundary, starts, price_s)
                        if end < num_blocks or may_end(record)
                    ],
                )
                for record in records
                if record.start <= boundary < record.end
            ]
            for boundary in boundaries
        }
        self._to_go_ns: dict[int, int] = {num_blocks: 0}  # by boundary, without the rules about nodes; absent: no way
        for boundary in reversed(boundaries):
            costs = [
                cost_ns + self._to_go_ns[end]
                for _, exits in self._entered[boundary]
                for end, cost_ns in exits
                if end in self._to_go_ns
            ]
            if costs:
                self._to_go_ns[boundary] = min(costs)

    def best(self) -> _Found | None:
        """Return the cheapest chain in which no node stands twice and no two nodes disagree; None if there is none."""
        if 0 not in self._to_go_ns:
            return None
        # Full choice first; if rules about nodes make that explode, only whole rests of spans: no node can come twice.
        return self._walk(early_exits=True) or self._walk(early_exits=False)

    def _walk(self, *, early_exits: bool) -> _Found | None:
        heap = [_Partial(self._to_go_ns[0], self._num_blocks, 0.0, 0, (), frozenset())]
        seen: set[tuple[int, frozenset[str]]] = set()
        tried = 0
        while heap and tried < MAX_TRIED:
            partial = heappop(heap)
            boundary = self._num_blocks - partial.left
            if not partial.left:
                return _Found(partial.cost_ns, partial.hops)
            if (boundary, partial.used) in seen:
                continue
            seen.add((boundary, partial.used))
            for record, exits in self._entered[boundary]:
                if record.peer in partial.used:
                    continue
                if any(self._claims.disagree(record.peer, other) for other in partial.used):
                    continue
                for end, cost_ns in exits if early_exits else exits[-1:]:
                    if end in self._to_go_ns:
                        heappush(heap, self._extended(partial, record, boundary, end, cost_ns))
                        tried += 1
        return None

    def _extended(self, partial: _Partial, record: Record, start: int, end: int, cost_ns: int) -> _Partial:
        cost_ns += partial.cost_ns
        hops = (*partial.hops, Hop(record, start, end))
        # Only nodes that could matter again tell two states apart: the others would keep equal ones from being merged.
        disputed = self._claims.disputed
        used = frozenset(hop.record.peer for hop in hops if hop.record.end > end or hop.record.peer in disputed)
        least_ns = cost_ns + self._to_go_ns[end]
        return _Partial(least_ns, self._num_blocks - end, self._rng.random(), cost_ns, hops, used)


def _exits(record: Record, boundary: int, starts: Sequence[int], price_s: _Price) -> list[tuple[int, int]]:
    """Return where a hop that enters at `boundary` may end, the end of its span last, with the cost in nanoseconds."""
    entry_ns = price_s(record, 0) * _NS
    block_ns = price_s(record, 1) * _NS - entry_ns
    ends = [*starts[bisect_right(starts, boundary) : bisect_left(starts, record.end)], record.end]
    return [(end, round(entry_ns + (end - boundary) * block_ns)) for end in ends]
