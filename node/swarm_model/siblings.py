"""One product for linear layers that read the same input: queries, keys and values; gate and up.

Owns finding them, by watching which layers are given the same tensor while a model runs once (names and families do
not matter), and the layers that share a product. A layer that is called with another tensor than its siblings computes
for itself, so the outputs are right whatever a family does at run time. Called by
quantized_loading.py, load_checks.py and linears.py.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


class SharedProduct:
    """Computes all siblings' outputs when the first of them is called, and keeps them until all are taken.

    No `nn.Module`, since those look twice at whatever is assigned to them, and this is assigned to at every step.
    """

    __slots__ = ("_inputs", "_left", "_outputs", "_sizes", "compute")

    def __init__(self, compute: Callable[[torch.Tensor], torch.Tensor], sizes: Sequence[int]) -> None:
        self.compute = compute
        self._sizes = list(sizes)
        self._inputs: torch.Tensor | None = None
        self._outputs: tuple[torch.Tensor, ...] = ()
        self._left = 0

    def take(self, number: int, inputs: torch.Tensor) -> torch.Tensor:
        """Give a sibling's output for `inputs`, `[..., in features]`."""
        if inputs is not self._inputs:
            self._outputs = self.compute(inputs).split_with_sizes(self._sizes, dim=-1)
            self._inputs, self._left = inputs, len(self._sizes)
        output = self._outputs[number]
        self._left -= 1
        if not self._left:
            self._inputs, self._outputs = None, ()
        return output


class SiblingLinear(nn.Module):
    """Stands for one of the layers that share a product."""

    fused: nn.Module  # what they share, as a part of the first of them, so that the model owns it

    def __init__(self, product: SharedProduct, number: int, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight.new_empty(0)  # modelling code asks for its type, never its values
        self._product = product
        self._number = number

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map `[..., in features]` to `[..., out features]`."""
        return self._product.take(self._number, inputs)


@dataclass
class LinearUse:
    """How a run uses a model's plain linears."""

    siblings: list[list[str]] = field(default_factory=list)  # called with one tensor, in the order of the calls
    read_directly: frozenset[nn.Module] = frozenset()  # their weights are read by a module that does not call them


@contextmanager
def watch_linears(model: nn.Module) -> Iterator[LinearUse]:
    """Watch one run of a model; what is yielded is filled in at the end. Who is called twice has no siblings."""
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules() if type(module) is nn.Linear}
    seen: list[tuple[torch.Tensor, list[str]]] = []  # holding the tensors keeps their identities apart
    called: list[nn.Module] = []
    use = LinearUse()

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        called.append(module)
        if module not in names or len(arguments) != 1:
            return
        (inputs,) = arguments
        for known, group in reversed(seen):
            if known is inputs:
                group.append(names[module])
                return
        seen.append((inputs, [names[module]]))

    hooks = [module.register_forward_pre_hook(note) for module in model.modules()]
    try:
        yield use
    finally:
        for hook in hooks:
            hook.remove()
        times = Counter(names[module] for module in called if module in names)
        use.siblings = [group for _, group in seen if len(group) > 1 and all(times[name] == 1 for name in group)]
        ran = set(called)
        use.read_directly = frozenset(
            child for module in ran for child in module.children() if child in names and child not in ran
        )


def replace_linears(
    model: nn.Module, names: Iterable[str], siblings: Sequence[Sequence[str]], make: Callable[[nn.Linear], nn.Module]
) -> None:
    """Replace the named linears one after the other, so that one weight at a time is held twice; siblings share one."""
    left = dict.fromkeys(names)
    for group in siblings:
        group = [name for name in group if name in left]
        linears = [_linear(model, name) for name in group]
        if len(group) < 2 or len({linear.bias is None for linear in linears}) > 1:
            continue
        fused = fuse(linears)
        product = SharedProduct(fused, [linear.out_features for linear in linears])
        stand_ins = [SiblingLinear(product, number, linear) for number, linear in enumerate(linears)]
        for name, stand_in in zip(group, stand_ins, strict=True):
            model.set_submodule(name, stand_in)
            del left[name]
        del product.compute, linears[:]  # or their weights would be held a third time
        stand_ins[0].fused = made = make(fused)
        product.compute = made.forward
        del fused
    for name in left:
        model.set_submodule(name, make(_linear(model, name)))


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


def _linear(model: nn.Module, name: str) -> nn.Linear:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module
