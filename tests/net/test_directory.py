"""Records published by one and found by another: in memory, and through nodes that answer for the directory."""

from typing import Any

import pytest

from swarm_net.clocks import SystemClock
from swarm_net.directory import Directory, MemoryDirectory, MemoryStore, RemoteDirectory, summarize
from swarm_net.discovery import DiscoveryService
from swarm_net.endpoint import Endpoint
from swarm_net.errors import BadRecord, DirectoryDown
from swarm_net.identity import Identity
from swarm_net.memory import MemoryNetwork, MemoryTransport
from swarm_net.messages import ModelId, ModelSummary, SignedRecord
from swarm_net.records import Record, sign

S = 1_000_000_000
ME, OTHER = Identity(bytes(32)), Identity(bytes([1] * 32))
REVISION = "ab" * 32


class HandClock:
    """A wall clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_ns = 1_800_000_000 * S

    def monotonic(self) -> float:
        return self.now_ns / S

    def wall_ns(self) -> int:
        return self.now_ns


def record(identity: Identity, now_ns: int, **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "sequence": 1,
        "published_ns": now_ns,
        "expires_ns": now_ns + 60 * S,
        "peer": identity.peer_id,
        "model": ModelId(name="demo", revision=REVISION),
        "num_blocks": 12,
        "start": 0,
        "end": 4,
        "dtype": "float32",
        "max_context": 64,
    }
    return Record(**{**fields, **changes})


async def test_what_one_publishes_another_finds_until_it_expires() -> None:
    clock = HandClock()
    store = MemoryStore(clock)
    here, there = MemoryDirectory(store), MemoryDirectory(store)
    signed = sign(record(ME, clock.now_ns), ME)
    await here.publish(signed)
    assert await there.lookup(REVISION) == [signed]
    assert await there.lookup("cd" * 32) == []
    assert [summary.model.name for summary in await there.models()] == ["demo"]
    clock.now_ns += 60 * S
    assert await there.lookup(REVISION) == []
    assert await there.models() == []


async def test_an_older_record_does_not_take_the_place_of_a_newer_one() -> None:
    clock = HandClock()
    directory = MemoryDirectory(MemoryStore(clock))
    newer = sign(record(ME, clock.now_ns, sequence=2), ME)
    await directory.publish(newer)
    await directory.publish(sign(record(ME, clock.now_ns, sequence=1), ME))
    assert await directory.lookup(REVISION) == [newer]


async def test_forged_and_expired_records_are_refused() -> None:
    clock = HandClock()
    directory = MemoryDirectory(MemoryStore(clock))
    signed = sign(record(ME, clock.now_ns), ME)
    with pytest.raises(BadRecord, match="signature"):
        await directory.publish(SignedRecord(body=signed.body, key=signed.key, signature=bytes(64)))
    clock.now_ns += 61 * S
    with pytest.raises(BadRecord, match="expired"):
        await directory.publish(signed)


def test_summaries_name_what_is_missing() -> None:
    records = [
        record(ME, 0),
        record(OTHER, 0, start=6, end=12),
        record(OTHER, 0, start=4, end=6, state="joining"),
        record(OTHER, 0, num_blocks=99, start=0, end=99),
        record(OTHER, 0, model=ModelId(name="whole", revision="cd" * 32), end=12),
    ]
    demo, whole = summarize(records)
    assert demo == ModelSummary(
        model=ModelId(name="demo", revision=REVISION), blocks=12, nodes=4, replicas=0, missing=((4, 6),)
    )
    assert (whole.model.name, whole.nodes, whole.replicas, whole.missing) == ("whole", 1, 1, ())


# -- through other nodes ---------------------------------------------------------------------------------------------


class BrokenDirectory:
    async def publish(self, record: SignedRecord) -> None:
        raise DirectoryDown(reason="out of order")

    async def lookup(self, revision: str) -> list[SignedRecord]:
        raise DirectoryDown(reason="out of order")

    async def models(self) -> list[ModelSummary]:
        raise DirectoryDown(reason="out of order")

    async def close(self) -> None:
        pass


class Swarm:
    """Endpoints on one memory network; closed at the test's end."""

    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self.clock = SystemClock()
        self.open: list[Endpoint | DiscoveryService] = []

    def endpoint(self) -> Endpoint:
        peer = Identity.generate().peer_id
        endpoint = Endpoint(peer=peer, transport=MemoryTransport(self.network, peer), clock=self.clock)
        self.open.append(endpoint)
        return endpoint

    async def node(self, directory: Directory) -> str:
        endpoint = self.endpoint()
        self.open.append(DiscoveryService(endpoint, directory, clock=self.clock, files={}))
        return (await endpoint.listen("127.0.0.1", 0)).addresses[0]

    async def __aenter__(self) -> "Swarm":
        return self

    async def __aexit__(self, *_: object) -> None:
        for each in reversed(self.open):
            await each.close()


async def test_a_peer_without_a_directory_uses_that_of_a_node_that_answers() -> None:
    async with Swarm() as swarm:
        store = MemoryStore(swarm.clock)
        dead = f"/ip4/10.9.9.9/tcp/4001/p2p/{OTHER.peer_id}"
        addresses = [dead, await swarm.node(BrokenDirectory()), await swarm.node(MemoryDirectory(store))]
        remote = RemoteDirectory(swarm.endpoint(), addresses, timeout_s=5)
        signed = sign(record(ME, swarm.clock.wall_ns()), ME)
        await remote.publish(signed)
        assert await remote.lookup(REVISION) == [signed]
        assert (await remote.models())[0].nodes == 1
        assert await MemoryDirectory(store).lookup(REVISION) == [signed]


async def test_a_refused_record_is_a_typed_error() -> None:
    async with Swarm() as swarm:
        remote = RemoteDirectory(swarm.endpoint(), [await swarm.node(MemoryDirectory(MemoryStore(swarm.clock)))])
        old = record(ME, swarm.clock.wall_ns() - 100 * S)
        with pytest.raises(BadRecord, match="expired"):
            await remote.publish(sign(old, ME))


async def test_nobody_to_ask_is_a_typed_error_with_all_reasons() -> None:
    async with Swarm() as swarm:
        dead = f"/ip4/10.9.9.9/tcp/4001/p2p/{OTHER.peer_id}"
        remote = RemoteDirectory(swarm.endpoint(), [dead, await swarm.node(BrokenDirectory()), "nonsense"])
        with pytest.raises(DirectoryDown, match=r"refused.*out of order.*nonsense"):
            await remote.lookup(REVISION)
        with pytest.raises(DirectoryDown, match="no node to ask"):
            await RemoteDirectory(swarm.endpoint(), []).models()
