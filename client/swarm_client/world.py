"""What a client is run with: who it is, its transport, its clock, its randomness. The simulator gives its own."""

import random
import secrets
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from swarm_client.wallet import Wallet
from swarm_net.endpoint import Endpoint
from swarm_net.links import Clock, PeerId, Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything of a client that is not its own decision."""

    peer: PeerId
    transport: Transport
    clock: Clock
    entropy: Callable[[int], bytes] = secrets.token_bytes
    rng: random.Random = field(default_factory=random.Random)
    wallet: Callable[[Endpoint, AsyncExitStack], Wallet | None] = lambda endpoint, stack: None  # unless told otherwise


def real_world() -> World:
    """Return the world of this machine: direct links, and an identity that lasts as long as the client does."""
    from swarm_net.clocks import SystemClock
    from swarm_net.direct import DirectTransport
    from swarm_net.identity import Identity

    identity = Identity.generate()
    clock = SystemClock()
    return World(peer=identity.peer_id, transport=DirectTransport(identity, clock), clock=clock)
