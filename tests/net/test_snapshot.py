"""A client's view of a model, from nodes of which some are dead, some lie and some come later."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from swarm_net.clocks import SystemClock
from swarm_net.directory import Directory, MemoryDirectory, MemoryStore
from swarm_net.discovery import REMEMBER_S, DiscoveryService
from swarm_net.endpoint import Endpoint
from swarm_net.errors import AmbiguousModel, BadAddress, BadManifest, NoSuchModel, PeerUnreachable, WrongPeer
from swarm_net.identity import Identity
from swarm_net.manifest import Manifest, manifest_of
from swarm_net.memory import MemoryNetwork, MemoryTransport
from swarm_net.messages import ModelId, ModelSummary, SignedRecord
from swarm_net.records import Record, sign
from swarm_net.snapshot import Snapshot, SnapshotTimes

S = 1_000_000_000
DEAD = f"/ip4/10.9.9.9/tcp/4001/p2p/{Identity(bytes(32)).peer_id}"


class SteppedClock(SystemClock):
    """The machine's clock, moved forward by hand."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s

    def wall_ns(self) -> int:
        return super().wall_ns() + round(self.ahead_s * S)


class Node:
    """A node that announces itself and answers."""

    def __init__(self, scene: "Scene", directory: Directory) -> None:
        self.scene = scene
        self.identity = Identity.generate()
        self.directory = directory
        peer = self.identity.peer_id
        self.endpoint = Endpoint(peer=peer, transport=MemoryTransport(scene.network, peer), clock=scene.clock)
        self.files: dict[str, tuple[bytes, Path]] = {}
        self.service = DiscoveryService(self.endpoint, directory, clock=scene.clock, files=self.files)
        self.address = ""

    async def start(self) -> "Node":
        self.address = (await self.endpoint.listen("127.0.0.1", 0)).addresses[0]
        return self

    async def serve(self, start: int, end: int, **changes: Any) -> SignedRecord:
        manifest = self.scene.manifest
        self.files[manifest.revision] = (manifest.encode(), self.scene.directory)
        now_ns = self.scene.clock.wall_ns()
        fields: dict[str, Any] = {
            "sequence": 1,
            "published_ns": now_ns,
            "expires_ns": now_ns + 60 * S,
            "peer": self.identity.peer_id,
            "model": ModelId(name="demo", revision=manifest.revision),
            "num_blocks": 12,
            "start": start,
            "end": end,
            "dtype": "float32",
            "max_context": 64,
            "addresses": (self.address,),
        }
        signed = sign(Record(**{**fields, **changes}), self.identity)
        await self.directory.publish(signed)
        return signed

    async def stop(self) -> None:
        await self.service.close()
        await self.endpoint.close()


class Scene:
    """A network, a model, and who takes part."""

    def __init__(self, directory: Path) -> None:
        config = {"model_type": "m", "num_hidden_layers": 12, "hidden_size": 1, "vocab_size": 1}
        (directory / "config.json").write_text(json.dumps(config))
        (directory / "tokenizer.json").write_text("{}")
        self.directory = directory
        self.manifest: Manifest = manifest_of(directory, commit="a" * 40)
        self.network = MemoryNetwork()
        self.clock = SteppedClock()
        self.store = MemoryStore(self.clock)
        self.nodes: list[Node] = []
        self.snapshots: list[Snapshot] = []
        peer = Identity.generate().peer_id
        self.client = Endpoint(peer=peer, transport=MemoryTransport(self.network, peer), clock=self.clock)

    async def node(self, directory: Directory | None = None) -> Node:
        self.nodes.append(await Node(self, directory or MemoryDirectory(self.store)).start())
        return self.nodes[-1]

    def snapshot(self, *bootstrap: str, model: str = "demo", **times: float) -> Snapshot:
        made = Snapshot(
            self.client,
            clock=self.clock,
            bootstrap=bootstrap,
            model=model,
            rng=Random(1),
            times=SnapshotTimes(**{"refresh_s": 3600.0, **times}),
        )
        self.snapshots.append(made)
        return made


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    made = Scene(tmp_path)
    yield made
    for snapshot in made.snapshots:
        await snapshot.close()
    for node in made.nodes:
        await node.stop()
    await made.client.close()


def peers(snapshot: Snapshot) -> set[str]:
    return {record.peer for record in snapshot.records()}


async def test_a_client_finds_a_model_its_nodes_and_its_files(scene: Scene) -> None:
    one, two = await scene.node(), await scene.node()
    await one.serve(0, 6)
    await two.serve(6, 12)
    snapshot = scene.snapshot(one.address)
    await snapshot.connect()
    assert peers(snapshot) == {one.identity.peer_id, two.identity.peer_id}
    assert snapshot.manifest == scene.manifest
    assert snapshot.model == ModelId(name="demo", revision=scene.manifest.revision)
    assert await snapshot.fetch_file("tokenizer.json") == b"{}"
    with pytest.raises(BadManifest, match="no file"):
        await snapshot.fetch_file("model.safetensors")


