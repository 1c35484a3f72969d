"""Everything that the sessions of one model share: the endpoint, the view of the swarm, whom to avoid.

Owns the choice of a route from the snapshot with the failed peers left out. Built by `model.py`, used by
`token_stream.py`.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from swarm_client.deadlines import Patience
from swarm_client.dispatch import Dispatcher
from swarm_client.failover import Avoided
from swarm_net.endpoint import Endpoint
from swarm_net.errors import NoRoute
from swarm_net.links import Clock, PeerId
from swarm_net.manifest import Manifest
from swarm_net.messages import ModelId
from swarm_net.routing import Route, route
from swarm_net.snapshot import Snapshot

ROUTE_SPREAD = 0.2  # of a node's cost, by chance: records are seconds old, and whoever reads them reads the same


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
    avoided: Avoided = field(default_factory=Avoided)
    is_closed: bool = False

    def choose(self, *, max_tokens: int, exclude: frozenset[str], prefer_numeric_class: str | None) -> Route:
        """Return a route around the excluded peers, by what is known now. Raises NoRoute."""
        return route(
            self.snapshot.records(),
            self.model,
            num_blocks=self.manifest.num_blocks,
            rng=self.rng,
            prefer_numeric_class=prefer_numeric_class,
            exclude=frozenset(PeerId(peer) for peer in exclude),
            max_tokens=max_tokens,
            spread=ROUTE_SPREAD,
        )

    async def choose_first(self, *, max_tokens: int) -> Route:
        """Return a route for a new session: avoided peers are better than none. Raises NoRoute."""
        for exclude in (self.avoided.at(self.clock.monotonic()), frozenset[str]()):
            try:
                return self.choose(max_tokens=max_tokens, exclude=exclude, prefer_numeric_class=None)
            except NoRoute:
                continue
        await self.snapshot.refresh()
        return self.choose(max_tokens=max_tokens, exclude=frozenset(), prefer_numeric_class=None)
