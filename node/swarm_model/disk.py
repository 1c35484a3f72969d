"""Whether a span's files fit on the disk that they are downloaded to, before a byte of them is asked for.

Called by span.py while a span is loaded. A local folder's files are used where they lie, and need nothing.
"""

from swarm_model.checkpoint import Checkpoint
from swarm_model.errors import NotEnoughDisk
from swarm_model.skeleton import Anatomy


def files_of(checkpoint: Checkpoint, anatomy: Anatomy, start: int, end: int) -> set[str]:
    """Name the files that hold the tensors of blocks `start` to `end` and of their edges."""
    return {checkpoint.weight_map[name] for name in anatomy.tensors(start, end)}


def require_disk(checkpoint: Checkpoint, anatomy: Anatomy, start: int, end: int, *, free_bytes: int) -> None:
    """Raise NotEnoughDisk, naming a span that fits, unless what is missing of a span's files fits into `free_bytes`."""
    needed = checkpoint.missing_bytes(files_of(checkpoint, anatomy, start, end))
    if needed <= free_bytes:
        return
    fits = None
    for smaller in range(start + 1, end):
        files = files_of(checkpoint, anatomy, start, smaller)
        if sum(checkpoint.file_bytes(file) for file in files if not checkpoint.has(file)) > free_bytes:
            break
        fits = (start, smaller)
    raise NotEnoughDisk((start, end), needed, free_bytes, str(checkpoint.directory), fits)
