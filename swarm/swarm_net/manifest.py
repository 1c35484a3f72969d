"""What exactly is meant by a model: the digests of its small files, its sizes, and a fingerprint of its weights.

Owns the manifest, whose SHA-256 is the model's `revision`, and the check of a file against it. A node makes the
manifest of the directory that it serves from; a client fetches it from any node and needs to trust none: the manifest
is checked against the revision, each file against the manifest. Loading weights is not done here, nor is torch or
safetensors imported.

The fingerprint reads a few samples of each tensor, spread evenly: at most 4096, of any checkpoint. So directories
with one configuration and other weights get other revisions, though not for a change that hides between the samples:
against that, nodes publish full digests of their blocks, and no route mixes blocks that differ. A checkpoint from the
hub is named by its commit instead, because a node downloads only the shards that its span needs.
"""

import json
import os
from collections.abc import Iterator
from hashlib import sha256
from io import FileIO
from math import prod
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from swarm_net.errors import BadManifest
from swarm_net.records import MAX_BLOCKS

SCHEMA = 1
MAX_MANIFEST_BYTES = 64 * 1024
MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_HEADER_BYTES = 64 * 1024 * 1024
MAX_TENSORS = 1_000_000
SAMPLES = 4096  # of all tensors together, at least one each
SAMPLES_PER_TENSOR = 16
SAMPLE_BYTES = 128

SERVED_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
)

_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
}

ShortText = Annotated[str, Meta(max_length=128)]
Hex = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Size = Annotated[int, Meta(ge=0, le=2**40)]


class Manifest(Struct, kw_only=True, frozen=True):
    """A model revision. `weights` is the fingerprint, empty where `commit` (of the hub) names the weights."""

    schema: Size = SCHEMA
    model_type: ShortText
    architectures: Annotated[tuple[ShortText, ...], Meta(max_length=8)]
    num_blocks: Annotated[int, Meta(ge=1, le=MAX_BLOCKS)]
    vocab_size: Size
    hidden_size: Size
    max_position: Size  # 0: the configuration sets no limit
    eos_token_ids: Annotated[tuple[Size, ...], Meta(max_length=64)]
    files: Annotated[dict[ShortText, Hex], Meta(max_length=len(SERVED_FILES))]
    weights: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")]
    commit: Annotated[str, Meta(pattern="^([0-9a-f]{40}|[0-9a-f]{64})?$")]

    def encode(self) -> bytes:
        """Return the one encoding that the revision is the digest of."""
        return msgspec.json.encode(self, order="sorted")

    @property
    def revision(self) -> str:
        return sha256(self.encode()).hexdigest()


_decode = msgspec.json.Decoder(Manifest).decode


