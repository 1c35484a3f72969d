"""Which layers of a span are quantized on load, and into what; which formats this machine cannot give.

Quantized are the plain linear layers of the blocks, and the head, to int8 in any format: measured
(benchmarks/executor.py) that changes a model's output about as much as bfloat16 does, while a head in 4 bits doubles
int4's error. The experts of a mixture are quantized where their family lets them be (experts.py). Embeddings, norms,
routers and whatever else is no `nn.Linear` stay as they are. Called by quantized_loading.py.
"""

from collections.abc import Callable, Collection, Iterator
from importlib.util import find_spec
from typing import Final, Literal

import torch
from torch import nn

from swarm_model import fp8_linears, nf4_linears
from swarm_model.checkpoint import Checkpoint
from swarm_model.errors import FormatUnavailable
from swarm_model.inference_linears import InferenceLinear
from swarm_model.int4_linears import group_size, int4_linear_class
from swarm_model.int8_linears import int8_linear_class
from swarm_model.prequantized import plan_of
from swarm_model.sizing import QuantizationName
from swarm_model.skeleton import Anatomy

Format = Literal["int8", "int4", "nf4", "fp8"]
NF4_PACKAGE: Final = "bitsandbytes"
FITS: Final[dict[Format, Callable[[nn.Linear], bool]]] = {  # whether a layer's sizes do
    "int8": lambda _: True,
    "int4": lambda linear: group_size(linear) is not None,
    "nf4": nf4_linears.takes,
    "fp8": fp8_linears.takes,
}


def format_for(name: QuantizationName, checkpoint: Checkpoint, device: torch.device) -> Format | None:
    """Return the format to quantize a checkpoint into, None for `none`. Raises FormatUnavailable."""
    if name == "none":
        return None
    if name == "nf4" and find_spec(NF4_PACKAGE) is None:
        instead = "pip install 'swarm-inference[quantized]', or choose --quantize int8, int4 or fp8"
        raise FormatUnavailable(name, f"the package {NF4_PACKAGE} is not installed", instead)
    plan = plan_of(checkpoint, device)
    if plan is not None and not plan.expanded:
        stays = f"the checkpoint is quantized already, as {plan.scheme}, and stays so"
        raise FormatUnavailable(name, stays, "leave --quantize out")
    return name


def quantizable(
    model: nn.Module, within: str, expert_counts: Collection[int], wanted: Format, keep: Collection[nn.Module]
) -> list[str]:
    """Name the plain linears below the module `within` that a format takes, but for those to `keep`.

    Routers, one output an expert, stay.
    """
    names = []
    for name, module in model.get_submodule(within).named_modules(prefix=within):
        if type(module) is not nn.Linear or module.weight.is_meta or module in keep:
            continue
        is_router = module.out_features == 1 or module.out_features in expert_counts
        if not is_router and FITS[wanted](module):
            names.append(name)
    return names


def heads(model: nn.Module, anatomy: Anatomy) -> list[str]:
    """Name the plain linears behind the blocks that are loaded."""
    behind = [name for name, edges in anatomy.edges.items() if edges.last and not edges.first]
    modules = {name: model.get_submodule(name) for name in behind}
    return [name for name, module in modules.items() if type(module) is nn.Linear and not module.weight.is_meta]


def layer_class(wanted: Format, dtype: torch.dtype, device: torch.device) -> type[InferenceLinear]:
    """Choose the layer that stands for a linear in a format; `dtype` is that of its inputs."""
    match wanted:
        case "int8":
            return int8_linear_class(device)
        case "int4":
            return int4_linear_class(dtype, device)
        case "fp8":
            return fp8_linears.fp8_linear_class(dtype, device)
        case "nf4":
            return nf4_linears.Nf4Linear


def plain_matrices(model: nn.Module, within: str) -> Iterator[tuple[str, int]]:
    """Name the matrices below a module that are not quantized, with their sizes in bytes."""
    for name, parameter in model.get_submodule(within).named_parameters(prefix=within):
        if parameter.dim() > 1 and parameter.is_floating_point() and not parameter.is_meta:
            yield name, parameter.numel() * parameter.element_size()
