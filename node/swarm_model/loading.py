"""Weights of one span, from safetensors files into a pruned transformers model, in the wanted dtype, on one device.

transformers' loader does the renaming, the fusing of experts, the tying and the casts; it is given only the tensors
that the span needs, each read when its turn comes. Files are read, not mapped: mapped pages would stay in memory beside
the weights cast from them, for as long as the file is open. Called by span.py.
"""

import copy
import ctypes
import mmap
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from transformers.utils import is_accelerate_available
from transformers.utils import logging as transformers_logging

import swarm_model.transformers_version  # noqa: F401
from swarm_model.checkpoint import Checkpoint
from swarm_model.errors import CheckpointBroken
from swarm_model.inference_linears import InferenceLinear
from swarm_model.skeleton import Anatomy, Hole, NoEmbedding, span_class
from swarm_model.tensor_files import TensorInfo

CPU: Final = torch.device("cpu")
COMPUTED: Final = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
PLAIN_CODE: Final = ("torch.nn.", "transformers.models.")  # where modules live that no quantizer has put in
NAMED: Final = 3  # tensors that an error names
IN_A_BLOCK: Final = re.compile(r"(.*\.\d+\..*\.)(\d+)(\..*)")  # a tensor of a numbered module of a numbered block


TORCH_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
}


class LazyTensor:
    """A tensor of a checkpoint that is read when transformers' loader asks for it with `[...]`."""

    def __init__(self, directory: Path, info: TensorInfo, on_bytes: Callable[[int], None]) -> None:
        if info.dtype not in TORCH_DTYPES:
            raise CheckpointBroken(info.file, f"{info.name} has the type {info.dtype}, which is not read")
        self._path, self._info, self._on_bytes = directory / info.file, info, on_bytes

    def get_dtype(self) -> str:
        """Name the type as safetensors does: transformers asks before it casts quantized weights."""
        return self._info.dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        info = self._info
        size = info.end - info.start
        if size == 0:
            return torch.empty(info.shape, dtype=TORCH_DTYPES[info.dtype])
        # Memory of its own goes back to the system when the tensor has been cast; malloc would keep it
        memory = mmap.mmap(-1, size)
        with self._path.open("rb", buffering=0) as file:
            file.seek(info.start)
            view, done = memoryview(memory)[:size], 0
            while done < size:
                if not (count := file.readinto(view[done:])):
                    raise CheckpointBroken(info.file, f"it ends within {info.name}")
                done += count
        self._on_bytes(size)
        tensor = torch.frombuffer(memory, dtype=TORCH_DTYPES[info.dtype], count=info.elements).view(info.shape)
        whole: torch.Tensor = tensor[index]
        return whole


def load_model(
    checkpoint: Checkpoint,
    anatomy: Anatomy,
    start: int,
    end: int,
    *,
    dtype: torch.dtype,
    on_bytes: Callable[[int], None],
    device: torch.device = CPU,
) -> Any:
    """Build blocks `start` to `end` with their edges and fill in their weights, each on its way straight to `device`.

    Without the package accelerate they come to rest in the CPU's memory first: `move_weights` moves them. `on_bytes`
    hears of every tensor read, from several threads in turn. Raises CheckpointBroken.
    """
    names = anatomy.tensors(start, end)
    lock = threading.Lock()

    def count(size: int) -> None:
        with lock:
            on_bytes(size)

    placement = {"device_map": {"": device}} if device.type != "cpu" and is_accelerate_available() else {}
    try:
        state = {name: LazyTensor(checkpoint.directory, checkpoint.tensors[name], count) for name in names}
        with _quiet():
            model, report = span_class(anatomy, start, end).from_pretrained(
                None,
                config=_config(checkpoint, anatomy),
                state_dict=state,
                dtype=dtype,
                attn_implementation="eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, with names
                **placement,
            )
    except (RuntimeError, OSError) as error:
        lost = first_gap(names)
        reason = f"weights are missing: {lost}" if lost else str(error).strip().splitlines()[-1]
        raise CheckpointBroken(str(checkpoint.directory), reason) from error
    _check_report(checkpoint.directory, report)
    if anatomy.plan is not None:
        _cast_plain_weights(checkpoint.directory, model, dtype)
    return model.eval().requires_grad_(False)


