"""Everything that the sessions of one model share: the endpoint, the view of the swarm, whom to avoid.

Owns the choice of a route from the snapshot with the failed peers left out. Built by `model.py`, used by
`token_stream.py`.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal

from swarm_client.codec_choice import CodecChoice
from swarm_client.deadlines import Patience
from swarm_client.dispatch import Dispatcher
from swarm_client.errors import NotOffered
from swarm_client.failover import Avoided
from swarm_client.prices import is_affordable
from swarm_client.wallet import Wallet
from swarm_net.endpoint import Endpoint
from swarm_net.errors import NoRoute
from swarm_net.links import Clock, PeerId
from swarm_net.manifest import Manifest
from swarm_net.messages import ModelId
from swarm_net.records import GRAMMAR_EXTENSION, Record
from swarm_net.routing import Route, route
from swarm_net.snapshot import Snapshot

ROUTE_SPREAD = 0.2  # of a node's cost, by chance: records are seconds old, and whoever reads them reads the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a session needs of its route."""

    max_tokens: int  # room for so many
    codec: CodecChoice = "raw"
    grammar: bool = False
    max_price: Decimal | None = None  # for a million tokens through the whole model, in the nodes' currency
    pays: bool = True  # whether nodes that ask for money will do

    def met_by(self, record: Record) -> bool:
        """Whether a node may stand in the route at all."""
        if self.codec == "int8" and "int8" not in record.codecs:
            return False
        return is_affordable(record, self.max_price if self.pays else Decimal(0))

    def met_at_end_by(self, record: Record) -> bool:
        """Whether a node may be the last hop, which draws the tokens."""
        return not self.grammar or GRAMMAR_EXTENSION in record.extensions

    @property
    def extra(self) -> str:
        """The extra of the package that a node lacks, if it is that."""
        return "structured" if self.grammar else ""

    def __str__(self) -> str:
        wanted = ["structured output"] * self.grammar + [f"the codec {self.codec}"] * (self.codec == "int8")
        if not self.pays:
            wanted.append("work for nothing: this client has no wallet")
        elif self.max_price is not None:
            wanted.append(f"a price of at most {self.max_price} for a million tokens")
        return " and ".join(wanted)


@dataclass(slots=True)
class Connection:
    """One model in one swarm, as sessions see it."""

    model: ModelId
    manifest: Manifest
    endpoint: Endpoint
    dispatcher: Dispatcher
    snapshot: Snapshot
    clock: Clock
    entropy: Callable[[int], bytes]
    rng: random.Random
    patience: Patience
    wallet: Wallet | None = None  # None: only free nodes are used
    cache_salt: bytes = b""  # whoever does not know it cannot name this client's prompts to a hop
    avoided: Avoided = field(default_factory=Avoided)
    is_closed: bool = False

    def choose(self, needs: Needs, *, exclude: frozenset[str], prefer_numeric_class: str | None) -> Route:
        """Return a route around the excluded peers, by what is known now. Raises NoRoute."""
        return route(
            [record for record in self.snapshot.records() if needs.met_by(record)],
            self.model,
            num_blocks=self.manifest.num_blocks,
            rng=self.rng,
            prefer_numeric_class=prefer_numeric_class,
            exclude=frozenset(PeerId(peer) for peer in exclude),
            max_tokens=needs.max_tokens,
            spread=ROUTE_SPREAD,
            may_end=needs.met_at_end_by,
        )

    async def choose_first(self, needs: Needs) -> Route:
        """Return a route for a new session: avoided peers are better than none. Raises NoRoute, NotOffered."""
        for exclude in (self.avoided.at(self.clock.monotonic()), frozenset[str]()):
            try:
                return self.choose(needs, exclude=exclude, prefer_numeric_class=None)
            except NoRoute:
                continue
        await self.snapshot.refresh()
        try:
            return self.choose(needs, exclude=frozenset(), prefer_numeric_class=None)
        except NoRoute:
            plain = Needs(max_tokens=needs.max_tokens)
            self.choose(plain, exclude=frozenset(), prefer_numeric_class=None)  # raises where nothing leads through
            raise NotOffered(str(needs), needs.extra) from None
