"""What is simulated: a scenario's numbers, and everything that chance draws from them.

Pure: each kind of draw has its own random source, seeded by the scenario's seed and the draw's name, so that a change
in one does not shift the others. `simulation.py` plays what is drawn here.
"""

import math
import random
from dataclasses import dataclass, replace

from swarm_sim.digest_executor import Speed
from swarm_sim.digest_model import VOCABULARY
from swarm_sim.errors import BadOption
from swarm_sim.network import Place
from swarm_sim.regions import Regions
from swarm_sim.simulated_client import Errand
from swarm_sim.simulated_drafter import SimulatedDrafter
from swarm_sim.simulated_node import Crash, Machine

CRASHES_GO_ON_S = 3600.0  # behind the last session's begin
MACHINE_SILENCE_S = 3.0  # until a link whose other end lost power is given up


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated."""

    nodes: int = 30
    sessions: int = 100
    regions: int = 3
    crashes_per_node_hour: float = 0.0
    blocks: int = 24
    duration_s: float = 60.0  # in which the sessions begin; the run ends with the last of them
    seed: int = 1
    right_share: float = 0.0  # of clients' guesses; 0: they make none

    def __post_init__(self) -> None:
        for option, value, least, most in (
            ("--nodes", self.nodes, 1, 10_000),
            ("--sessions", self.sessions, 1, 1_000_000),
            ("--blocks", self.blocks, 1, 1024),
            ("--crash-rate", self.crashes_per_node_hour, 0, 3600),
            ("--duration", self.duration_s, 0, 1e6),
            ("--drafts", self.right_share, 0, 1),
        ):
            if not least <= value <= most:
                raise BadOption(option, f"{value:g} is not between {least:g} and {most:g}")
        Regions(self.regions)

    def rng(self, name: str) -> random.Random:
        """Return the random source of one kind of draw."""
        return random.Random(f"{self.seed}/{name}")  # noqa: S311 - a simulation's

    def machine(self, node: int) -> Machine:
        """Draw what a volunteer brings; with all others it holds every block twice, if there are two."""
        rng = self.rng(f"machine {node}")
        least = -(-2 * self.blocks // self.nodes)
        return Machine(
            place=Place.draw(node % self.regions, rng),
            capacity_blocks=min(self.blocks, max(least, -(-self.blocks // rng.choice((2, 3, 4, 4, 6))))),
            kv_tokens=rng.choice((8192, 16384, 32768)),
            speed=Speed().scaled(rng.uniform(0.5, 2.0)),
        )

    def crashes(self, node: int) -> list[Crash]:
        """Draw a node's crashes, for longer than a run should last: processes that die, machines that lose power."""
        rng, crashes, drawn_s = self.rng(f"crashes {node}"), list[Crash](), 0.0
        while self.crashes_per_node_hour and drawn_s < self.duration_s + CRASHES_GO_ON_S:
            crash = Crash(
                after_s=rng.expovariate(self.crashes_per_node_hour / 3600),
                down_s=rng.uniform(5.0, 60.0),
                notice_s=rng.choice((0.0, MACHINE_SILENCE_S)),
            )
            drawn_s += crash.after_s + crash.down_s
            crashes.append(crash)
        return crashes

    def errands(self) -> list[Errand]:
        """Draw the sessions: short and long prompts, short and long answers."""
        rng, seeds = self.rng("errands"), self.rng("seeds")
        errands = [
            Errand(
                arrival_s=rng.uniform(0, self.duration_s),
                prompt=[rng.randrange(VOCABULARY) for _ in range(_log_uniform(rng, 8, 512))],
                tokens=_log_uniform(rng, 8, 128),
                seed=seeds.choice((None, seeds.getrandbits(32))),
            )
            for _ in range(self.sessions)
        ]
        if not self.right_share:
            return errands
        return [replace(errand, drafter=self._drafter(number, errand)) for number, errand in enumerate(errands)]

    def _drafter(self, number: int, errand: Errand) -> SimulatedDrafter:
        rng = self.rng(f"guesses {number}")
        return SimulatedDrafter(errand.prompt, self.blocks, errand.seed, right_share=self.right_share, rng=rng)

    def client_place(self, client: int) -> Place:
        """Draw where a client is."""
        rng = self.rng(f"client place {client}")
        return Place.draw(rng.randrange(self.regions), rng)


def _log_uniform(rng: random.Random, least: int, most: int) -> int:
    """Return a whole number that is as often short of the geometric mean as beyond it."""
    return round(math.exp(rng.uniform(math.log(least), math.log(most))))
