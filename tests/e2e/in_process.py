"""Real spans and the real client in one process over memory links: what a test needs to see, cut and count everything.

Nodes are built as the node program builds them, less files, DHT and sockets. A node can be dropped without a word.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import msgspec
import torch

from swarm_client.model import AsyncRemoteModel
from swarm_client.world import World
from swarm_model.checkpoint import Checkpoint
from swarm_model.span import Span
from swarm_net.clocks import SystemClock
from swarm_net.directory import MemoryDirectory, MemoryStore
from swarm_net.discovery import DiscoveryService
from swarm_net.endpoint import Endpoint
from swarm_net.identity import Identity
from swarm_net.links import PeerId
from swarm_net.manifest import Manifest, manifest_of
from swarm_net.memory import MemoryNetwork, MemoryTransport
from swarm_net.messages import ModelId
from swarm_net.records import sign
from swarm_node.announcer import Announcement, Announcer
from swarm_node.compute import ComputeThread
from swarm_node.executor import Output, Piece, Prefix
from swarm_node.gathering import Gathering
from swarm_node.grammars import Grammars
from swarm_node.node import Node
from swarm_node.scheduler import Scheduler
from swarm_node.span_executor import SpanExecutor
from swarm_node.turns import Turns

KV_BYTES = 4 << 20


class CountingExecutor:
    """A span's executor that counts the bytes of activations that it takes."""

    def __init__(self, executor: SpanExecutor) -> None:
        self.facts = executor.facts
        self.activation_bytes: Counter[str] = Counter()  # by codec
        self._executor = executor

    def run(self, pieces: Sequence[Piece]) -> list[Output]:
        for piece in pieces:
            if piece.blocks[0] > 0:
                self.activation_bytes[piece.codec] += len(memoryview(piece.data))
        return self._executor.run(pieces)

    def adopt(self, session: bytes, prefix: Prefix) -> int:
        return self._executor.adopt(session, prefix)

    def drop(self, session: bytes) -> None:
        self._executor.drop(session)


@dataclass
class InProcessSwarm:
    """Spans of one checkpoint; more can be started at any time."""

    directory: Path
    checkpoint: Checkpoint
    manifest: Manifest
    stack: AsyncExitStack
    grammars: Grammars | None
    network: MemoryNetwork = field(default_factory=MemoryNetwork)
    store: MemoryStore = field(default_factory=lambda: MemoryStore(SystemClock()))
    addresses: list[str] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    peers: list[PeerId] = field(default_factory=list)
    executors: list["CountingExecutor"] = field(default_factory=list)

    async def start(
        self,
        start: int,
        end: int,
        *,
        kv_bytes: int = KV_BYTES,
        swap_bytes: int = 0,
        record: Mapping[str, object] | None = None,
        takes_grammar: bool = True,
    ) -> None:
        """Serve blocks [start, end); `record` changes fields of what the node says about itself."""
        identity, clock = Identity.generate(), SystemClock()
        stack = self.stack
        endpoint = Endpoint(
            peer=identity.peer_id, transport=MemoryTransport(self.network, identity.peer_id), clock=clock
        )
        stack.push_async_callback(endpoint.close)
        listener = await endpoint.listen("0.0.0.0", 0)
        directory = MemoryDirectory(self.store)
        model = ModelId(name="tiny", revision=self.manifest.revision)
        files = {self.manifest.revision: (self.manifest.encode(), self.directory)}
        stack.push_async_callback(DiscoveryService(endpoint, directory, clock=clock, files=files).close)
        span = Span.load(
            self.checkpoint, start, end, device=torch.device("cpu"), dtype=torch.float32, kv_bytes=kv_bytes
        )
        executor = CountingExecutor(SpanExecutor(span, swap_bytes=swap_bytes))
        turns = Turns(executor.facts.pool_tokens, executor.facts.page_size) if swap_bytes else None
        grammars = self.grammars if takes_grammar and end == self.manifest.num_blocks else None
        node = Node(
            endpoint=endpoint,
            compute=ComputeThread(executor, Scheduler(turns=turns, gathering=Gathering()), clock),
            facts=executor.facts,
            model=model,
            clock=clock,
            grammars=grammars,
        )
        await stack.enter_async_context(node)
        announcer = Announcer(
            Announcement(model, executor.facts, listener.addresses, 1000.0, 100.0, "test", "", grammars is not None),
            identity=identity,
            directory=directory,
            libp2p=tuple,
            load=node.load,
            clock=clock,
            rng=Random(0),
        )
        await directory.publish(sign(msgspec.structs.replace(announcer.record(), **(record or {})), identity))
        self.addresses.append(listener.addresses[0])
        self.nodes.append(node)
        self.peers.append(identity.peer_id)
        self.executors.append(executor)

    @asynccontextmanager
    async def client(self, cache_dir: Path) -> AsyncIterator[AsyncRemoteModel]:
        peer = Identity.generate().peer_id
        world = World(peer=peer, transport=MemoryTransport(self.network, peer), clock=SystemClock())
        async with AsyncRemoteModel.connect("tiny", self.addresses, cache_dir=cache_dir, world=world) as model:
            yield model

    def drop(self, number: int) -> None:
        """Let a node vanish: every link of it ends."""
        self.network.disconnect(self.peers[number], notice_s=0.0)


@asynccontextmanager
async def in_process_swarm(
    directory: Path, *spans: tuple[int, int], grammars: Grammars | None = None
) -> AsyncIterator[InProcessSwarm]:
    async with AsyncExitStack() as stack:
        swarm = InProcessSwarm(directory, Checkpoint.open(directory), manifest_of(directory), stack, grammars)
        for start, end in spans:
            await swarm.start(start, end)
        yield swarm
