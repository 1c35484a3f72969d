"""One client of a simulation: the production client over memory links, its answers held to the model's own.

Owns the wiring and the check of each token as it comes; everything else is `swarm_client`'s.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Self

from swarm_client.drafts import Drafter
from swarm_client.errors import ClientError, code
from swarm_client.model import AsyncRemoteModel
from swarm_client.world import World
from swarm_net.errors import NetError
from swarm_net.identity import Identity
from swarm_net.memory import MemoryTransport
from swarm_sim.digest_model import continuation
from swarm_sim.network import Place
from swarm_sim.report import SessionLog
from swarm_sim.simulated_node import Universe
from swarm_sim.virtual_loop import running_loop

SESSION_TIMEOUT_S = 1200.0  # longer than any of its own deadlines: a session that gets there hangs


@dataclass(frozen=True, slots=True)
class Errand:
    """One session: when it begins, what is asked, how many tokens are wanted, how they are drawn and guessed."""

    arrival_s: float
    prompt: list[int]
    tokens: int
    seed: int | None = None  # None: greedy
    drafter: Drafter | None = None


class SimulatedClient:
    """A peer that asks."""

    def __init__(self, universe: Universe, model: AsyncRemoteModel) -> None:
        self._universe = universe
        self._model = model

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, universe: Universe, place: Place, bootstrap: list[str], rng: random.Random
    ) -> AsyncIterator[Self]:
        """Join the swarm from a place; raises NetError if no bootstrap node answers."""
        peer = Identity.generate(rng.randbytes).peer_id
        universe.area.add(peer, place)
        world = World(
            peer=peer,
            transport=MemoryTransport(universe.network, peer),
            clock=universe.clock,
            entropy=rng.randbytes,
            rng=rng,
        )
        async with AsyncRemoteModel.connect(
            universe.model.name, bootstrap, cache_dir=universe.files, world=world
        ) as model:
            yield cls(universe, model)

    async def run(self, errand: Errand, log: SessionLog) -> None:
        """Generate, and note in the log when tokens came and what went wrong."""
        try:
            async with asyncio.timeout(SESSION_TIMEOUT_S):
                await self._generate(errand, log)
        except (NetError, ClientError) as error:
            log.failure = code(error)
        except TimeoutError:
            log.failure = "hangs"

    async def _generate(self, errand: Errand, log: SessionLog) -> None:
        loop = running_loop()
        right = islice(continuation(errand.prompt, self._universe.manifest.num_blocks, errand.seed), errand.tokens)
        async with self._model.stream(
            errand.prompt,
            max_new_tokens=errand.tokens,
            temperature=0.0 if errand.seed is None else 1.0,
            seed=errand.seed,
            draft=errand.drafter,
        ) as stream:
            async for token in stream:
                loop.trace.note(loop.time(), "token", token.id)
                if token.id != next(right) and log.first_wrong_token is None:
                    log.first_wrong_token = len(log.token_times_s)
                log.token_times_s.append(loop.time())
            assert stream.generation is not None
            log.retries = len(stream.generation.retries)
            if stream.generation.drafts is not None:
                log.guesses_right = stream.generation.drafts.accepted
        if len(log.token_times_s) != errand.tokens and log.first_wrong_token is None:
            log.first_wrong_token = len(log.token_times_s)
