"""Small scripted peers that speak the protocol: the far side of the client's tests.

A `FakeNode` is a real peer: signed record, discovery, sessions over hops. Instead of a model it has `next_token`, a
function of all ids so far, so that a continuation on another route can be told from a wrong one. Instead of
activations its hops pass the ids on. What it does wrong, and when, is scripted by its fields.
"""

import asyncio
import json
import threading
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from random import Random

import msgspec

from swarm_client.world import World
from swarm_net.clocks import SystemClock
from swarm_net.direct import DirectTransport
from swarm_net.directory import MemoryDirectory, MemoryStore
from swarm_net.discovery import DiscoveryService
from swarm_net.endpoint import Endpoint
from swarm_net.errors import LinkLost, NetError
from swarm_net.frames import DEFAULT_LIMITS, FrameLimits
from swarm_net.identity import Identity
from swarm_net.links import Body, Link, Listener, PeerId, Transport
from swarm_net.manifest import Manifest, manifest_of
from swarm_net.memory import MemoryNetwork, MemoryTransport
from swarm_net.messages import (
    Cancel,
    Failure,
    HopGrant,
    HopTiming,
    Load,
    Message,
    ModelId,
    Open,
    Opened,
    Refuse,
    Result,
    Step,
    TokenLogprob,
)
from swarm_net.records import Record, sign
from swarm_net.session_errors import HopLost, SessionError, to_failure
from tests.client import tiny_tokenizers

BLOCKS = 8
EOS = 1
MAX_POSITION = 256
CLOCK = SystemClock()


def next_token(ids: Sequence[int], seed: int, vocabulary: int) -> int:
    """The token behind these; never EOS, never a control character's."""
    digest = sha256(repr((tuple(ids), seed)).encode()).digest()
    return 2 + int.from_bytes(digest[:4]) % (vocabulary - 2)


def continuation(ids: Sequence[int], count: int, vocabulary: int, seed: int = 0) -> list[int]:
    """What a session gives that nothing disturbs."""
    known = list(ids)
    for _ in range(count):
        known.append(next_token(known, seed, vocabulary))
    return known[len(ids) :]


@dataclass(frozen=True)
class FakeModel:
    """A model's directory and identity."""

    directory: Path
    manifest: Manifest
    id: ModelId

    @property
    def vocabulary(self) -> int:
        return self.manifest.vocab_size


