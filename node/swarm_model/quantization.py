"""Which layers of a span are quantized on load, and into what; which formats this machine cannot give.

Quantized are the plain linear layers of the blocks, and the head, to int8 in any format: measured
(benchmarks/executor.py) that changes a model's output about as much as bfloat16 does, while a head in 4 bits doubles
int4's error. Embeddings, norms, routers of experts and whatever is no `nn.Linear` (experts fused into one 3-D
parameter, for one) stay as they are. Called by quantized_loading.py.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final, Literal

import torch
from torch import nn

from swarm_model.checkpoint import Checkpoint
from swarm_model.errors import FormatUnavailable
from swarm_model.int4_linears import group_size, int4_linear_class
from swarm_model.int8_linears import int8_linear_class
from swarm_model.prequantized import plan_of
from swarm_model.siblings import replace_linears
from swarm_model.sizing import QuantizationName
from swarm_model.skeleton import Anatomy

CpuFormat = Literal["int8", "int4"]
GPU_FORMATS: Final = {
    "nf4": "a CUDA device and the package bitsandbytes",
    "fp8": "a CUDA device of compute capability 8.9 or higher and the package torchao",
}


def format_for(name: QuantizationName, checkpoint: Checkpoint, device: torch.device) -> CpuFormat | None:
    """Return the format to quantize a checkpoint into, None for `none`. Raises FormatUnavailable."""
    if name == "none":
        return None
    if name in GPU_FORMATS:
        here = "no code for it is here yet" if device.type == "cuda" else f"the device is {device.type}"
        raise FormatUnavailable(name, f"it needs {GPU_FORMATS[name]}, and {here}")
    if device.type != "cpu":
        raise FormatUnavailable(name, f"it runs on CPUs alone so far, and the device is {device.type}")
    plan = plan_of(checkpoint, device)
    if plan is not None and not plan.expanded:
        raise FormatUnavailable(name, f"the checkpoint is quantized already, as {plan.scheme}, and stays so")
    return "int8" if name == "int8" else "int4"


def quantizable(
    model: nn.Module, within: str, expert_counts: Collection[int], wanted: CpuFormat, keep: Collection[nn.Module]
) -> list[str]:
    """Name the plain linears below the module `within` that a format takes, but for those to `keep`.

    Routers, one output an expert, stay.
    """
    names = []
    for name, module in model.get_submodule(within).named_modules(prefix=within):
        if type(module) is not nn.Linear or module.weight.is_meta or module in keep:
            continue
        is_router = module.out_features == 1 or module.out_features in expert_counts
        if not is_router and (wanted == "int8" or group_size(module) is not None):
            names.append(name)
    return names


def heads(model: nn.Module, anatomy: Anatomy) -> list[str]:
    """Name the plain linears behind the blocks that are loaded."""
    behind = [name for name, edges in anatomy.edges.items() if edges.last and not edges.first]
    modules = {name: model.get_submodule(name) for name in behind}
    return [name for name, module in modules.items() if type(module) is nn.Linear and not module.weight.is_meta]


def expert_counts(config: Any) -> frozenset[int]:
    """Collect the numbers of experts that a configuration names, under whatever names."""
    values = config.to_dict()
    return frozenset(value for key, value in values.items() if "expert" in key and isinstance(value, int))


def quantize(
    model: nn.Module, names: Sequence[str], siblings: Sequence[Sequence[str]], wanted: CpuFormat, dtype: torch.dtype
) -> None:
    """Replace the named linears by quantized ones; see replace_linears."""
    replace_linears(model, names, siblings, int8_linear_class() if wanted == "int8" else int4_linear_class(dtype))


def plain_matrices(model: nn.Module, within: str) -> Iterator[tuple[str, int]]:
    """Name the matrices below a module that are not quantized, with their sizes in bytes."""
    for name, parameter in model.get_submodule(within).named_parameters(prefix=within):
        if parameter.dim() > 1 and not parameter.is_meta:
            yield name, parameter.numel() * parameter.element_size()
