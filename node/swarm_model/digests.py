"""Eight bytes that tell one block's weights from any other's, so that two trainings of one model never share a route.

A pure function of the checkpoint's files: for each tensor of a block, in the order of names, its name, type, shape and
raw bytes. The first block's digest covers the embedding too, the last one's the final norm and the head, so that no
weight of the model is left out. Called by span.py when a span is loaded.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from swarm_model.errors import CheckpointBroken
from swarm_model.tensor_files import TensorInfo

DIGEST_BYTES: Final = 8
READ_BYTES: Final = 4 << 20


def block_digest(directory: Path, tensors: Sequence[TensorInfo], on_bytes: Callable[[int], None]) -> bytes:
    """Digest the tensors of one block; `on_bytes` hears of every piece read.

    Raises CheckpointBroken if a file ends too early.
    """
    digest = hashlib.sha256()
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        shape = ",".join(str(size) for size in tensor.shape)
        digest.update(f"{tensor.name}\0{tensor.dtype}\0{shape}\0".encode())
        with (directory / tensor.file).open("rb") as file:
            file.seek(tensor.start)
            left = tensor.end - tensor.start
            while left > 0:
                piece = file.read(min(left, READ_BYTES))
                if not piece:
                    raise CheckpointBroken(tensor.file, f"it ends within {tensor.name}")
                digest.update(piece)
                left -= len(piece)
                on_bytes(len(piece))
    return digest.digest()[:DIGEST_BYTES]
