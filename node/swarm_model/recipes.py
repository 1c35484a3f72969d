"""Learns the recipe of a span's forward by watching the model's own forward once.

Every argument that a block receives is traced back, by identity, to the step's inputs, its positions, the cache, a
constant, or the result of a module that ran before the blocks (a rotary embedding). Where that succeeds the modules can
be called directly; load_checks.py then verifies on other inputs that both ways agree to the bit. Where it does not,
there is no recipe and nothing is lost but time. Called by load_checks.py.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from swarm_model.attention import PagedKV
from swarm_model.drivers import (
    Cache,
    Call,
    Constant,
    Group,
    Inputs,
    PackedForward,
    Positions,
    Recipe,
    ResultOf,
    Source,
)
from swarm_model.step import Step


class NoRecipe(Exception):
    """The own forward does something between modules that calling them directly would miss."""


def learn_recipe(
    packed: PackedForward,
    blocks: Sequence[nn.Module],
    blocks_name: str,
    cache: PagedKV,
    inputs: torch.Tensor,
    step: Step,
) -> Recipe:
    """Run one step through the own forward and write down its calls. Raises NoRecipe."""
    watch = _Watch(inputs, step, cache)
    containers = {".".join(blocks_name.split(".")[:depth]) for depth in range(blocks_name.count(".") + 1)}
    outside = [
        child
        for container in sorted(containers)
        for name, child in packed.own.model.get_submodule(container).named_children()
        if f"{container}.{name}".removeprefix(".") not in containers | {blocks_name}
    ]
    with ExitStack() as hooks:
        for module in outside:
            handle = module.register_forward_hook(watch.saw_outside, with_kwargs=True)
            hooks.callback(handle.remove)
        for block in blocks:
            hooks.callback(block.register_forward_hook(watch.saw_block, with_kwargs=True).remove)
        output = packed.run(inputs, step, torch.arange(step.tokens, device=inputs.device))
    return watch.recipe(blocks, output, getattr(packed.own.model.config, "final_logit_softcapping", None))


class _Watch:
    """What was seen so far, and where each value came from."""

    def __init__(self, inputs: torch.Tensor, step: Step, cache: PagedKV) -> None:
        self._cache = cache
        self._alive: list[Any] = []  # keeps every tensor seen, so that no address is used twice
        self._sources: dict[tuple[Any, ...], Source] = {}
        self._shape = inputs[None].shape
        self._know(inputs[None], Inputs())
        self._know(step.positions, Positions())
        self._before: list[Call] = []
        self._hidden: Source | None = None
        self._blocks: list[Call] = []
        self._behind: list[nn.Module] = []
        self._last: torch.Tensor | None = None

    def saw_outside(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._last is not None:
            if kwargs or len(args) != 1 or _identity(args[0]) != _identity(self._last):
                raise NoRecipe("a module behind the blocks takes more than the output before it")
            self._behind.append(module)
            self._last = output
            self._alive.append(output)
            return
        sources = tuple(self._source(value, beside_blocks=True) for value in args)
        named = tuple((name, self._source(value, beside_blocks=True)) for name, value in kwargs.items())
        number = len(self._before)
        self._before.append(Call(module, sources, named))
        if isinstance(output, torch.Tensor):
            self._know(output, ResultOf(number))
        elif isinstance(output, tuple):
            for item, value in enumerate(output):
                self._know(value, ResultOf(number, item))

    def saw_block(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if self._last is None:
            self._hidden = self._source(hidden)
        elif _identity(hidden) != _identity(self._last):
            raise NoRecipe("something happens between two blocks")
        sources = tuple(self._source(value) for value in args[1:])
        named = tuple((name, self._source(value)) for name, value in kwargs.items() if name != "hidden_states")
        self._blocks.append(Call(module, sources, named))
        self._last = output[0] if isinstance(output, tuple) else output
        self._alive.append(output)

    def recipe(self, blocks: Sequence[nn.Module], output: torch.Tensor, softcap: float | None) -> Recipe:
        if [call.module for call in self._blocks] != list(blocks) or self._hidden is None or self._last is None:
            raise NoRecipe("not every block was called once, in order")
        capped = bool(self._behind) and _identity(self._last[0]) != _identity(output)
        if capped and softcap is None:
            raise NoRecipe("the logits are changed behind the head")
        return Recipe(
            tuple(self._before), self._hidden, tuple(self._blocks), tuple(self._behind), softcap if capped else None
        )

    def _know(self, value: Any, source: Source) -> None:
        if isinstance(value, torch.Tensor):
            self._alive.append(value)
            self._sources.setdefault(_identity(value), source)

    def _source(self, value: Any, *, beside_blocks: bool = False) -> Source:
        """Say where a value comes from. Raises NoRecipe."""
        if value is self._cache:
            return Cache()
        if value is None or isinstance(value, (bool, int, float, str)):
            return Constant(value)
        if isinstance(value, tuple):
            return Group(tuple(self._source(item, beside_blocks=beside_blocks) for item in value))
        if isinstance(value, torch.Tensor):
            if (known := self._sources.get(_identity(value))) is not None:
                return known
            if beside_blocks and value.is_floating_point() and value.shape == self._shape:
                return Inputs()  # a rotary embedding asks hidden states for their type and device alone: verified later
        raise NoRecipe(f"a value of type {type(value).__name__} comes from nowhere")


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What makes two tensors the same numbers in the same memory."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype
