"""Where simulated peers are, and how far apart: a table of regions with the one-way delay between them.

The delays are half of what public cloud regions typically see as a round trip, rounded; they are meant to be of the
right size and to keep their ranks, not to be anybody's network.
"""

from dataclasses import dataclass

from swarm_sim.errors import BadOption

NAMES = ("europe", "us-east", "us-west", "japan", "brazil", "australia")

_ONE_WAY_MS = (
    (5, 40, 70, 110, 95, 130),
    (40, 5, 32, 80, 57, 100),
    (70, 32, 5, 50, 85, 70),
    (110, 80, 50, 5, 130, 52),
    (95, 57, 85, 130, 5, 155),
    (130, 100, 70, 52, 155, 5),
)


@dataclass(frozen=True, slots=True)
class Regions:
    """The first `count` regions of the table."""

    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= len(NAMES):
            raise BadOption("--regions", f"{self.count} is not between 1 and {len(NAMES)}")

    def one_way_s(self, source: int, target: int) -> float:
        """Return the delay between two regions, by their places in the table."""
        return _ONE_WAY_MS[source][target] / 1000
