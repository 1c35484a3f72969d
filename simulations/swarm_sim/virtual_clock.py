"""Time as simulated code sees it."""

import asyncio

EPOCH_NS = 1_700_000_000_000_000_000


class VirtualClock:
    """A `swarm_net.links.Clock` that reads a loop's time; `skew_s` is how wrong this machine's wall clock is."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, skew_s: float = 0.0) -> None:
        self._loop = loop
        self._start_ns = EPOCH_NS + round(skew_s * 1e9)

    def monotonic(self) -> float:
        return self._loop.time()

    def wall_ns(self) -> int:
        return self._start_ns + round(self._loop.time() * 1e9)