def _config(checkpoint: Checkpoint, anatomy: Anatomy) -> Any:
    """Give the configuration to load with: of a quantized checkpoint, with the plan's quantization in its place."""
    if anatomy.plan is None:
        return checkpoint.config
    config = copy.deepcopy(checkpoint.config)
    config.quantization_config = dict(anatomy.plan.config)
    return config


def _cast_plain_weights(directory: Path, model: Any, dtype: torch.dtype) -> None:
    """Cast what is not quantized of a quantized checkpoint: the library leaves it in the file's dtype.

    Raises CheckpointBroken for what should have been expanded: without its scale, the library takes it as it is.
    """
    kept = [*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())]
    for name, module in model.named_modules():
        if type(module).__module__.startswith(PLAIN_CODE) and not any(part in name.split(".") for part in kept):
            for parameter in module.parameters(recurse=False):
                if parameter.is_meta:
                    continue
                if parameter.dtype not in COMPUTED:
                    raise CheckpointBroken(str(directory), f"weights are missing: the scale of {name}")
                parameter.data = parameter.data.to(dtype)


def check_finite(model: nn.Module, source: str) -> None:
    """Raise CheckpointBroken if a weight is not a number; asked before weights are quantized, too."""
    weights = {name: weight for name, weight in model.named_parameters() if weight.is_floating_point()}
    broken = [name for name, weight in weights.items() if not weight.is_meta and not is_finite(weight)]
    if broken:
        more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise CheckpointBroken(source, f"weights are NaN or infinite: {', '.join(broken[:NAMED])}{more}")


def is_finite(values: torch.Tensor) -> bool:
    """Whether all values are numbers, by the smallest and the largest: many times as quick as looking at each."""
    if values.numel() == 0:
        return True
    if values.dtype.itemsize < 2:
        return bool(torch.isfinite(values.float()).all())
    return bool(torch.isfinite(torch.stack(values.aminmax())).all())


def move_weights(model: nn.Module, device: torch.device) -> None:
    """Move every weight onto `device`, one after the other; tied weights stay tied."""
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()] if not tensor.is_meta}
    for tensor in tensors.values():
        tensor.data = tensor.data.to(device)


def drop_unused_embedding(model: nn.Module, anatomy: Anatomy, start: int) -> None:
    """Let go of an embedding that was kept only because the head is tied to it, where the head has its own copy now."""
    for name, edges in anatomy.edges.items():
        if edges.first and start > 0:
            module = model.get_submodule(name)
            if isinstance(module, nn.Embedding):
                model.set_submodule(name, NoEmbedding(module.embedding_dim))


def weight_bytes(model: nn.Module) -> int:
    """Sum the bytes of a model's weights, packed ones included, each tensor once."""
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()] if not tensor.is_meta}
    packed = [module.packed for module in model.modules() if isinstance(module, InferenceLinear)]
    return sum(tensor.numel() * tensor.element_size() for tensor in [*tensors.values(), *packed])


def give_back_memory() -> None:
    """Hand what loading has freed back to the system: GNU's C library keeps hundreds of megabytes of it otherwise."""
    if sys.platform == "linux" and hasattr(this_process := ctypes.CDLL(None), "malloc_trim"):
        this_process.malloc_trim(0)


def owned_blocks(model: nn.Module, anatomy: Anatomy) -> list[nn.Module]:
    return [block for block in model.get_submodule(anatomy.blocks).children() if not isinstance(block, Hole)]


def _check_report(directory: Path, report: dict[str, Any]) -> None:
    missing = sorted(report["missing_keys"])
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise CheckpointBroken(str(directory), f"weights are missing: {', '.join(missing[:NAMED])}{more}")
    for name, found, expected in sorted(report["mismatched_keys"]):
        reason = f"{name} is {list(found)}, by config.json it should be {list(expected)}"
        raise CheckpointBroken(str(directory), reason)


def first_gap(names: Iterable[str]) -> str | None:
    """Find a tensor that one of a block's numbered modules, such as experts, lacks and another one has.

    For an error's text alone: the library merges experts into one weight, and does not say which one it misses.
    """
    kinds: dict[str, dict[str, set[str]]] = {}  # by what stands before the last number, and behind it
    for name in names:
        if found := IN_A_BLOCK.fullmatch(name):
            kinds.setdefault(found[1], {}).setdefault(found[3], set()).add(found[2])
    for head, tails in kinds.items():
        everything = set[str]().union(*tails.values())
        for tail, numbers in tails.items():
            for number in sorted(everything - numbers, key=int):
                return head + number + tail
    return None


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
