"""Two ways to send a packed step through a span's blocks: the model's own forward, or its modules called directly.

`OwnForward` works for every model: it knows masks, rotary embeddings and multipliers because it is transformers' code;
hooks put the previous span's hidden states in front of the first owned block and catch what leaves the last one.
`DirectForward` skips the wrappers around the blocks (half a millisecond a step): it replays the calls that were seen
while OwnForward ran. load_checks.py decides which one serves. Called by span.py.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from swarm_model.attention import PagedKV
from swarm_model.errors import UnsupportedModel
from swarm_model.step import Step


class Driver(Protocol):
    """Sends one packed step through a span."""

    def run(self, inputs: torch.Tensor, step: Step, rows: torch.Tensor) -> torch.Tensor:
        """Compute a step whose KV slots are reserved.

        `inputs` is `[tokens]` ids on the first span, else `[tokens, hidden]`. Returns hidden states `[tokens, hidden]`,
        or on the last span, where `rows` says which tokens' logits are wanted, those: `[rows, vocabulary]`.
        """
        ...


class OwnForward:
    """The model's own forward over a span: blocks of other spans are holes."""

    def __init__(
        self, model: Any, blocks: Sequence[nn.Module], cache: Any, *, first: bool, last: bool, family: str
    ) -> None:
        self.model, self._base, self._cache = model, model.base_model, cache
        self._first, self._last = first, last
        self._inputs: torch.Tensor | None = None
        self._output: torch.Tensor | None = None
        accepted = inspect.signature(type(self._base).forward).parameters
        if not {"position_ids", "past_key_values", "inputs_embeds"} <= accepted.keys():
            raise UnsupportedModel(family, "its forward takes no position_ids, past_key_values or inputs_embeds")
        self._blocks = blocks

    def run(self, inputs: torch.Tensor, step: Step, rows: torch.Tensor) -> torch.Tensor:
        self._cache.step = step
        arguments: dict[str, Any] = {
            "input_ids" if self._first else "inputs_embeds": inputs[None],
            "position_ids": step.positions,
            "past_key_values": self._cache,
            "use_cache": True,
        }
        self._inputs = inputs[None]
        hooks = [self._blocks[-1].register_forward_hook(self._catch_output)]
        if not self._first:
            hooks.append(self._blocks[0].register_forward_pre_hook(self._put_inputs, with_kwargs=True))
        try:
            if self._last:
                # 0 keeps all rows; where none is wanted one is computed, since some heads cannot take an empty batch
                keep = 0 if len(rows) == step.tokens else rows if len(rows) > 0 else 1
                logits: torch.Tensor = self.model(**arguments, logits_to_keep=keep).logits[0]
                return logits[: len(rows)]
            self._base(**arguments)
            assert self._output is not None
            return self._output[0]
        finally:
            for hook in hooks:
                hook.remove()
            self._inputs = self._output = None

    def _put_inputs(self, _: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if args:
            return (self._inputs, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._inputs}

    def _catch_output(self, _: nn.Module, __: Any, output: Any) -> None:
        self._output = output[0] if isinstance(output, tuple) else output


@dataclass(frozen=True, slots=True)
class Inputs:
    """Stands for the step's inputs, `[1, tokens]` ids or `[1, tokens, hidden]`."""


@dataclass(frozen=True, slots=True)
class Positions:
    """Stands for the step's positions, `[1, tokens]`."""


@dataclass(frozen=True, slots=True)
class Cache:
    """Stands for the KV cache."""


@dataclass(frozen=True, slots=True)
class Constant:
    """Stands for a value that is the same in every step."""

    value: Any


@dataclass(frozen=True, slots=True)
class ResultOf:
    """Stands for what the numbered call before the blocks returned; `item` picks from a tuple."""

    call: int
    item: int | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Stands for a tuple of values."""

    items: tuple["Source", ...]


Source = Inputs | Positions | Cache | Constant | ResultOf | Group


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module and where its arguments come from."""

    module: nn.Module
    args: tuple[Source, ...]
    kwargs: tuple[tuple[str, Source], ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """The calls that make up a span's forward."""

    before: tuple[Call, ...]  # embedding and rotary embedding, in their order
    hidden: Source  # what enters the first block
    blocks: tuple[Call, ...]  # arguments besides the hidden states
    behind: tuple[nn.Module, ...]  # each takes the output of the one before it: final norm, head
    softcap: float | None  # of the logits


class DirectForward:
    """Calls a span's modules as a recipe says, without the wrappers around them."""

    def __init__(self, recipe: Recipe, cache: PagedKV, *, last: bool) -> None:
        self._recipe, self._cache, self._last = recipe, cache, last
        # Blocks that take the same arguments share one dict, made once a step
        self._kinds = list(dict.fromkeys((call.args, call.kwargs) for call in recipe.blocks))
        self._blocks = [(call.module.forward, self._kinds.index((call.args, call.kwargs))) for call in recipe.blocks]

    def run(self, inputs: torch.Tensor, step: Step, rows: torch.Tensor) -> torch.Tensor:
        self._cache.step = step
        results: list[Any] = []

        def value(source: Source) -> Any:
            match source:
                case Inputs():
                    return inputs[None]
                case Positions():
                    return step.positions
                case Cache():
                    return self._cache
                case Constant(constant):
                    return constant
                case ResultOf(call, None):
                    return results[call]
                case ResultOf(call, item):
                    return results[call][item]
                case Group(items):
                    return tuple(value(item) for item in items)

        for call in self._recipe.before:
            arguments = [value(source) for source in call.args]
            results.append(call.module.forward(*arguments, **{name: value(source) for name, source in call.kwargs}))
        hidden = value(self._recipe.hidden)  # [1, tokens, hidden]
        kinds = [
            ([value(source) for source in args], {name: value(source) for name, source in kwargs})
            for args, kwargs in self._kinds
        ]
        for forward, kind in self._blocks:
            args, kwargs = kinds[kind]
            hidden = forward(hidden, *args, **kwargs)
            if isinstance(hidden, tuple):
                hidden = hidden[0]
        if not self._last or len(rows) == 0:
            output: torch.Tensor = hidden[0] if not self._last else hidden.new_empty(0)
            return output
        if len(rows) != step.tokens:
            hidden = hidden.index_select(1, rows)
        for module in self._recipe.behind:
            hidden = module.forward(hidden)
        logits: torch.Tensor = hidden[0]
        if self._recipe.softcap is not None:
            logits = torch.tanh(logits / self._recipe.softcap) * self._recipe.softcap
        return logits
