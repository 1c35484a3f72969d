"""A wide-area network as arithmetic: how long what is sent now will take.

Owns the model, not the links: the memory network asks it for each frame (a `swarm_net.memory.DelayPolicy`, once the
time is given) and delivers then. It knows no loop and no clock, and its only randomness is the one that it was given.

    arrival = wait for the sender's uplink and the receiver's downlink + bytes at the slower of the two
            + access delay of both ends + distance between their regions, jittered

Lanes are separate connections: bulk waits behind decode frames, a decode frame never behind bulk. That frames of one
link stay in order, and what crashes look like, is the link's business. The receiver's queue is kept by sending times,
as though all senders were equally far: throughput is exact, and a near sender is not held up by a frame that is still
on its way from afar.
"""

import random
from dataclasses import dataclass, field

from swarm_net.links import LANES
from swarm_net.messages import Lane
from swarm_sim.regions import Regions

FRAME_OVERHEAD_BYTES = 66 + 30  # Ethernet, IP, TCP with timestamps; TLS record


@dataclass(frozen=True, slots=True)
class Place:
    """How one peer is connected."""

    region: int
    access_delay_s: float = 0.005
    uplink_bps: float = 50e6
    downlink_bps: float = 200e6

    @staticmethod
    def draw(region: int, rng: random.Random) -> "Place":
        """Return the connection of a volunteer: from home lines to machine rooms."""
        uplink_mbps, downlink_mbps = rng.choice(((20, 100), (50, 250), (100, 500), (500, 500), (1000, 1000)))
        return Place(
            region=region,
            access_delay_s=rng.uniform(0.001, 0.010),
            uplink_bps=uplink_mbps * 1e6,
            downlink_bps=downlink_mbps * 1e6,
        )


@dataclass(slots=True)
class _Line:
    """One direction of a peer's connection: until when each lane is taken."""

    bps: float
    free_s: dict[Lane, float] = field(default_factory=lambda: dict.fromkeys(LANES, 0.0))

    def take(self, now_s: float, lane: Lane, size_bytes: int) -> float:
        """Put bytes on the line; returns when the last of them has passed."""
        duration_s = size_bytes * 8 / self.bps
        if lane == "decode":
            self.free_s["decode"] = max(now_s, self.free_s["decode"]) + duration_s
            self.free_s["bulk"] = max(now_s, self.free_s["bulk"]) + duration_s
        else:
            self.free_s["bulk"] = max(now_s, self.free_s["bulk"]) + duration_s
        return self.free_s[lane]


class WideArea:
    """Peers in regions; `jitter` is the mean of an exponential share that is added to every distance."""

    def __init__(self, regions: Regions, rng: random.Random, *, jitter: float = 0.05) -> None:
        self._regions = regions
        self._rng = rng
        self._jitter = jitter
        self._places: dict[str, Place] = {}
        self._up: dict[str, _Line] = {}
        self._down: dict[str, _Line] = {}
        self.frames = 0
        self.bytes = 0

    def add(self, peer: str, place: Place) -> None:
        """Connect a peer; one that was there before comes back with empty lines."""
        self._places[peer] = place
        self._up[peer] = _Line(place.uplink_bps)
        self._down[peer] = _Line(place.downlink_bps)

    def distance_s(self, source: str, target: str) -> float:
        """Return the least time from one peer to another."""
        a, b = self._places[source], self._places[target]
        return a.access_delay_s + b.access_delay_s + self._regions.one_way_s(a.region, b.region)

    def delay_s(self, now_s: float, source: str, target: str, lane: Lane, size_bytes: int) -> float:
        """Return how long a frame sent now takes; calls must come in order of time."""
        size_bytes += FRAME_OVERHEAD_BYTES
        passed_s = max(
            self._up[source].take(now_s, lane, size_bytes),
            self._down[target].take(now_s, lane, size_bytes),
        )
        self.frames += 1
        self.bytes += size_bytes
        jitter = 1.0 + (self._jitter * self._rng.expovariate(1.0) if self._jitter else 0.0)
        return passed_s - now_s + self.distance_s(source, target) * jitter
