"""Time as simulated code sees it."""

import asyncio

EPOCH_NS = 1_700_000_000_000_000_000


class VirtualClock:
    """A `swarm_net.links.Clock` that reads a loop's time; all peers of a simulation share it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def monotonic(self) -> float:
        return self._loop.time()

    def wall_ns(self) -> int:
        return EPOCH_NS + round(self._loop.time() * 1e9)