def make_model(directory: Path, *, name: str = "fake", weights: str = "a", **files: dict[str, object]) -> FakeModel:
    """Write a model's small files; `files` adds JSON ones, `weights` tells apart models that differ in nothing else."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizers.byte_level()
    config = {
        "model_type": "fake",
        "architectures": ["Fake"],
        "num_hidden_layers": BLOCKS,
        "vocab_size": tiny_tokenizers.vocabulary(tokenizer),
        "hidden_size": 8,
        "max_position_embeddings": MAX_POSITION,
        "eos_token_id": EOS,
    }
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
    contents: dict[str, dict[str, object]] = {
        "config": config,
        "tokenizer_config": {"chat_template": template, "eos_token": "<|end|>"},
        **files,
    }
    (directory / "tokenizer.json").write_bytes(tokenizer)
    for file, content in contents.items():
        (directory / f"{file}.json").write_text(json.dumps(content))
    manifest = manifest_of(directory, commit=sha256(weights.encode()).hexdigest())
    return FakeModel(directory, manifest, ModelId(name=name, revision=manifest.revision))


@dataclass
class Script:
    """What a node does wrong."""

    refuse: SessionError | None = None
    retry_after_ms: int = 0
    ignore_open: bool = False
    silent_after: int | None = None  # steps
    fail_after: tuple[int, SessionError] | None = None
    vanish_after: int | None = None  # all links of the node end
    alter: Callable[[Result], Result] = lambda result: result
    eos_after: int | None = None
    step_s: float = 0.0
    duplicate: bool = False  # every result comes twice, and a stale one before it
    tokens: Sequence[int] | None = None  # what is said instead of next_token, by steps
    says: Callable[[Sequence[int], int, int], int] = next_token
    limits: FrameLimits = DEFAULT_LIMITS  # of the frames that it takes


@dataclass
class _Session:
    open: Open
    upstream: Link
    downstream: Link | None
    ids: list[int] = field(default_factory=list)
    steps: int = 0


class FakeNode:
    """Serves blocks [start, end)."""

    def __init__(
        self,
        model: FakeModel,
        identity: Identity,
        transport: Transport,
        directory: MemoryDirectory,
        span: tuple[int, int],
        script: Script,
    ) -> None:
        self.model = model
        self.identity = identity
        self.peer = identity.peer_id
        self.span = span
        self.script = script
        self.sessions: dict[bytes, _Session] = {}
        self.heard: list[Message] = []
        self.cancelled = asyncio.Event()
        self.endpoint = Endpoint(peer=self.peer, transport=transport, clock=CLOCK)
        self.listener: Listener | None = None
        self._directory = directory
        self._tasks: set[asyncio.Task[None]] = set()
        files = {model.id.revision: (model.manifest.encode(), model.directory)}
        self._discovery = DiscoveryService(self.endpoint, directory, clock=CLOCK, files=files)
        self.endpoint.on(Open, self._on_open)
        self.endpoint.on(Step, self._on_step)
        self.endpoint.on(Cancel, self._on_cancel)
        self.endpoint.on(Opened, self._pass_up)
        self.endpoint.on(Refuse, self._pass_up)
        self.endpoint.on(Failure, self._pass_up)
        self.endpoint.on_lost(self._on_lost)

    async def start(self) -> None:
        self.listener = await self.endpoint.listen("127.0.0.1", 0)
        await self.publish()

    async def publish(self, **changes: object) -> None:
        now_ns = CLOCK.wall_ns()
        fields: dict[str, object] = {
            "sequence": now_ns,
            "published_ns": now_ns,
            "expires_ns": now_ns + 60_000_000_000,
            "peer": self.peer,
            "model": self.model.id,
            "num_blocks": BLOCKS,
            "start": self.span[0],
            "end": self.span[1],
            "dtype": "float32",
            "prefill_tokens_per_s": 1000.0,
            "decode_tokens_per_s": 100.0,
            "load": Load(kv_tokens_free=10_000, kv_tokens=10_000),
            "max_context": MAX_POSITION,
            "addresses": self.addresses,
            **changes,
        }
        await self._directory.publish(sign(msgspec.convert(fields, Record, from_attributes=True), self.identity))

    @property
    def addresses(self) -> tuple[str, ...]:
        assert self.listener is not None
        return tuple(self.listener.addresses)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await self._discovery.close()
        await self.endpoint.close()

    def count(self, kind: type[Message]) -> int:
        return sum(isinstance(message, kind) for message in self.heard)

    # -- sessions

    def _on_open(self, link: Link, message: Open, body: Body) -> None:
        self.heard.append(message)
        if self.script.ignore_open:
            return
        if self.script.refuse is not None:
            error = replace(self.script.refuse).at(message.hop, self.peer)
            failure = to_failure(error, session=message.session)
            refusal = Refuse(session=message.session, failure=failure, retry_after_ms=self.script.retry_after_ms)
            link.send(refusal)
            return
        task = asyncio.get_running_loop().create_task(self._open(link, message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, link: Link, message: Open) -> None:
        session = _Session(message, link, None)
        self.sessions[message.session] = session
        if message.hop + 1 < len(message.hops):
            following = message.hops[message.hop + 1]
            session.downstream = await self.endpoint.link(PeerId(following.peer), following.addresses, timeout_s=2)
            session.downstream.send(msgspec.structs.replace(message, hop=message.hop + 1))
        else:
            assert self.endpoint.get(PeerId(message.client)) is not None, "the client dials both ends first"
            grant = HopGrant(hop=message.hop, max_tokens=message.max_tokens, idle_timeout_ms=1000)
            link.send(Opened(session=message.session, grants=(grant,)))

    def _pass_up(self, link: Link, message: Opened | Refuse | Failure, body: Body) -> None:
        session = self.sessions.get(message.session or b"")
        if session is not None and link is session.downstream:
            session.upstream.send(message)

    def _on_step(self, link: Link, message: Step, body: Body) -> None:
        self.heard.append(message)
        session = self.sessions.get(message.session)
        if session is None:
            return
        session.steps += 1
        script = self.script
        if script.vanish_after is not None and session.steps > script.vanish_after:
            self.vanish()
            return
        if script.silent_after is not None and session.steps > script.silent_after:
            return
        if script.fail_after is not None and session.steps > script.fail_after[0]:
            error = replace(script.fail_after[1]).at(session.open.hop, self.peer)
            session.upstream.send(to_failure(error, session=message.session))
            return
        if script.step_s:
            data = bytes(body)
            asyncio.get_running_loop().call_later(script.step_s, self._run, session, message, data)
        else:
            self._run(session, message, bytes(body))

    def _run(self, session: _Session, message: Step, body: bytes) -> None:
        trail = (*message.trail, HopTiming(wire_us=100, queue_us=20, compute_us=3000 + 1000 * session.open.hop))
        try:
            if session.downstream is not None:
                session.downstream.send(msgspec.structs.replace(message, trail=trail), body)
                return
            ids = array("i")
            ids.frombytes(body)
            assert message.position <= len(session.ids)
            assert len(ids) == message.count
            session.ids[message.position :] = ids
            self._answer(session, message, trail)
        except LinkLost:
            self.sessions.pop(message.session, None)

    def _answer(self, session: _Session, message: Step, trail: tuple[HopTiming, ...]) -> None:
        link = self.endpoint.get(PeerId(session.open.client))
        if link is None or not message.sample:
            return
        sampling, script = session.open.sampling, self.script
        tokens: list[int] = []
        for draft in (*(candidate.token for candidate in message.candidates), None):
            known = session.ids[: message.position + message.count - len(message.candidates) + len(tokens)]
            token = script.says(known, sampling.seed, self.model.vocabulary)
            if script.tokens is not None:
                token = script.tokens[session.steps - 1]
            if script.eos_after is not None and session.steps > script.eos_after:
                token = EOS
            tokens.append(token)
            if token != draft:
                break
        top = tuple(TokenLogprob(n, -1.0) for n in range(sampling.top_logprobs))
        result = Result(
            session=message.session,
            frame=message.frame,
            position=message.position + message.count - len(message.candidates),
            tokens=tuple(tokens),
            logprobs=tuple(-token / 1000 for token in tokens) if sampling.logprobs else (),
            top_logprobs=(top,) * len(tokens) if top else (),
            accepted=tuple(candidate.id for candidate in message.candidates[: len(tokens) - 1]),
            trail=trail,
            sent_ns=CLOCK.wall_ns(),
        )
        result = script.alter(result)
        if script.duplicate:
            link.send(msgspec.structs.replace(result, frame=max(0, result.frame - 1), tokens=(3,)))
            link.send(msgspec.structs.replace(result, epoch=7, tokens=(4,)))
            link.send(result)
        link.send(result)

    def _on_cancel(self, link: Link, message: Cancel, body: Body) -> None:
        self.heard.append(message)
        session = self.sessions.pop(message.session, None)
        self.cancelled.set()
        if session is not None and session.downstream is not None and session.downstream.is_open:
            session.downstream.send(message)

    def _on_lost(self, link: Link, reason: NetError) -> None:
        for name, session in list(self.sessions.items()):
            if link is session.downstream:
                del self.sessions[name]
                error = HopLost(target=link.peer, reason="lost").at(session.open.hop, self.peer)
                if session.upstream.is_open:
                    session.upstream.send(to_failure(error, session=name))
            elif link is session.upstream:
                del self.sessions[name]
                if session.downstream is not None and session.downstream.is_open:
                    session.downstream.send(Cancel(session=name, reason="lost"))

    def vanish(self) -> None:
        """Stop as a killed process does: links end, nobody listens any more."""
        task = asyncio.get_running_loop().create_task(self.endpoint.close())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class HardlyAnyChance(Random):
    """Breaks ties and no more: the node that looks best is chosen."""

    def random(self) -> float:
        return super().random() * 1e-9


@dataclass
class FakeSwarm:
    """Nodes of one model on one memory network."""

    model: FakeModel
    network: MemoryNetwork
    store: MemoryStore
    nodes: list[FakeNode]
    is_direct: bool = False  # over TCP and TLS, for clients in other threads and processes

    @property
    def bootstrap(self) -> list[str]:
        return [self.nodes[0].addresses[0]]

    def world(self) -> World:
        peer = Identity.generate().peer_id
        return World(peer=peer, transport=MemoryTransport(self.network, peer), clock=CLOCK, rng=HardlyAnyChance())

    async def add(
        self, span: tuple[int, int], script: Script | None = None, model: FakeModel | None = None
    ) -> FakeNode:
        identity, script = Identity.generate(), script or Script()
        transport = (
            DirectTransport(identity, CLOCK)
            if self.is_direct
            else MemoryTransport(self.network, identity.peer_id, limits=script.limits)
        )
        node = FakeNode(model or self.model, identity, transport, MemoryDirectory(self.store), span, script)
        await node.start()
        self.nodes.append(node)
        return node


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that a peer does."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@asynccontextmanager
async def fake_swarm(
    model: FakeModel, *spans: tuple[int, int], scripts: Sequence[Script] | None = None, is_direct: bool = False
) -> AsyncIterator[FakeSwarm]:
    """Run a node for each span."""
    swarm = FakeSwarm(model, MemoryNetwork(), MemoryStore(CLOCK), [], is_direct)
    try:
        for place, span in enumerate(spans):
            await swarm.add(span, scripts[place] if scripts is not None else None)
        yield swarm
    finally:
        for node in swarm.nodes:
            await node.close()


@contextmanager
def fake_swarm_in_thread(
    model: FakeModel, *spans: tuple[int, int], scripts: Sequence[Script] | None = None
) -> Iterator[FakeSwarm]:
    """Run nodes over TCP on a loop of their own, for tests that block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    swarm = fake_swarm(model, *spans, scripts=scripts, is_direct=True)
    try:
        yield asyncio.run_coroutine_threadsafe(swarm.__aenter__(), loop).result(20)
    finally:
        asyncio.run_coroutine_threadsafe(swarm.__aexit__(None, None, None), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()


def wait_until(condition: Callable[[], bool]) -> None:
    """`until`, for tests that block."""
    end_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.005)
