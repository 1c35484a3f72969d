"""Manifests of real and of broken checkpoint directories, without torch or safetensors."""

import json
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from subprocess import run
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_net.errors import BadManifest
from swarm_net.manifest import MAX_MANIFEST_BYTES, Manifest, manifest_of, open_manifest, verify_file

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
}
WEIGHTS = {"a.weight": bytes(range(256)) * 64, "b.weight": bytes(8), "c.weight": b"\1" * 40_000}


def safetensors(tensors: dict[str, bytes], **header_changes: Any) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps({**header, **header_changes}).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(tensors.values())


def checkpoint(directory: Path, weights: dict[str, bytes] = WEIGHTS, **config: Any) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(safetensors(weights))
    return directory


def test_what_a_manifest_says(tmp_path: Path) -> None:
    manifest = manifest_of(checkpoint(tmp_path))
    assert (manifest.model_type, manifest.num_blocks, manifest.hidden_size) == ("llama", 4, 64)
    assert (manifest.vocab_size, manifest.max_position, manifest.eos_token_ids) == (256, 512, (2,))
    assert set(manifest.files) == {"config.json", "tokenizer.json"}
    assert manifest.files["tokenizer.json"] == sha256(b"{}").hexdigest()
    assert open_manifest(manifest.encode(), manifest.revision) == manifest
    assert len(manifest.encode()) < 2048


def test_golden_revision(tmp_path: Path) -> None:
    # A revision that changes makes every running swarm another one: SCHEMA has to change with it.
    assert (
        manifest_of(checkpoint(tmp_path)).revision == "32fd8da3c79b7b0562063751916d53986a6179ef7af6a09e1ee69e3785ca4657"
    )


def test_configurations_in_other_words(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "n_layer": 3, "n_embd": 32, "n_positions": 128, "vocab_size": 50})
    )
    (tmp_path / "model.safetensors").write_bytes(safetensors(WEIGHTS))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    manifest = manifest_of(tmp_path)
    assert (manifest.num_blocks, manifest.hidden_size, manifest.max_position) == (3, 32, 128)
    assert manifest.eos_token_ids == (7, 9)

    nested = {"model_type": "gemma3", "vocab_size": 1, "text_config": CONFIG}
    (tmp_path / "config.json").write_text(json.dumps(nested))
    assert (manifest_of(tmp_path).num_blocks, manifest_of(tmp_path).vocab_size) == (4, 256)


@pytest.mark.parametrize("name", list(WEIGHTS))
def test_other_weights_are_another_revision(tmp_path: Path, name: str) -> None:
    original = manifest_of(checkpoint(tmp_path))
    changed = bytes(value ^ 255 for value in WEIGHTS[name])
    assert manifest_of(checkpoint(tmp_path, {**WEIGHTS, name: changed})).revision != original.revision
    renamed = {f"x.{key}" if key == name else key: value for key, value in WEIGHTS.items()}
    assert manifest_of(checkpoint(tmp_path, renamed)).revision != original.revision


def test_another_configuration_is_another_revision(tmp_path: Path) -> None:
    original = manifest_of(checkpoint(tmp_path))
    assert manifest_of(checkpoint(tmp_path, rope_theta=1e6)).revision != original.revision


