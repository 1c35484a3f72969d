"""One node of a simulation: the production node over memory links, a digest model, and a machine that crashes.

Owns the wiring and the life of one peer: start, crash, start again under the same name. What it runs is `swarm_node`'s
and `swarm_net`'s; how long a frame takes is the network's business, how long a batch takes the executor's.
"""

import asyncio
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from swarm_net.directory import MemoryDirectory, MemoryStore
from swarm_net.discovery import DiscoveryService
from swarm_net.endpoint import Endpoint
from swarm_net.identity import Identity
from swarm_net.links import Clock
from swarm_net.manifest import Manifest
from swarm_net.memory import MemoryNetwork, MemoryTransport
from swarm_net.messages import ModelId
from swarm_net.placement import choose_span
from swarm_node.announcer import Announcement, Announcer
from swarm_node.compute import VirtualCompute
from swarm_node.executor import SpanFacts
from swarm_node.gathering import Gathering
from swarm_node.node import Node
from swarm_node.scheduler import Scheduler
from swarm_sim.digest_executor import DigestExecutor, Speed, digest_facts
from swarm_sim.network import Place, WideArea
from swarm_sim.regions import NAMES

PREFILL_CHUNK_TOKENS = 256
LISTEN_PORT = 4001


@dataclass(frozen=True, slots=True)
class Universe:
    """What all peers of a simulation share."""

    network: MemoryNetwork
    area: WideArea
    store: MemoryStore  # in place of the DHT
    clock: Clock
    model: ModelId
    manifest: Manifest
    files: Path  # of the model; empty


@dataclass(frozen=True, slots=True)
class Machine:
    """What a node runs on."""

    place: Place
    capacity_blocks: int
    kv_tokens: int
    speed: Speed


@dataclass(frozen=True, slots=True)
class Crash:
    """`after_s` of life the node is gone for `down_s`; its peers notice `notice_s` after they last heard of it."""

    after_s: float
    down_s: float
    notice_s: float


class SimulatedNode:
    """A peer with a name and a machine; its span is chosen at each start from what the swarm lacks."""

    def __init__(self, universe: Universe, machine: Machine, rng: random.Random) -> None:
        self.identity = Identity.generate(rng.randbytes)
        self.is_ready = asyncio.Event()
        self.crashes = 0
        self.address = ""
        self._universe = universe
        self._machine = machine
        self._rng = rng
        self._node: Node | None = None

    @property
    def sessions(self) -> int:
        """How many sessions it keeps now."""
        return self._node.load().sessions if self._node is not None else 0

    async def live(self, crashes: list[Crash]) -> None:
        """Serve for ever, but for these crashes, one after the other."""
        for crash in crashes:
            await self._serve_until(crash)
            await asyncio.sleep(crash.down_s)
        await self._serve()

    async def _serve_until(self, crash: Crash) -> None:
        serving = asyncio.get_running_loop().create_task(self._serve(), name="node")
        try:
            await asyncio.wait((serving,), timeout=crash.after_s)
            if serving.done():
                serving.result()
            self.crashes += 1
            self.is_ready.clear()
            self._universe.network.disconnect(self.identity.peer_id, notice_s=crash.notice_s)
        finally:
            serving.cancel()
            await asyncio.wait((serving,))

    async def _serve(self) -> None:
        universe, machine, peer = self._universe, self._machine, self.identity.peer_id
        universe.area.add(peer, machine.place)
        async with AsyncExitStack() as stack:
            endpoint = Endpoint(peer=peer, transport=MemoryTransport(universe.network, peer), clock=universe.clock)
            stack.push_async_callback(endpoint.close)
            listener = await endpoint.listen("0.0.0.0", LISTEN_PORT)  # noqa: S104 - of a network in memory
            directory = MemoryDirectory(universe.store)
            files = {universe.manifest.revision: (universe.manifest.encode(), universe.files)}
            discovery = DiscoveryService(endpoint, directory, clock=universe.clock, files=files)
            stack.push_async_callback(discovery.close)

            executor = DigestExecutor(self._choose_facts(), machine.speed)
            scheduler = Scheduler(chunk_tokens=PREFILL_CHUNK_TOKENS, gathering=Gathering())
            node = Node(
                endpoint=endpoint,
                compute=VirtualCompute(executor, scheduler, universe.clock),
                facts=executor.facts,
                model=universe.model,
                clock=universe.clock,
            )
            await stack.enter_async_context(node)
            announcer = Announcer(
                self._announcement(executor, listener.addresses),
                identity=self.identity,
                directory=directory,
                libp2p=tuple,
                load=node.load,
                clock=universe.clock,
                rng=self._rng,
            )
            self._node = node
            stack.callback(self._forget)
            await announcer.publish()
            self.address = listener.addresses[0]
            self.is_ready.set()
            await announcer.run()

    def _forget(self) -> None:
        self._node = None

    def _choose_facts(self) -> SpanFacts:
        universe, machine = self._universe, self._machine
        blocks = universe.manifest.num_blocks
        width = min(machine.capacity_blocks, blocks)
        others = [record for record, _ in universe.store.live() if record.peer != self.identity.peer_id]
        start, end = choose_span(others, blocks, width, 1 / machine.speed.batch_s(width, 1), self._rng)
        return digest_facts(start, end, blocks, kv_tokens=machine.kv_tokens)

    def _announcement(self, executor: DigestExecutor, addresses: tuple[str, ...]) -> Announcement:
        facts, speed = executor.facts, self._machine.speed
        blocks = facts.end - facts.start
        return Announcement(
            model=self._universe.model,
            facts=facts,
            addresses=addresses,
            prefill_tokens_per_s=PREFILL_CHUNK_TOKENS / speed.batch_s(blocks, PREFILL_CHUNK_TOKENS),
            decode_tokens_per_s=1 / speed.batch_s(blocks, 1),
            software="simulated",
            region=NAMES[self._machine.place.region],
        )
