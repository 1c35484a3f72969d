"""Experts of a mixture, each matrix a layer of its own, computed through transformers' interface for experts.

transformers fuses all experts of a block into parameters `[experts, outputs, inputs]` and lets functions that are
registered with it compute them, as it does with attention: so no family is named here. Owns the change of such a module
into one that holds a layer for each expert's matrix, the function that sends each expert the rows which the router gave
it, and what tells a model with experts from others. How many rows an expert gets is asked of the device, so that steps
with it are not recorded as graphs. Called by linears.py, quantized_loading.py and load_checks.py.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from swarm_model.checkpoint import Checkpoint
from swarm_model.inference_linears import InferenceLinear

EXPERTS: Final = "swarm_experts"
UNCHANGED: Final = "grouped_mm"  # how experts are computed that stayed as they were


def quantizes_experts(checkpoint: Checkpoint) -> bool:
    """Whether a family computes its experts through the interface."""
    model_class: Any = AutoModelForCausalLM._model_mapping.get(type(checkpoint.config), None)
    return model_class is not None and bool(model_class._can_set_experts_implementation())


def expert_counts(config: Any) -> frozenset[int]:
    """Collect the numbers of experts that a configuration names, under whatever names."""
    values = config.to_dict()
    return frozenset(value for key, value in values.items() if "expert" in key and type(value) is int and value > 0)


def replace_experts(
    model: nn.Module, within: str, fits: Callable[[nn.Linear], bool], make: Callable[[nn.Linear], InferenceLinear]
) -> list[str]:
    """Make each matrix of the experts below the module `within` a layer of another kind, where its sizes fit.

    Returns the names of the modules that hold such experts.
    """
    changed = []
    for name, module in _mixtures(model, within):
        matrices = ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")
        if not all(
            _is_stack(getattr(module, matrix, None)) and fits(_linear(module, matrix, 0)) for matrix in matrices
        ):
            continue
        for matrix in matrices:
            count = len(getattr(module, matrix))
            layers = nn.ModuleList(make(_linear(module, matrix, expert)) for expert in range(count))
            delattr(module, matrix)
            setattr(module, matrix, layers)
        module.config._experts_implementation = EXPERTS
        changed.append(name)
    return changed


def _mixtures(model: nn.Module, within: str) -> Iterator[tuple[str, Any]]:
    """Modules that compute their experts through the interface: it gives them these attributes."""
    for name, module in model.get_submodule(within).named_modules(prefix=within):
        if hasattr(module, "has_gate") and hasattr(module, "is_transposed") and hasattr(module, "_apply_gate"):
            yield name, module


def _is_stack(value: Any) -> bool:
    return isinstance(value, nn.Parameter) and value.dim() == 3 and not value.is_meta


def _linear(module: Any, matrix: str, expert: int) -> nn.Linear:
    """One expert's matrix as a layer; its weight is the parameter's memory unless that has to be turned around."""
    weight = getattr(module, matrix)[expert].detach()
    weight = weight.T.contiguous() if module.is_transposed else weight
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, bias=module.has_bias, device="meta", dtype=weight.dtype)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if module.has_bias:
        linear.bias = nn.Parameter(getattr(module, f"{matrix}_bias")[expert].detach(), requires_grad=False)
    return linear


def _experts_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Compute each row's experts: `hidden_states` `[rows, hidden]`, the other two `[rows, experts of a row]`."""
    if not isinstance(self.down_proj, nn.ModuleList):
        unchanged: torch.Tensor = ALL_EXPERTS_FUNCTIONS[UNCHANGED](self, hidden_states, top_k_index, top_k_weights)
        return unchanged
    chosen = top_k_index.shape[1]
    experts, order = torch.sort(top_k_index.flatten(), stable=True)
    entering = hidden_states[order // chosen]
    outputs = torch.zeros_like(entering)  # of what no expert here computes
    ups = self.gate_up_proj if self.has_gate else self.up_proj
    found, counts = torch.unique_consecutive(experts, return_counts=True)
    start = 0
    for expert, count in zip(found.tolist(), counts.tolist(), strict=True):
        end = start + count
        if expert < len(ups):
            inner = ups[expert](entering[start:end])
            inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
            outputs[start:end] = self.down_proj[expert](inner)
        start = end
    if self.has_post_expert_norm:
        outputs = self.post_expert_norm(outputs)
    weighted = outputs * top_k_weights.flatten()[order, None]
    return (
        torch.empty_like(weighted)
        .index_copy_(0, order, weighted)
        .view(len(hidden_states), chosen, -1)
        .sum(dim=1)
        .to(hidden_states.dtype)
    )


ALL_EXPERTS_FUNCTIONS.register(EXPERTS, _experts_forward)
