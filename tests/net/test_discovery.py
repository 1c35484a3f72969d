"""What a node answers to those who look for something, and what it never gives away."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from swarm_net.clocks import SystemClock
from swarm_net.directory import MemoryDirectory, MemoryStore
from swarm_net.discovery import (
    MAX_PUBLISHES,
    MAX_REPLY_BYTES,
    REMEMBER_NOTHING_S,
    REMEMBER_S,
    UNKNOWN_SEARCHES_OF_A_PEER,
    DiscoveryService,
)
from swarm_net.endpoint import Endpoint
from swarm_net.errors import DirectoryDown
from swarm_net.identity import Identity
from swarm_net.links import Link
from swarm_net.manifest import manifest_of
from swarm_net.memory import MemoryNetwork, MemoryTransport
from swarm_net.messages import Fetch, Lookup, ModelId, Models, ModelSummary, Publish, SignedRecord
from swarm_net.records import Record, missing_blocks, open_record, sign
from swarm_net.session_errors import Busy, RemoteError

S = 1_000_000_000
REVISION = "ab" * 32


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


class CountingDirectory(MemoryDirectory):
    """A directory that takes a while, counts its searches, and can be put out of order."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.searches = 0
        self.broken = False
        self.gate = asyncio.Event()  # while it is closed, nothing is found but what it is open to
        self.gate.set()
        self.open_to = ""
        self.searched = asyncio.Event()  # somebody waits at the gate

    async def lookup(self, revision: str) -> list[SignedRecord]:
        self.searches += 1
        await asyncio.sleep(0.01)
        if not self.gate.is_set() and revision != self.open_to:
            self.searched.set()
            await self.gate.wait()
        if self.broken:
            raise DirectoryDown(reason="out of order")
        return await super().lookup(revision)

    async def models(self) -> list[ModelSummary]:
        self.searches += 1
        return await super().models()


class SteppedClock(SystemClock):
    """The machine's clock, moved forward by hand."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


class Scene:
    """One node with a discovery service, and a client's link to it."""

    def __init__(self, client: Endpoint, link: Link, directory: CountingDirectory, clock: SteppedClock) -> None:
        self.client = client
        self.link = link
        self.directory = directory
        self.clock = clock
        self.files: dict[str, tuple[bytes, Path]] = {}

    async def ask(self, message: Any) -> Any:
        return await self.client.request(self.link, message, timeout_s=5)

    async def lookup(self, **options: Any) -> list[SignedRecord]:
        return list((await self.ask(Lookup(request=0, revision=REVISION, **options)))[0].records)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    network, clock = MemoryNetwork(), SteppedClock()
    peers = [Identity.generate().peer_id for _ in range(2)]
    node, client = (Endpoint(peer=peer, transport=MemoryTransport(network, peer), clock=clock) for peer in peers)
    directory = CountingDirectory(MemoryStore(clock))
    address = (await node.listen("127.0.0.1", 0)).addresses[0]
    made = Scene(client, await client.dial(address, 5), directory, clock)
    service = DiscoveryService(node, directory, clock=clock, files=made.files)
    yield made
    await service.close()
    await client.close()
    await node.close()


async def test_a_burst_of_clients_costs_one_search(scene: Scene) -> None:
    await scene.directory.publish(sign(record(me := Identity.generate(), scene.clock.wall_ns()), me))
    answers = await asyncio.gather(*(scene.lookup() for _ in range(20)))
    assert all(len(answer) == 1 for answer in answers)
    assert scene.directory.searches == 1
    scene.clock.ahead_s = REMEMBER_S
    await scene.lookup()
    assert scene.directory.searches == 2


async def test_a_failure_reaches_all_who_wait_and_is_not_kept_for_long(scene: Scene) -> None:
    scene.directory.broken = True
    answers = await asyncio.gather(*(scene.lookup() for _ in range(3)), return_exceptions=True)
    assert all(isinstance(answer, RemoteError) and "out of order" in str(answer) for answer in answers)
    scene.directory.broken = False
    scene.clock.ahead_s = REMEMBER_S
    assert await scene.lookup() == []


async def test_random_revisions_are_searched_a_few_at_once_and_hold_up_nothing_that_is_served(scene: Scene) -> None:
    signed = sign(record(me := Identity.generate(), scene.clock.wall_ns()), me)
    await scene.ask(Publish(request=0, record=signed))
    assert await scene.lookup() == [signed]
    scene.clock.ahead_s = REMEMBER_S  # so that it has to be searched again
    scene.directory.gate.clear()
    made_up = [
        asyncio.ensure_future(scene.ask(Lookup(request=0, revision=f"{number:064x}")))
        for number in range(UNKNOWN_SEARCHES_OF_A_PEER)
    ]
    await scene.directory.searched.wait()
    with pytest.raises(Busy, match="this peer"):
        await scene.ask(Lookup(request=0, revision="f" * 64))
    scene.directory.open_to = REVISION
    assert await scene.lookup() == [signed]
    scene.directory.gate.set()
    assert all(reply.records == () for reply, _ in await asyncio.gather(*made_up))
    assert (await scene.ask(Lookup(request=0, revision="f" * 64)))[0].records == ()