def test_files_may_be_cut_into_shards_and_lie_beside_others(tmp_path: Path) -> None:
    whole = manifest_of(checkpoint(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    index = {"weight_map": {name: f"{name[0]}.safetensors" for name in WEIGHTS}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, data in reversed(WEIGHTS.items()):
        (tmp_path / f"{name[0]}.safetensors").write_bytes(safetensors({name: data}))
    (tmp_path / "consolidated.safetensors").write_bytes(b"not part of it")
    assert manifest_of(tmp_path).revision == whole.revision


def test_a_commit_stands_for_weights_that_are_not_all_here(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    manifest = manifest_of(tmp_path, commit="c" * 40)
    assert (manifest.weights, manifest.commit) == ("", "c" * 40)
    assert manifest.revision != manifest_of(tmp_path, commit="d" * 40).revision


def _no_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def _config(text: str) -> Callable[[Path], None]:
    return lambda directory: (directory / "config.json").write_text(text) and None


def _weights(data: bytes) -> Callable[[Path], None]:
    return lambda directory: (directory / "model.safetensors").write_bytes(data) and None


def _index(weight_map: object) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return spoil


GOOD = safetensors(WEIGHTS)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_no_config, "no config.json"),
        (_config("{"), "not JSON"),
        (_config("[]"), "not a JSON object"),
        (_config("[" * 100_000), "not JSON"),
        (_config("{}"), "num_blocks"),
        (_config(json.dumps({**CONFIG, "num_hidden_layers": 10**9})), "num_blocks"),
        (_config(json.dumps({**CONFIG, "vocab_size": "many"})), "vocab_size"),
        (_config(json.dumps({**CONFIG, "architectures": [1]})), "architectures"),
        (_config(json.dumps({**CONFIG, "eos_token_id": {"a": 1}})), "eos_token_ids"),
        (_weights(b""), "impossible length"),
        (_weights(b"\xff" * 8), "impossible length"),
        (_weights((2**40).to_bytes(8, "little") + b"{}"), "impossible length"),
        (_weights(GOOD[:-1]), "truncated"),
        (_weights(GOOD[:40]), "impossible length"),
        (_weights((4).to_bytes(8, "little") + b"\xff\xff\xff\xff"), "not JSON"),
        (_weights(safetensors({}, x={"dtype": "U8", "shape": [4], "data_offsets": [0, 4]})), "outside"),
        (_weights(safetensors({"y": bytes(9)}, x={"dtype": "U8", "shape": [4], "data_offsets": [5, 3]})), "outside"),
        (_weights(safetensors({"y": bytes(9)}, x={"dtype": "F32", "shape": [4], "data_offsets": [0, 4]})), "size"),
        (_weights(safetensors({}, x={"dtype": "U8"})), "corrupted"),
        (_weights(safetensors({}, x=3)), "corrupted"),
        (_weights(safetensors({}, x={"dtype": "U8", "shape": [-1], "data_offsets": [0, 0]})), "corrupted"),
        (_index({}), "weight_map"),
        (_index({"a": "../../etc/passwd"}), "not a weights file"),
        (_index({"a": "sub/x.safetensors"}), "not a weights file"),
        (_index({"a": "model-2.safetensors"}), "model-2.safetensors is missing"),
    ],
)
def test_broken_directories_are_refused_with_the_cause(
    tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(checkpoint(tmp_path))
    with pytest.raises(BadManifest, match=reason):
        manifest_of(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    _index({"a": "1.safetensors", "b": "2.safetensors"})(checkpoint(tmp_path))
    for number in (1, 2):
        (tmp_path / f"{number}.safetensors").write_bytes(safetensors(WEIGHTS))
    with pytest.raises(BadManifest, match="several files"):
        manifest_of(tmp_path)


def test_the_cost_does_not_grow_with_the_weights(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    size = 10 * 1024**3
    header = json.dumps({"big": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:  # a sparse file: only holes are read
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
        plain = manifest_of(tmp_path).weights
        file.seek(8 + len(header) + size - 1)
        file.write(b"\1")
    assert manifest_of(tmp_path).weights != plain


def test_files_are_checked_against_the_manifest(tmp_path: Path) -> None:
    manifest = manifest_of(checkpoint(tmp_path))
    verify_file(manifest, "tokenizer.json", b"{}")
    with pytest.raises(BadManifest, match="not the one"):
        verify_file(manifest, "tokenizer.json", b"{ }")
    for name in ("model.safetensors", "../config.json", ""):
        with pytest.raises(BadManifest, match="no file"):
            verify_file(manifest, name, b"")


def test_a_manifest_from_a_stranger_is_checked(tmp_path: Path) -> None:
    manifest = manifest_of(checkpoint(tmp_path))
    with pytest.raises(BadManifest, match="another revision"):
        open_manifest(manifest.encode() + b" ", manifest.revision)
    for hostile in (b"[]", b"[" * 50_000, manifest.encode().replace(b'"num_blocks":4', b'"num_blocks":-4')):
        with pytest.raises(BadManifest, match="malformed"):
            open_manifest(hostile, sha256(hostile).hexdigest())
    long = bytes(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(BadManifest, match="at most"):
        open_manifest(long, sha256(long).hexdigest())


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_no_manifest(data: bytes) -> None:
    with pytest.raises(BadManifest):
        open_manifest(data, sha256(data).hexdigest())


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 400), value=st.integers(0, 255))
def test_a_damaged_header_is_refused_or_another_revision(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    directory = checkpoint(tmp_path_factory.mktemp("damaged"))
    data = bytearray(GOOD)
    header_end = 8 + int.from_bytes(data[:8], "little")
    data[place % header_end] = value
    (directory / "model.safetensors").write_bytes(data)
    try:
        manifest = manifest_of(directory)
    except BadManifest:
        return
    assert isinstance(manifest, Manifest)


def test_the_encoding_does_not_depend_on_order(tmp_path: Path) -> None:
    manifest = manifest_of(checkpoint(tmp_path))
    turned = msgspec.structs.replace(manifest, files=dict(reversed(manifest.files.items())))
    assert turned.revision == manifest.revision


def test_neither_torch_nor_safetensors_is_imported() -> None:
    code = "import sys, swarm_net.manifest; print({'torch', 'safetensors', 'numpy'} & set(sys.modules))"
    assert run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
