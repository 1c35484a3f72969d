"""Checkpoints from the hub: what is fetched, what is not, what breaks off, what is refused. The hub is on loopback."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from swarm_model.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from swarm_model.disk import files_of, require_disk
from swarm_model.errors import (
    AccessDenied,
    CheckpointBroken,
    CheckpointNotFound,
    HubUnreachable,
    NotEnoughDisk,
    NotEnoughMemory,
)
from swarm_model.hub import PIECE_BYTES
from swarm_model.skeleton import study
from swarm_model.span import Chunk, LoadProgress, SessionKey, Span
from swarm_net.manifest import manifest_of
from tests.model.families import BLOCKS, COMMON, CPU, load_spans
from tests.model.hub_server import COMMIT, REPO, TOKEN, FakeHub, serve


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of several pieces, in which a download can break off."""
    folder = tmp_path_factory.mktemp("large")
    config = CONFIG_MAPPING["llama"](**{**COMMON, "vocab_size": 20_000})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    assert (folder / SINGLE_FILE).stat().st_size > 6 * PIECE_BYTES
    return folder


def open_from(hub: FakeHub, cache: Path, revision: str | None = None) -> Checkpoint:
    return Checkpoint.open(REPO, revision=revision, cache_dir=cache, endpoint=hub.address)


def load(checkpoint: Checkpoint, start: int, end: int, progress: list[LoadProgress] | None = None) -> Span:
    report = (lambda _: None) if progress is None else progress.append
    kind = {"device": CPU, "dtype": torch.float32}
    return Span.load(checkpoint, start, end, **kind, kv_bytes=1 << 20, page_size=4, on_progress=report)


def weights(served: dict[str, int]) -> dict[str, int]:
    return {name: size for name, size in served.items() if name.endswith(".safetensors")}


def test_only_the_shards_of_the_span_are_downloaded(checkpoint_of: Callable[[str], Path], cache: Path) -> None:
    folder = checkpoint_of("llama")
    index = json.loads((folder / INDEX_FILE).read_text())["weight_map"]
    wanted = {file for name, file in index.items() if "layers.2." in name or "layers.3." in name}
    progress: list[LoadProgress] = []
    with serve(folder) as hub:
        checkpoint = open_from(hub, cache, "main")
        assert not weights(hub.served)
        assert (checkpoint.name, checkpoint.commit, checkpoint.revision) == (REPO, COMMIT, COMMIT)
        assert manifest_of(checkpoint.directory, commit=checkpoint.commit).commit == COMMIT
        span = load(checkpoint, 2, 4, progress)

        assert weights(hub.served) == {file: (folder / file).stat().st_size for file in wanted}
        fetched = [report for report in progress if report.stage == "fetch"]
        assert fetched[-1].done == fetched[-1].total == sum(weights(hub.served).values())
        assert span.info.block_digests == load_spans(folder, [2, 4])[0].info.block_digests

        hub.served.clear()
        hub.asked.clear()
        load(open_from(hub, cache, COMMIT), 2, 4)
        assert not weights(hub.served)
        assert not [path for _, path in hub.asked if path.endswith(".safetensors")]


def test_weights_from_the_hub_compute_what_weights_from_the_folder_compute(
    checkpoint_of: Callable[[str], Path], cache: Path
) -> None:
    folder = checkpoint_of("llama")
    chunk = Chunk(SessionKey(b"s"), 0, torch.arange(9))
    with serve(folder) as hub:
        (ours,) = load(open_from(hub, cache), 0, 4).forward([chunk])
    (theirs,) = load_spans(folder, [0, 4])[0].forward([chunk])
    assert isinstance(ours, torch.Tensor)
    assert isinstance(theirs, torch.Tensor)
    assert torch.equal(ours, theirs)


def test_a_connection_that_breaks_is_taken_up_where_it_broke(large: Path, cache: Path) -> None:
    size = (large / SINGLE_FILE).stat().st_size
    with serve(large, cuts={SINGLE_FILE: [2 * PIECE_BYTES + 77, PIECE_BYTES + 1]}) as hub:
        load(open_from(hub, cache), 0, 2)
        cut_off = 2 * PIECE_BYTES  # of each broken answer less than a piece is lost
        assert size <= hub.served[SINGLE_FILE] < size + cut_off


