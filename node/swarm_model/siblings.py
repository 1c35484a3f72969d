"""One product for linear layers that read the same input: queries, keys and values; gate and up.

Owns finding them, by watching which layers are given the same tensor while a model runs once (names and families do
not matter), and the layers that share a product. A layer that is called with another tensor than its siblings computes
for itself, so the outputs are right whatever a family does at run time. Called by quantized_loading.py.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn


class SharedProduct(nn.Module):
    """Computes all siblings' outputs when the first of them is called, and keeps them until all are taken."""

    def __init__(self, fused: nn.Module, sizes: Sequence[int]) -> None:
        super().__init__()
        self.fused = fused
        self._sizes = list(sizes)
        self._inputs: torch.Tensor | None = None
        self._outputs: tuple[torch.Tensor, ...] = ()
        self._left = 0

    def take(self, number: int, inputs: torch.Tensor) -> torch.Tensor:
        """Give a sibling's output for `inputs`, `[..., in features]`."""
        if inputs is not self._inputs:
            self._outputs = self.fused(inputs).split(self._sizes, dim=-1)
            self._inputs, self._left = inputs, len(self._sizes)
        output = self._outputs[number]
        self._left -= 1
        if not self._left:
            self._inputs, self._outputs = None, ()
        return output


class SiblingLinear(nn.Module):
    """Stands for one of the layers that share a product."""

    def __init__(self, product: SharedProduct, number: int) -> None:
        super().__init__()
        self.product = product
        self._number = number

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map `[..., in features]` to `[..., out features]`."""
        return self.product.take(self._number, inputs)


def find_siblings(model: nn.Module, run: Callable[[], object]) -> list[list[str]]:
    """Name the plain linears that `run` calls with the same tensor, each group in the order of the calls."""
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules() if type(module) is nn.Linear}
    seen: list[tuple[torch.Tensor, list[str]]] = []  # holding the tensors keeps their identities apart

    def note(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        (inputs,) = arguments
        for known, group in reversed(seen):
            if known is inputs:
                group.append(names[module])
                return
        seen.append((inputs, [names[module]]))

    hooks = [module.register_forward_pre_hook(note) for module in names]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    called = [name for _, group in seen for name in group]
    return [group for _, group in seen if len(group) > 1 and all(called.count(name) == 1 for name in group)]


def fuse(linears: Sequence[nn.Linear]) -> nn.Linear:
    """Make one layer of several with the same inputs; either all or none of them have a bias."""
    first = linears[0]
    with torch.device("meta"):
        fused = nn.Linear(first.in_features, sum(linear.out_features for linear in linears), bias=False)
    fused.weight = nn.Parameter(torch.cat([linear.weight.detach() for linear in linears]), requires_grad=False)
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    if biases:
        fused.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return fused