async def test_models_that_a_node_told_of_can_be_looked_up_beside_random_ones(scene: Scene) -> None:
    revisions = [f"{number:064x}" for number in range(3 * UNKNOWN_SEARCHES_OF_A_PEER)]
    for revision in revisions:
        model = ModelId(name="demo", revision=revision)
        signed = sign(record(me := Identity.generate(), scene.clock.wall_ns(), model=model), me)
        await scene.directory.publish(signed)
    await scene.ask(Models(request=0))
    answers = await asyncio.gather(*(scene.ask(Lookup(request=0, revision=revision)) for revision in revisions))
    assert all(len(reply.records) == 1 for reply, _ in answers)


async def test_that_nothing_is_served_is_remembered_for_longer(scene: Scene) -> None:
    assert await scene.lookup() == []
    scene.clock.ahead_s = REMEMBER_S
    assert await scene.lookup() == []
    assert scene.directory.searches == 1
    scene.clock.ahead_s = REMEMBER_NOTHING_S
    await scene.lookup()
    assert scene.directory.searches == 2


async def test_a_lookup_can_name_blocks(scene: Scene) -> None:
    for start, end in ((0, 4), (4, 8), (8, 12)):
        await scene.directory.publish(
            sign(record(me := Identity.generate(), scene.clock.wall_ns(), start=start, end=end), me)
        )
    found = [open_record(each, scene.clock.wall_ns()).start for each in await scene.lookup(blocks=(7, 9))]
    assert sorted(found) == [4, 8]


async def test_of_too_many_records_every_block_is_told_and_another_choice_each_time(scene: Scene) -> None:
    for number in range(300):
        start = 8 if number == 77 else number % 8
        end = 12 if number == 77 else start + 1
        me = Identity.generate()
        extensions = {"padding": bytes(400)}
        await scene.directory.publish(
            sign(record(me, scene.clock.wall_ns(), start=start, end=end, extensions=extensions), me)
        )
    known: set[bytes] = set()
    for _ in range(3):
        answer = await scene.lookup()
        assert sum(len(each.body) for each in answer) <= MAX_REPLY_BYTES
        records = [open_record(each, scene.clock.wall_ns()) for each in answer]
        assert not missing_blocks(records, 12)
        assert len(answer) < 150
        before = len(known)
        known |= {each.key for each in answer}
        assert len(known) > before


async def test_a_published_record_is_found_at_once(scene: Scene) -> None:
    assert await scene.lookup() == []
    signed = sign(record(me := Identity.generate(), scene.clock.wall_ns()), me)
    reply, _ = await scene.ask(Publish(request=0, record=signed))
    assert reply.stored
    assert await scene.lookup() == [signed]
    reply, _ = await scene.ask(Models(request=0))
    assert [(each.model.name, each.nodes) for each in reply.models] == [("demo", 1)]


async def test_a_forged_record_is_refused_with_the_reason(scene: Scene) -> None:
    signed = sign(record(me := Identity.generate(), scene.clock.wall_ns()), me)
    forged = SignedRecord(body=signed.body, key=signed.key, signature=bytes(64))
    reply, _ = await scene.ask(Publish(request=0, record=forged))
    assert (reply.stored, "signature" in reply.reason) == (False, True)


async def test_a_peer_cannot_publish_without_end(scene: Scene) -> None:
    forged = SignedRecord(body=b"", key=bytes(32), signature=bytes(64))
    for _ in range(MAX_PUBLISHES):
        await scene.ask(Publish(request=0, record=forged))
    signed = sign(record(me := Identity.generate(), scene.clock.wall_ns()), me)
    reply, _ = await scene.ask(Publish(request=0, record=signed))
    assert (reply.stored, "a minute" in reply.reason) == (False, True)
    scene.clock.ahead_s = 60
    reply, _ = await scene.ask(Publish(request=0, record=signed))
    assert reply.stored


async def test_the_manifest_and_its_files_are_served_and_nothing_else(scene: Scene, tmp_path: Path) -> None:
    config = {"model_type": "m", "num_hidden_layers": 1, "hidden_size": 1, "vocab_size": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_bytes(bytes(300_000))
    manifest = manifest_of(tmp_path, commit="a" * 40)
    (tmp_path / "merges.txt").write_text("came after the manifest")
    (tmp_path / "secret.txt").write_text("secret")
    scene.files[manifest.revision] = (manifest.encode(), tmp_path)

    async def fetch(name: str, revision: str = manifest.revision) -> bytes | None:
        reply, body = await scene.ask(Fetch(request=0, revision=revision, name=name))
        return bytes(body) if reply.found else None

    assert await fetch("") == manifest.encode()
    assert await fetch("tokenizer.json") == bytes(300_000)
    for name in ("secret.txt", "merges.txt", "../secret.txt", str(tmp_path / "secret.txt"), ".", "config.json/"):
        assert await fetch(name) is None
    assert await fetch("config.json", "f" * 64) is None
    (tmp_path / "config.json").unlink()
    assert await fetch("config.json") is None