def test_an_interrupted_download_goes_on_in_the_next_process(large: Path, cache: Path) -> None:
    size = (large / SINGLE_FILE).stat().st_size
    with serve(large, cuts={SINGLE_FILE: [3 * PIECE_BYTES] + [0] * 20}) as hub:
        script = """
import sys, torch
from pathlib import Path
from swarm_model.checkpoint import Checkpoint
from swarm_model.errors import DownloadInterrupted
try:
    Checkpoint.open(sys.argv[1], cache_dir=sys.argv[2]).fetch(["model.safetensors"])
except DownloadInterrupted as error:
    assert "go" in error.remedy()
    print(error.done_bytes, error.total_bytes)
"""
        environment = {**os.environ, "HF_ENDPOINT": hub.address}
        command = [sys.executable, "-c", script, REPO, str(cache)]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
        kept, total = (int(number) for number in ran.stdout.split())
        assert (kept, total) == (3 * PIECE_BYTES, size)

        hub.cuts.clear()
        before = hub.served[SINGLE_FILE]
        progress: list[LoadProgress] = []
        checkpoint = open_from(hub, cache)
        assert checkpoint.missing_bytes([SINGLE_FILE]) == size - kept
        load(checkpoint, 0, 2, progress)
        assert hub.served[SINGLE_FILE] - before == size - kept
        assert [report.done for report in progress if report.stage == "fetch"][-1] == size


def test_a_server_without_ranges_is_read_from_the_beginning(large: Path, cache: Path) -> None:
    with serve(large, ranges=False, cuts={SINGLE_FILE: [2 * PIECE_BYTES]}) as hub:
        hub.cuts[SINGLE_FILE].insert(0, 10**9)  # the header's answer is whole
        load(open_from(hub, cache), 0, 2)
        assert hub.served[SINGLE_FILE] > (large / SINGLE_FILE).stat().st_size


def test_what_an_earlier_download_left_garbled_is_found(large: Path, cache: Path) -> None:
    with serve(large, cuts={SINGLE_FILE: [PIECE_BYTES]}) as hub:
        checkpoint = open_from(hub, cache)
        remote = checkpoint.missing_bytes([SINGLE_FILE])
        blobs = checkpoint.directory.parent.parent / "blobs"
        part = blobs / f"{sha256((large / SINGLE_FILE).read_bytes()).hexdigest()}.incomplete"
        part.write_bytes(bytes(PIECE_BYTES))
        assert checkpoint.missing_bytes([SINGLE_FILE]) == remote - PIECE_BYTES
        with pytest.raises(CheckpointBroken, match="promises"):
            checkpoint.fetch([SINGLE_FILE])
        assert not part.exists()
        checkpoint.fetch([SINGLE_FILE])


def test_a_gated_repository(checkpoint_of: Callable[[str], Path], cache: Path) -> None:
    with serve(checkpoint_of("llama"), token=TOKEN, gated=True) as hub:
        with pytest.raises(AccessDenied, match=REPO) as refusal:
            open_from(hub, cache)
        assert "HF_TOKEN" in refusal.value.remedy()


def test_what_is_not_there(checkpoint_of: Callable[[str], Path], cache: Path) -> None:
    with serve(checkpoint_of("llama")) as hub:
        with pytest.raises(CheckpointNotFound, match="no repository"):
            Checkpoint.open("somebody/else", cache_dir=cache, endpoint=hub.address)
        with pytest.raises(CheckpointNotFound, match="'v7'"):
            open_from(hub, cache, "v7")


def test_a_repository_without_safetensors(checkpoint_of: Callable[[str], Path], cache: Path, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "config.json").write_bytes((checkpoint_of("llama") / "config.json").read_bytes())
    with serve(tmp_path / "repo") as hub, pytest.raises(CheckpointNotFound):
        _ = open_from(hub, cache).weight_map


