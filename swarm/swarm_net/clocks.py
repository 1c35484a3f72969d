"""The clock of a real machine; the simulator's stands in `swarm_sim`. Called by whoever was given a `links.Clock`."""

import time


class SystemClock:
    """The machine's own monotonic and wall clock."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall_ns(self) -> int:
        return time.time_ns()
