"""Checkpoints that are whole, and all the ways in which they are not."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from swarm_model.checkpoint import INDEX_FILE, Checkpoint
from swarm_model.errors import (
    CheckpointBroken,
    CheckpointNotFound,
    ConfigMissing,
    HubUnreachable,
    KVPoolTooSmall,
    ModelError,
    NotEnoughMemory,
    SpanOutsideModel,
    UnsupportedModel,
)
from swarm_model.sizing import kv_bytes_per_token, require_memory, weight_sizes, widest_span
from swarm_model.skeleton import study
from swarm_model.span import LoadProgress, Span
from tests.model.families import BLOCKS, CPU, FAMILIES, LONGEST, load_spans, make_checkpoint
from tests.model.quantized_checkpoints import change_tensors


@pytest.fixture
def folder(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """A Llama of its own, to be broken."""
    return Path(shutil.copytree(checkpoint_of("llama"), tmp_path / "llama"))


def load(folder: Path, start: int = 0, end: int = BLOCKS) -> Span:
    return load_spans(folder, [start, end])[0]


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def shards_of(folder: Path, block: int) -> set[str]:
    index = json.loads((folder / INDEX_FILE).read_text())["weight_map"]
    return {file for name, file in index.items() if f"layers.{block}." in name}


def test_a_whole_checkpoint_says_what_it_is(folder: Path) -> None:
    checkpoint = Checkpoint.open(str(folder))
    assert (checkpoint.num_blocks, checkpoint.max_position, checkpoint.family) == (BLOCKS, LONGEST, "llama")
    assert set(checkpoint.tensors) == set(checkpoint.weight_map)
    assert checkpoint.revision == Checkpoint.open(folder).revision


def test_the_revision_pins_config_tokenizer_and_tensor_names(folder: Path) -> None:
    before = Checkpoint.open(folder).revision
    (folder / "tokenizer.json").write_text("{}")
    with_tokenizer = Checkpoint.open(folder).revision
    change_config(folder, rms_norm_eps=1e-3)
    assert len({before, with_tokenizer, Checkpoint.open(folder).revision}) == 3


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="no such folder"):
        Checkpoint.open(tmp_path / "nowhere")


def test_a_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachable, match="out of reach") as refusal:
        Checkpoint.open("nobody/nothing", cache_dir=tmp_path)
    assert "network" in refusal.value.remedy()


def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigMissing):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00\xff"])
def test_a_configuration_that_is_no_json_object(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointBroken, match=r"config\.json"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("blocks", [0, -1, "six", 10**9, None])
def test_a_configuration_with_a_wild_number_of_blocks(blocks: object, folder: Path) -> None:
    change_config(folder, num_hidden_layers=blocks)
    with pytest.raises(CheckpointBroken):
        _ = Checkpoint.open(folder).num_blocks


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (2, 2), (3, 2), (0, BLOCKS + 1), (BLOCKS, BLOCKS + 1)])
def test_a_span_outside_the_model(start: int, end: int, folder: Path) -> None:
    with pytest.raises(SpanOutsideModel) as refusal:
        load(folder, start, end)
    assert str(BLOCKS) in refusal.value.remedy()


def test_a_family_that_transformers_does_not_have(folder: Path) -> None:
    change_config(folder, model_type="no_such_family")
    with pytest.raises(UnsupportedModel, match="no_such_family"):
        load(folder)


def test_code_in_a_checkpoint_is_never_run(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    change_config(folder, model_type="evil", auto_map=auto_map)
    with pytest.raises(UnsupportedModel):
        load(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    for file in [*folder.glob("*.safetensors"), folder / INDEX_FILE]:
        file.unlink()
    with pytest.raises(CheckpointBroken):
        load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsupportedModel, match="pickled"):
        load(folder)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def garbled_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8:40] = bytes(32)
    path.write_bytes(content)


def huge_header(path: Path) -> None:
    path.write_bytes((2**63).to_bytes(8, "little") + path.read_bytes()[8:])


def lying_shapes(path: Path) -> None:
    header_bytes = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + header_bytes])
    next(entry for name, entry in header.items() if name != "__metadata__")["shape"] = [1 << 40, 1 << 40]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + path.read_bytes()[8 + header_bytes :])


@pytest.mark.parametrize("damage", [Path.unlink, truncated, emptied, garbled_header, huge_header, lying_shapes])
def test_a_damaged_shard_is_named(damage: Callable[[Path], None], folder: Path) -> None:
    shard = sorted(shards_of(folder, 2))[0]
    damage(folder / shard)
    with pytest.raises(CheckpointBroken) as refusal:
        load(folder)
    assert refusal.value.file == shard
    assert shard in refusal.value.remedy()


def test_an_index_that_leads_out_of_the_folder_is_refused(folder: Path) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    index["weight_map"]["model.norm.weight"] = "../../secrets.safetensors"
    (folder / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(CheckpointBroken, match="secrets"):
        load(folder)


def test_missing_and_misshapen_tensors_are_named(folder: Path) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    whole = json.dumps(index)
    del index["weight_map"]["model.layers.1.mlp.up_proj.weight"]
    (folder / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(CheckpointBroken, match=r"layers\.1\.mlp\.up_proj"):
        load(folder)
    (folder / INDEX_FILE).write_text(whole)
    change_config(folder, intermediate_size=100)
    with pytest.raises(CheckpointBroken, match=r"mlp\.down_proj\.weight is \[64, 96\], .* should be \[64, 100\]"):
        load(folder)


def test_a_missing_part_of_what_is_merged_is_named(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_of("mixtral"), tmp_path / "mixtral"))
    lost = next(name for name in Checkpoint.open(folder).weight_map if "layers.2." in name and "experts.1.w3" in name)
    change_tensors(folder, lambda name, tensor: {} if name == lost else {name: tensor})
    with pytest.raises(CheckpointBroken, match=re.escape(f"weights are missing: {lost}")):
        load(folder)
    change_tensors(folder, lambda name, tensor: {} if "layers.2." in name and "experts.1." in name else {name: tensor})
    with pytest.raises(CheckpointBroken, match=r"layers\.2\..*experts.* is \[3, .* should be \[4, "):
        load(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_block_digests_cover_every_tensor(family: str, checkpoint_of: Callable[[str], Path]) -> None:
    checkpoint = Checkpoint.open(checkpoint_of(family))
    anatomy = study(checkpoint)
    covered = {name for block in range(BLOCKS) for name in anatomy.digest_tensors(block)}
    assert covered == set(checkpoint.weight_map)


def test_a_span_reads_only_the_files_it_needs(folder: Path) -> None:
    needed = {file for block in (2, 3) for file in shards_of(folder, block)}
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.tensors  # the headers of all files are read for sizes; their weights are not
    for file in folder.glob("*.safetensors"):
        if file.name not in needed:
            file.unlink()
    progress: list[LoadProgress] = []

    span = Span.load(checkpoint, 2, 4, device=CPU, dtype=torch.float32, kv_bytes=1 << 20, on_progress=progress.append)

    assert (span.info.start, span.info.end) == (2, 4)
    assert list(dict.fromkeys(report.stage for report in progress)) == ["read", "digest"]
    assert all(reports[-1].done == reports[-1].total for reports in _by_stage(progress).values())


def _by_stage(progress: list[LoadProgress]) -> dict[str, list[LoadProgress]]:
    return {stage: [report for report in progress if report.stage == stage] for stage in ("read", "digest")}


def test_digests_tell_weights_apart_and_do_not_depend_on_the_cut(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint_of("gemma2")
    whole = load(folder).info.block_digests
    parts = [digest for span in load_spans(folder, [0, 2, 5, BLOCKS]) for digest in span.info.block_digests]
    other = load(make_checkpoint("gemma2", tmp_path, seed=2)).info.block_digests

    assert list(whole) == parts
    assert len(set(whole + other)) == 2 * BLOCKS
    assert all(len(digest) == 8 for digest in whole)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("start", "end"), [(0, 2), (2, 4), (4, BLOCKS), (0, BLOCKS)])
def test_estimates_are_what_is_loaded(family: str, start: int, end: int, checkpoint_of: Callable[[str], Path]) -> None:
    checkpoint = Checkpoint.open(checkpoint_of(family))
    info = load(checkpoint_of(family), start, end).info
    assert info.kv_bytes_per_token == kv_bytes_per_token(checkpoint, start, end, "float32")
    estimate = weight_sizes(checkpoint, "float32").span(start, end)
    tied = checkpoint.config.tie_word_embeddings and (start, end) == (0, BLOCKS)
    copies = weight_sizes(checkpoint, "float32").first_edge if tied else 0  # packing unties the head
    assert estimate <= info.weight_bytes <= (estimate + copies) * 1.02


def test_too_little_memory_names_a_span_that_fits(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    sizes = weight_sizes(checkpoint, "bfloat16")
    available = sizes.span(0, 3) + 1000
    with pytest.raises(NotEnoughMemory) as refusal:
        require_memory(checkpoint, 0, BLOCKS, "bfloat16", kv_bytes=500, available_bytes=available)
    assert refusal.value.fits == (0, 3)
    assert "0:3" in refusal.value.remedy()
    assert widest_span(sizes, 5, 10) is None
    with pytest.raises(NotEnoughMemory):
        Span.load(checkpoint, 0, 2, device=CPU, dtype=torch.float32, kv_bytes=1 << 60)


def test_a_pool_without_room_for_one_page(folder: Path) -> None:
    with pytest.raises(KVPoolTooSmall) as refusal:
        load_spans(folder, [0, 2], kv_bytes=100)
    assert isinstance(refusal.value, ModelError)
    assert refusal.value.page_bytes == 4 * 2 * 2 * 2 * 16 * 4