def test_a_hub_that_is_down_or_gone(checkpoint_of: Callable[[str], Path], cache: Path) -> None:
    with serve(checkpoint_of("llama"), down=True) as hub:
        with pytest.raises(HubUnreachable, match="503"):
            open_from(hub, cache)
        hub.down = False
        open_from(hub, cache)
    with pytest.raises(HubUnreachable) as refusal:
        load(open_from(hub, cache), 0, 2)  # the small files are in the cache, the weights are not
    assert "network" in refusal.value.remedy()


def test_what_is_in_the_cache_needs_no_hub(checkpoint_of: Callable[[str], Path], cache: Path) -> None:
    with serve(checkpoint_of("llama")) as hub:
        load(open_from(hub, cache), 2, 4)
    load(open_from(hub, cache), 2, 4)


def test_too_little_disk_is_said_before_anything_is_downloaded(
    checkpoint_of: Callable[[str], Path], cache: Path
) -> None:
    folder = checkpoint_of("llama")
    with serve(folder) as hub:
        checkpoint = open_from(hub, cache)
        anatomy = study(checkpoint)
        three = sum((folder / file).stat().st_size for file in files_of(checkpoint, anatomy, 0, 3))
        with pytest.raises(NotEnoughDisk) as refusal:
            require_disk(checkpoint, anatomy, 0, BLOCKS, free_bytes=three + 10)
        assert refusal.value.fits == (0, 3)
        assert all(word in refusal.value.remedy() for word in ("0:3", "HF_HOME"))
        assert all(str(number) in str(refusal.value) for number in (three + 10, refusal.value.needed_bytes))
        require_disk(checkpoint, anatomy, 0, 3, free_bytes=three)

        hub.sizes = {file.name: 1 << 60 for file in folder.glob("*.safetensors")}
        with pytest.raises(NotEnoughDisk):
            load(open_from(hub, cache), 0, BLOCKS)
        assert not weights(hub.served)


def test_too_little_memory_is_said_before_anything_is_downloaded(
    checkpoint_of: Callable[[str], Path], cache: Path
) -> None:
    with serve(checkpoint_of("llama")) as hub:
        with pytest.raises(NotEnoughMemory):
            Span.load(open_from(hub, cache), 0, 2, device=CPU, dtype=torch.float32, kv_bytes=1 << 60)
        assert not weights(hub.served)


def test_a_local_folder_is_used_where_it_lies(checkpoint_of: Callable[[str], Path]) -> None:
    checkpoint = Checkpoint.open(checkpoint_of("llama"))
    require_disk(checkpoint, study(checkpoint), 0, BLOCKS, free_bytes=0)


NODE = ("start", "--json", "--dht", "off", "--listen", "127.0.0.1:0", "--model", REPO)


def run_node(hub: FakeHub, tmp_path: Path, *arguments: str, token: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": token}
    command = [sys.executable, "-m", "swarm_node", *NODE, "--data-dir", str(tmp_path / "node"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_the_token_comes_from_the_environment_and_goes_to_the_hub_alone(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    with serve(checkpoint_of("llama")) as store, serve(checkpoint_of("llama"), token=TOKEN, gated=True) as hub:
        hub.elsewhere = store.address
        refused = run_node(hub, tmp_path, "--blocks", "2:4", "--kv-memory", "1KiB", token="hf_wrong")
        assert json.loads(refused.stdout.splitlines()[-1])["error"] == "access_denied"

        ran = run_node(hub, tmp_path, "--blocks", "2:4", "--kv-memory", "1KiB", "--dtype", "float32", token=TOKEN)
        events = [json.loads(line) for line in ran.stdout.splitlines()]
        assert events[-1]["error"] == "kv_pool_too_small"  # that far it came: the span was loaded
        fetched = [event for event in events if event["event"] == "progress" and event["stage"] == "fetch"]
        assert fetched[-1]["done_bytes"] == fetched[-1]["total_bytes"] == sum(weights(store.served).values())
        assert hub.tokens == {TOKEN, "hf_wrong"}
        assert store.tokens == set()
        assert TOKEN not in ran.stdout + ran.stderr
        assert "hf_wrong" not in refused.stdout + refused.stderr
