"""What stands in a safetensors file: names, types, shapes and places of its tensors, without reading a weight.

Owns the check of a file's header against its size: a truncated or garbled file is found here, before anybody maps it.
Reading the weights themselves is transformers' work. Called by checkpoint.py, hub.py and digests.py. No torch.

Format: https://huggingface.co/docs/safetensors, section "Format".
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

from swarm_model.errors import CheckpointBroken

HEADER_LENGTH_BYTES: Final = 8
MAX_HEADER_BYTES: Final = 100_000_000  # the limit of the safetensors library itself
DTYPE_BITS: Final = {
    **dict.fromkeys(("F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("BF16", "F16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    "F4": 4,
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint; `start` and `end` are byte offsets from the beginning of its file."""

    name: str
    file: str
    dtype: str  # as safetensors writes it: F32, BF16, ...
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        return prod(self.shape)


def read_tensor_infos(path: Path) -> dict[str, TensorInfo]:
    """Read and check the header of one safetensors file.

    Returns the tensors by name. Raises CheckpointBroken if the file is missing, truncated, or its header is not sound.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(HEADER_LENGTH_BYTES)
            start += file.read(header_bytes(path.name, start, size=size))
    except OSError as error:
        raise CheckpointBroken(path.name, error.strerror or str(error)) from error
    infos = tensor_infos(path.name, start)
    end = max((info.end for info in infos.values()), default=len(start))
    if end != size:
        raise CheckpointBroken(path.name, f"{end} bytes promised by its header, {size} found")
    return infos


def header_bytes(file: str, start: bytes, *, size: int | None) -> int:
    """Read how long a file's header is, from the file's first bytes; `size` is the file's, where it is known.

    Raises CheckpointBroken.
    """
    length = int.from_bytes(start[:HEADER_LENGTH_BYTES], "little")
    most = MAX_HEADER_BYTES if size is None else min(MAX_HEADER_BYTES, size - HEADER_LENGTH_BYTES)
    if len(start) < HEADER_LENGTH_BYTES or length > most:
        raise CheckpointBroken(file, f"not a safetensors file, or cut off in its header ({size or len(start)} bytes)")
    return length


def tensor_infos(file: str, start: bytes) -> dict[str, TensorInfo]:
    """Read the tensors that a file's beginning, up to the end of its header, describes. Raises CheckpointBroken."""
    try:
        header = json.loads(start[HEADER_LENGTH_BYTES:])
    except ValueError as error:
        raise CheckpointBroken(file, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise CheckpointBroken(file, "its header is not a table of tensors")
    return {
        name: _tensor_info(file, name, entry, base=len(start))
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _tensor_info(file: str, name: str, entry: object, base: int) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]}:
            pass
        case _:
            raise CheckpointBroken(file, f"the header's entry for {name} is malformed")
    dimensions = tuple(size for size in shape if isinstance(size, int) and size >= 0)
    bits = DTYPE_BITS.get(dtype)
    if len(dimensions) != len(shape) or bits is None or not 0 <= start <= end:
        raise CheckpointBroken(file, f"the header's entry for {name} is malformed")
    if (end - start) * 8 != prod(dimensions) * bits:
        raise CheckpointBroken(file, f"{name}: {end - start} bytes do not hold {list(dimensions)} values of {dtype}")
    return TensorInfo(name, file, dtype, dimensions, base + start, base + end)