@pytest.mark.parametrize("form", ["demo", "demo@{revision}", "demo@{short}", "{revision}", "{short}"])
async def test_models_can_be_named_in_several_ways(scene: Scene, form: str) -> None:
    node = await scene.node()
    await node.serve(0, 12)
    revision = scene.manifest.revision
    snapshot = scene.snapshot(node.address, model=form.format(revision=revision, short=revision[:8]))
    await snapshot.connect()
    assert snapshot.model.revision == revision


async def test_unknown_models_are_refused_with_what_is_served(scene: Scene) -> None:
    node = await scene.node()
    await node.serve(0, 12)
    for model in ("llama", "demo@ffffffff", "llama@" + scene.manifest.revision, ""):
        with pytest.raises(NoSuchModel) as caught:
            await scene.snapshot(node.address, model=model).connect()
        assert caught.value.known == ("demo",)


async def test_one_name_for_two_revisions_must_be_told_apart(scene: Scene) -> None:
    node, other = await scene.node(), await scene.node()
    await node.serve(0, 12)
    await other.serve(0, 12, model=ModelId(name="demo", revision="0" * 64))
    with pytest.raises(AmbiguousModel) as caught:
        await scene.snapshot(node.address).connect()
    assert set(caught.value.revisions) == {"0" * 64, scene.manifest.revision}
    await scene.snapshot(node.address, model=f"demo@{scene.manifest.revision[:8]}").connect()


async def test_of_two_revisions_the_one_that_is_served_whole_is_meant(scene: Scene) -> None:
    node, other = await scene.node(), await scene.node()
    await node.serve(0, 12)
    await other.serve(0, 6, model=ModelId(name="demo", revision="0" * 64))
    snapshot = scene.snapshot(node.address)
    await snapshot.connect()
    assert peers(snapshot) == {node.identity.peer_id}


