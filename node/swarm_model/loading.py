"""Weights of one span, from safetensors files into a pruned transformers model, in the wanted dtype, on one device.

transformers' loader does the renaming, the fusing of experts, the tying and the casts; it is given only the tensors
that the span needs, each read when its turn comes. Owns the order of work that keeps at most two copies of the span in
memory: the loader's result may still be pages of the mapped files, and is moved into memory of our own piece by piece.
Called by span.py.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging as transformers_logging

import swarm_model.transformers_version  # noqa: F401
from swarm_model.checkpoint import Checkpoint
from swarm_model.errors import CheckpointBroken
from swarm_model.linears import PackedLinear
from swarm_model.skeleton import Anatomy, Hole, NoEmbedding, span_class
from swarm_model.tensor_files import TensorInfo

NAMED: Final = 3  # missing tensors that an error names


class LazyTensor:
    """A tensor of a checkpoint that is read when transformers' loader asks for it with `[...]`."""

    def __init__(self, file: Any, info: TensorInfo, on_bytes: Callable[[int], None]) -> None:
        self._file, self._info, self._on_bytes = file, info, on_bytes

    def __getitem__(self, index: Any) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_slice(self._info.name)[index]
        self._on_bytes(self._info.end - self._info.start)
        return tensor


def load_model(
    checkpoint: Checkpoint,
    anatomy: Anatomy,
    start: int,
    end: int,
    *,
    dtype: torch.dtype,
    on_bytes: Callable[[int], None],
) -> Any:
    """Build blocks `start` to `end` with their edges on the CPU and fill in their weights.

    `on_bytes` hears of every tensor read, from several threads in turn. The weights may be mapped files: see
    `own_weights`. Raises CheckpointBroken.
    """
    names = anatomy.tensors(start, end)
    lock = threading.Lock()

    def count(size: int) -> None:
        with lock:
            on_bytes(size)

    try:
        files = {
            file: safe_open(str(checkpoint.directory / file), "pt")
            for file in {checkpoint.weight_map[name] for name in names}
        }
        state = {
            name: LazyTensor(files[checkpoint.weight_map[name]], checkpoint.tensors[name], count) for name in names
        }
        with _quiet():
            model, report = span_class(anatomy, start, end).from_pretrained(
                None,
                config=checkpoint.config,
                state_dict=state,
                dtype=dtype,
                attn_implementation="eager",
                output_loading_info=True,
            )
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointBroken(str(checkpoint.directory), str(error).strip().splitlines()[-1]) from error
    _check_report(checkpoint.directory, report)
    return model.eval().requires_grad_(False)


def own_weights(model: nn.Module, device: torch.device) -> None:
    """Copy every weight off the mapped files, one after the other, and onto `device`; tied weights stay tied."""
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()] if not tensor.is_meta}
    for tensor in tensors.values():
        tensor.data = tensor.data.to(device, copy=True)


def drop_unused_embedding(model: nn.Module, anatomy: Anatomy, start: int) -> None:
    """Let go of an embedding that was kept only because the head is tied to it, where the head has its own copy now."""
    for name, edges in anatomy.edges.items():
        module = model.get_submodule(name)
        if edges.first and start > 0 and isinstance(module, nn.Embedding):
            model.set_submodule(name, NoEmbedding(module.embedding_dim))


def weight_bytes(model: nn.Module) -> int:
    """Sum the bytes of a model's weights, packed ones included, each tensor once."""
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()] if not tensor.is_meta}
    packed = [module.packed for module in model.modules() if isinstance(module, PackedLinear)]
    return sum(tensor.numel() * tensor.element_size() for tensor in [*tensors.values(), *packed])


def owned_blocks(model: nn.Module, anatomy: Anatomy) -> list[nn.Module]:
    return [block for block in model.get_submodule(anatomy.blocks).children() if not isinstance(block, Hole)]


def _check_report(directory: Path, report: dict[str, Any]) -> None:
    missing = sorted(report["missing_keys"])
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise CheckpointBroken(str(directory), f"weights are missing: {', '.join(missing[:NAMED])}{more}")
    if report.get("mismatched_keys"):
        name = sorted(str(entry) for entry in report["mismatched_keys"])[0]
        raise CheckpointBroken(str(directory), f"shapes do not fit config.json: {name}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' own progress bars and notes off the terminal: callers show their own progress."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