def open_manifest(data: bytes, revision: str) -> Manifest:
    """Return the manifest that these bytes are; raises BadManifest if they are not that of the revision."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BadManifest(model=revision, reason=f"its manifest has {len(data)} bytes, at most {MAX_MANIFEST_BYTES}")
    if sha256(data).hexdigest() != revision:
        raise BadManifest(model=revision, reason="the manifest received is of another revision")
    try:
        return _decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadManifest(model=revision, reason=f"its manifest is malformed: {error}") from error


def verify_file(manifest: Manifest, name: str, data: bytes | bytearray | memoryview) -> None:
    """Raise BadManifest unless `data` is the file of this name."""
    if name not in manifest.files:
        raise BadManifest(model=manifest.revision, reason=f"it has no file {name!a}")
    if sha256(data).hexdigest() != manifest.files[name]:
        raise BadManifest(model=manifest.revision, reason=f"{name} received is not the one of this revision")


def manifest_of(directory: Path, *, commit: str = "") -> Manifest:
    """Return the manifest of a checkpoint directory: config.json, tokenizer files, *.safetensors.

    With the hub's `commit` the weights are named by it and not read. Blocks on the disk: call it in a thread. Raises
    BadManifest, naming the file, for a directory that is not a checkpoint, lacks files or has corrupted ones.
    """
    if not (directory / "config.json").is_file():
        raise BadManifest(model=str(directory), reason="no config.json there: not a model's directory")
    contents = {name: _read_small(directory / name) for name in SERVED_FILES if (directory / name).is_file()}
    config = _json_object(contents["config.json"], directory / "config.json")
    generation = _json_object(contents.get("generation_config.json", b"{}"), directory / "generation_config.json")
    text = config.get("text_config")
    text = {**config, **text} if isinstance(text, dict) else config
    fields: dict[str, object] = {
        "schema": SCHEMA,
        "model_type": config.get("model_type", ""),
        "architectures": config.get("architectures") or (),
        "num_blocks": _first(text, "num_hidden_layers", "n_layer", "num_layers", "n_layers"),
        "vocab_size": _first(text, "vocab_size"),
        "hidden_size": _first(text, "hidden_size", "n_embd", "d_model"),
        "max_position": _first(text, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
        "eos_token_ids": _ids(generation.get("eos_token_id", text.get("eos_token_id"))),
        "files": {name: sha256(content).hexdigest() for name, content in contents.items()},
        "weights": "" if commit else _fingerprint(directory),
        "commit": commit,
    }
    try:
        return msgspec.convert(fields, Manifest)
    except msgspec.ValidationError as error:
        raise BadManifest(model=str(directory), reason=f"its configuration is not usable: {error}") from error


# -- configuration ---------------------------------------------------------------------------------------------------


def _read_small(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadManifest(model=str(path), reason=f"cannot be read: {error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise BadManifest(model=str(path), reason=f"larger than {MAX_FILE_BYTES >> 20} MiB")
    return content


def _json_object(content: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadManifest(model=str(path), reason=f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadManifest(model=str(path), reason="not a JSON object")
    return value


def _first(config: dict[str, Any], *names: str) -> object:
    """Return the first of these settings that is there: families call one thing by several names."""
    return next((config[name] for name in names if config.get(name) is not None), 0)


def _ids(value: object) -> object:
    if value is None:
        return ()
    return value if isinstance(value, list) else (value,)


# -- weights ---------------------------------------------------------------------------------------------------------


class _Tensor(Struct, frozen=True):
    name: str
    dtype: str
    shape: tuple[int, ...]
    file: int  # index of the shard
    offset: int  # in the file
    size: int  # bytes


def _fingerprint(directory: Path) -> str:
    """Digest names, types, shapes and samples of all tensors, however they are divided into files."""
    shards = _shards(directory)
    tensors: dict[str, _Tensor] = {}
    for number, shard in enumerate(shards):
        for tensor in _tensors(shard, number):
            if tensor.name in tensors:
                raise BadManifest(model=str(shard), reason=f"{tensor.name!a} is in several files")
            tensors[tensor.name] = tensor
            if len(tensors) > MAX_TENSORS:
                raise BadManifest(model=str(directory), reason=f"more than {MAX_TENSORS} tensors")
    digest = sha256()
    samples = min(SAMPLES_PER_TENSOR, max(1, SAMPLES // max(1, len(tensors))))
    sampled: dict[str, bytes] = {}
    for number, shard in enumerate(shards):
        own = sorted((tensor for tensor in tensors.values() if tensor.file == number), key=lambda tensor: tensor.offset)
        try:
            with shard.open("rb", buffering=0) as file:
                if hasattr(os, "posix_fadvise"):  # or each sample drags 128 KiB of read-ahead along
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                sampled.update({tensor.name: sha256(_sample(file, tensor, samples)).digest() for tensor in own})
        except OSError as error:
            raise BadManifest(model=str(shard), reason=f"cannot be read: {error}") from error
    for name, tensor in sorted(tensors.items()):
        head = json.dumps([name, tensor.dtype, tensor.shape]).encode()
        digest.update(len(head).to_bytes(4, "little") + head + sampled[name])
    return digest.hexdigest()


def _shards(directory: Path) -> list[Path]:
    """Return the weight files that the index names; other files beside them are not part of the model."""
    index = directory / "model.safetensors.index.json"
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"]
    if not index.is_file():
        raise BadManifest(model=str(directory), reason="no model.safetensors and no index of shards there")
    weight_map = _json_object(_read_small(index), index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadManifest(model=str(index), reason="it has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise BadManifest(model=str(index), reason=f"it names {name!a}, which is not a weights file beside it")
        if not (directory / name).is_file():
            raise BadManifest(model=str(directory), reason=f"{name} is missing, though the index names it")
    return [directory / name for name in names]


def _tensors(shard: Path, number: int) -> Iterator[_Tensor]:
    """Yield the tensors of a safetensors file: 8 bytes little-endian header length, a JSON header, data."""
    try:
        file_size = shard.stat().st_size
        with shard.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if file_size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, file_size - 8):
                raise BadManifest(model=str(shard), reason="corrupted: its header has an impossible length")
            header = _json_object(file.read(length), shard)
    except OSError as error:
        raise BadManifest(model=str(shard), reason=f"cannot be read: {error}") from error
    data = 8 + length
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            described = msgspec.convert(entry, _Entry)
        except msgspec.ValidationError as error:
            raise BadManifest(model=str(shard), reason=f"corrupted: tensor {name!a}: {error}") from error
        begin, end = described.data_offsets
        if not begin <= end <= file_size - data:
            raise BadManifest(model=str(shard), reason=f"truncated or corrupted: tensor {name!a} lies outside of it")
        bits = _BITS.get(described.dtype)
        if bits is not None and prod(described.shape) * bits != (end - begin) * 8:
            raise BadManifest(model=str(shard), reason=f"corrupted: tensor {name!a} has another size than its shape")
        yield _Tensor(name, described.dtype, described.shape, number, data + begin, end - begin)


class _Entry(Struct):
    dtype: ShortText
    shape: Annotated[tuple[Size, ...], Meta(max_length=16)]
    data_offsets: tuple[Annotated[int, Meta(ge=0, le=2**62)], Annotated[int, Meta(ge=0, le=2**62)]]


def _sample(file: FileIO, tensor: _Tensor, samples: int) -> bytes:
    """Return `samples` stretches of a tensor, the first and the last bytes among them; all of a small one."""
    if tensor.size <= samples * SAMPLE_BYTES:
        return _exactly(file, tensor.offset, tensor.size)
    last = tensor.size - SAMPLE_BYTES
    places = [last * number // (samples - 1) for number in range(samples)] if samples > 1 else [last // 2]
    return b"".join(_exactly(file, tensor.offset + place, SAMPLE_BYTES) for place in places)


def _exactly(file: FileIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise OSError("the file became shorter while it was read")
    return data
