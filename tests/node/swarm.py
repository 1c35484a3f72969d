"""A small swarm over memory links, with the digest model: for the node's tests."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from swarm_net.clocks import SystemClock
from swarm_net.endpoint import Endpoint
from swarm_net.frames import DEFAULT_LIMITS, FrameLimits
from swarm_net.identity import Identity
from swarm_net.links import Body, Link, PeerId
from swarm_net.memory import DelayPolicy, MemoryNetwork, MemoryTransport, no_delay
from swarm_net.messages import Failure, HopSpec, Message, ModelId, Open, Opened, Refuse, Result, Step
from swarm_node.compute import VirtualCompute
from swarm_node.limits import NodeLimits, PrefixSharing
from swarm_node.node import Node
from swarm_node.scheduler import Scheduler
from swarm_sim.digest_executor import DigestExecutor, Speed, digest_facts
from swarm_sim.digest_model import continuation

MODEL = ModelId(name="digests", revision="d" * 64)
BLOCKS = 8
AT_ONCE = Speed(0, 0)


@dataclass
class Peer:
    """A client that speaks the protocol by hand."""

    endpoint: Endpoint
    inbox: asyncio.Queue[tuple[Link, Message]] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        for kind in (Opened, Refuse, Failure, Result):
            self.endpoint.on(kind, self._keep)

    def _keep(self, link: Link, message: Message, body: Body) -> None:
        self.inbox.put_nowait((link, message))

    async def hear(self) -> Message:
        """The next message that comes."""
        async with asyncio.timeout(5):
            return (await self.inbox.get())[1]


@dataclass
class Swarm:
    """Nodes that serve the digest model's spans."""

    network: MemoryNetwork
    nodes: list[Node]
    addresses: list[tuple[str, ...]]
    peers: list[PeerId]
    stack: AsyncExitStack

    async def client(self, limits: FrameLimits = DEFAULT_LIMITS, *, host: str = "") -> Peer:
        """Another client; `host` is where nodes see it, by default in their private network."""
        return Peer(await endpoint(self.network, self.stack, limits, host=host))

    def hops(self, spans: Sequence[tuple[int, int]] | None = None) -> tuple[HopSpec, ...]:
        spans = spans or [(node.facts.start, node.facts.end) for node in self.nodes]
        return tuple(
            HopSpec(peer=peer, start=start, end=end, addresses=addresses)
            for peer, (start, end), addresses in zip(self.peers, spans, self.addresses, strict=False)
        )

    async def open(self, client: Peer, session: bytes, **changes: object) -> tuple[Link, Message]:
        """Dial both ends, open a session, and return the link to hop 0 and the answer."""
        hops = changes.pop("hops", None) or self.hops()
        links = [
            await client.endpoint.link(PeerId(hop.peer), hop.addresses, timeout_s=2) for hop in (hops[0], hops[-1])
        ]
        fields: dict[str, object] = {"model": MODEL, "max_tokens": 64, "deadline_ms": 3000, **changes}
        links[0].send(Open(session=session, client=client.endpoint.peer, hops=hops, **fields))
        return links[0], await client.hear()


async def endpoint(
    network: MemoryNetwork, stack: AsyncExitStack, limits: FrameLimits = DEFAULT_LIMITS, *, host: str = ""
) -> Endpoint:
    peer = Identity.generate().peer_id
    transport = MemoryTransport(network, peer, limits=limits)
    transport.host = host or transport.host
    made = Endpoint(peer=peer, transport=transport, clock=SystemClock())
    stack.push_async_callback(made.close)
    return made


@asynccontextmanager
async def swarm(
    *spans: tuple[int, int],
    kv_tokens: int = 1024,
    idle_timeout_s: float = 60.0,
    speed: Speed = AT_ONCE,
    delay: DelayPolicy = no_delay,
    hold_above_bytes: int = 8 << 20,
    prefix_sharing: PrefixSharing = "client",
    prefill_tokens_per_s: float = 0.0,
    max_opening_of_a_peer: int = 128,
    max_opening_s: float = 60.0,
    slow_link_timeout_s: float = 60.0,
) -> AsyncIterator[Swarm]:
    network = MemoryNetwork(delay)
    async with AsyncExitStack() as stack:
        nodes, addresses, peers = [], [], []
        for start, end in spans:
            node_endpoint = await endpoint(network, stack)
            listener = await node_endpoint.listen("0.0.0.0", 0)
            executor = DigestExecutor(digest_facts(start, end, BLOCKS, kv_tokens=kv_tokens), speed)
            node = Node(
                endpoint=node_endpoint,
                compute=VirtualCompute(executor, Scheduler(chunk_tokens=8, token_budget=8), SystemClock()),
                facts=executor.facts,
                model=MODEL,
                clock=SystemClock(),
                limits=NodeLimits(
                    idle_timeout_s=idle_timeout_s,
                    hold_above_bytes=hold_above_bytes,
                    release_below_bytes=0,
                    prefix_sharing=prefix_sharing,
                    prefill_tokens_per_s=prefill_tokens_per_s,
                    max_opening_of_a_peer=max_opening_of_a_peer,
                    max_opening_s=max_opening_s,
                    slow_link_timeout_s=slow_link_timeout_s,
                ),
            )
            await stack.enter_async_context(node)
            nodes.append(node)
            addresses.append(listener.addresses)
            peers.append(node_endpoint.peer)
        yield Swarm(network, nodes, addresses, peers, stack)


def prefill(session: bytes, ids: Sequence[int], *, frame: int = 0, position: int = 0, **fields: object) -> Step:
    kind = "prefill" if len(ids) > 1 else "decode"
    return Step(
        session=session, frame=frame, position=position, count=len(ids), kind=kind, sample=True, sent_ns=1, **fields
    )


def body(ids: Sequence[int]) -> bytes:
    return np.array(ids, "<i4").tobytes()


def expected(prompt: Sequence[int], tokens: int, seed: int | None = None) -> list[int]:
    return list(islice(continuation(prompt, BLOCKS, seed), tokens))


async def settled(condition: object, *, timeout_s: float = 5.0) -> None:
    """Wait until something becomes true."""
    assert callable(condition)
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (anything may make it true)
            await asyncio.sleep(0.005)