async def test_one_record_of_a_made_up_revision_neither_blocks_a_name_nor_takes_it(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [await scene.node() for _ in range(2)]
    await nodes[0].serve(0, 6)
    await nodes[1].serve(6, 12)
    attacker = await scene.node()
    for digit in "0f":
        await attacker.serve(0, 12, model=ModelId(name="demo", revision=digit * 64))
    snapshot = scene.snapshot(nodes[0].address)
    await snapshot.connect()
    assert snapshot.model.revision == scene.manifest.revision
    notice = caplog.records[-1].getMessage()
    assert all(revision in notice for revision in ("0" * 64, "f" * 64, scene.manifest.revision))
    assert f"demo@{'0' * 12}" in notice


class BoastfulDirectory(MemoryDirectory):
    """Tells of a model that nobody serves, by a thousand nodes."""

    async def models(self) -> list[ModelSummary]:
        boast = ModelSummary(model=ModelId(name="demo", revision="0" * 64), blocks=12, nodes=1000, replicas=1000)
        return [boast, *await super().models()]


async def test_what_a_node_says_of_a_revision_does_not_count_but_signed_records_do(scene: Scene) -> None:
    honest, liar = await scene.node(), await scene.node(BoastfulDirectory(scene.store))
    await honest.serve(0, 12)
    snapshot = scene.snapshot(liar.address)
    await snapshot.connect()
    assert peers(snapshot) == {honest.identity.peer_id}


async def test_dead_and_wrong_bootstrap_addresses_are_reported_while_one_works(scene: Scene) -> None:
    node = await scene.node()
    await node.serve(0, 12)
    wrong = node.address.rpartition("/")[0] + "/" + Identity(bytes(32)).peer_id
    snapshot = scene.snapshot(DEAD, wrong, "nonsense", node.address)
    await snapshot.connect()
    assert {address: type(error) for address, error in snapshot.unreachable.items()} == {
        DEAD: PeerUnreachable,
        wrong: WrongPeer,
        "nonsense": BadAddress,
    }
    assert peers(snapshot) == {node.identity.peer_id}


async def test_no_bootstrap_address_that_works_is_a_typed_error(scene: Scene) -> None:
    with pytest.raises(PeerUnreachable) as caught:
        await scene.snapshot(DEAD, "nonsense").connect()
    assert caught.value.addresses == (DEAD, "nonsense")
    assert "refused" in caught.value.reason
    assert "nonsense" in caught.value.reason
    with pytest.raises(BadAddress):
        await scene.snapshot("nonsense").connect()
    with pytest.raises(PeerUnreachable, match="no bootstrap address"):
        await scene.snapshot().connect()


async def test_answers_of_several_nodes_are_merged_and_the_newest_counts(scene: Scene) -> None:
    apart = [MemoryDirectory(MemoryStore(scene.clock)) for _ in range(2)]
    one, two = [await scene.node(directory) for directory in apart]
    await one.serve(0, 6, sequence=5)
    await two.serve(6, 12)
    newer = await one.serve(0, 8, sequence=6)
    old_view = MemoryDirectory(MemoryStore(scene.clock))
    third = await scene.node(old_view)
    await old_view.publish(newer)
    await apart[1].publish(await one.serve(0, 4, sequence=4))  # late, and kept by nobody who knows better
    snapshot = scene.snapshot(one.address, two.address, third.address)
    await snapshot.connect()
    spans = {record.peer: (record.start, record.end) for record in snapshot.records()}
    assert spans == {one.identity.peer_id: (0, 8), two.identity.peer_id: (6, 12)}


class LyingDirectory(MemoryDirectory):
    """Returns, beside the truth, what it made up."""

    def __init__(self, store: MemoryStore, *made_up: SignedRecord) -> None:
        super().__init__(store)
        self.made_up = made_up

    async def lookup(self, revision: str) -> list[SignedRecord]:
        return [*await super().lookup(revision), *self.made_up]


async def test_what_a_liar_adds_is_not_believed(scene: Scene) -> None:
    honest = await scene.node()
    signed = await honest.serve(0, 12)
    altered = SignedRecord(body=signed.body.replace(b"float32", b"float16"), key=signed.key, signature=signed.signature)
    foreign = await (await scene.node(MemoryDirectory(MemoryStore(scene.clock)))).serve(
        0, 12, model=ModelId(name="demo", revision="0" * 64)
    )
    other_size = await (await scene.node(MemoryDirectory(MemoryStore(scene.clock)))).serve(0, 99, num_blocks=99)
    liar = await scene.node(LyingDirectory(scene.store, altered, foreign, other_size))
    snapshot = scene.snapshot(liar.address)
    await snapshot.connect()
    assert [record.dtype for record in snapshot.records()] == ["float32"]


async def test_a_node_that_gives_other_files_is_passed_over(scene: Scene, tmp_path: Path) -> None:
    liar, honest = await scene.node(), await scene.node()
    await honest.serve(0, 12)
    forged = tmp_path / "forged"
    forged.mkdir()
    (forged / "tokenizer.json").write_text('{"evil": 1}')
    await liar.serve(0, 12)
    liar.files[scene.manifest.revision] = (b"{}", forged)  # asked first, for the manifest
    snapshot = scene.snapshot(liar.address)
    await snapshot.connect()
    assert snapshot.manifest == scene.manifest
    assert peers(snapshot) == {honest.identity.peer_id}
    liar.files[scene.manifest.revision] = (scene.manifest.encode(), forged)
    assert await snapshot.fetch_file("tokenizer.json") == b"{}"
    await honest.endpoint.close()
    with pytest.raises(BadManifest, match="cannot be fetched"):
        await snapshot.fetch_file("tokenizer.json")


async def test_records_expire_and_exclusions_end(scene: Scene) -> None:
    node, other = await scene.node(), await scene.node()
    await node.serve(0, 6)
    await other.serve(6, 12)
    snapshot = scene.snapshot(node.address)
    await snapshot.connect()
    snapshot.exclude(node.identity.peer_id, 20)
    snapshot.exclude(node.identity.peer_id, 5)
    assert peers(snapshot) == {other.identity.peer_id}
    scene.clock.ahead_s = 21
    assert len(peers(snapshot)) == 2
    scene.clock.ahead_s = 61
    assert peers(snapshot) == set()


async def test_a_refresh_learns_of_newcomers_from_nodes_that_were_no_bootstrap(scene: Scene) -> None:
    first, second = await scene.node(), await scene.node()
    await first.serve(0, 6)
    await second.serve(6, 12)
    snapshot = scene.snapshot(first.address)
    await snapshot.connect()
    scene.network.disconnect(first.identity.peer_id)
    third = await scene.node()
    await third.serve(0, 6)
    scene.clock.ahead_s = REMEMBER_S
    await snapshot.refresh()
    # The first is gone: it did not answer, so it is kept out for a while.
    assert peers(snapshot) == {second.identity.peer_id, third.identity.peer_id}


async def test_it_keeps_itself_fresh_until_it_is_closed(scene: Scene) -> None:
    node = await scene.node()
    await node.serve(0, 12)
    snapshot = scene.snapshot(node.address, refresh_s=0.02)
    await snapshot.connect()
    newcomer = await scene.node()
    await newcomer.serve(0, 12)
    scene.clock.ahead_s = REMEMBER_S
    async with asyncio.timeout(20):
        while newcomer.identity.peer_id not in peers(snapshot):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await snapshot.close()
    await (late := await scene.node()).serve(0, 12)
    await asyncio.sleep(0.1)
    assert late.identity.peer_id not in peers(snapshot)


class BrokenModels(MemoryDirectory):
    async def models(self) -> list[ModelSummary]:
        await asyncio.sleep(3600)
        return []


async def test_a_silent_node_holds_nobody_up(scene: Scene) -> None:
    silent, node = await scene.node(BrokenModels(scene.store)), await scene.node()
    await node.serve(0, 12)
    snapshot = scene.snapshot(silent.address, node.address, stragglers_s=0.01)
    async with asyncio.timeout(4):  # less than the time that one request has
        await snapshot.connect()
    assert peers(snapshot) == {node.identity.peer_id}
