"""Ways to send a packed step through a span's blocks: the model's own forward, or its modules called directly.

`OwnForward` works for every model: it knows masks, rotary embeddings and multipliers because it is transformers' code;
hooks put the previous span's hidden states in front of the first owned block and catch what leaves the last one.
`PackedForward` sends a whole step through it over KV pages, `SessionForward` one session after the other, each with a
cache of transformers' own. `DirectForward` skips the wrappers around the blocks (half a millisecond a step): it replays
the calls that were seen while PackedForward ran. load_checks.py decides which one serves. Called by span.py.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from swarm_model.attention import PagedKV, StepCache
from swarm_model.errors import UnsupportedModel
from swarm_model.recurrent import CACHE_PARAMETERS
from swarm_model.step import Step


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a span's blocks, `[enter, leave)` counted from its first one."""

    enter: int
    leave: int


class Driver(Protocol):
    """Sends one packed step through a span."""

    def run(self, inputs: torch.Tensor, step: Step, rows: torch.Tensor, part: Part | None = None) -> torch.Tensor:
        """Compute a step whose KV slots are reserved, through all blocks or a part of them.

        `inputs` is `[tokens]` ids where the model begins, else `[tokens, hidden]`. Returns hidden states
        `[tokens, hidden]`, or where the model ends and `rows` says which tokens' logits are wanted, those:
        `[rows, vocabulary]`.
        """
        ...


class OwnForward:
    """The model's own forward over a span: blocks of other spans are holes."""

    def __init__(
        self, model: Any, blocks: Sequence[nn.Module], *, first: bool, last: bool, family: str, tuples: bool
    ) -> None:
        """`tuples` says whether blocks return their hidden states in a tuple."""
        self.model, self._base = model, model.base_model
        self._first, self._last, self._tuples = first, last, tuples
        self._inputs: torch.Tensor | None = None
        self._output: torch.Tensor | None = None
        accepted = inspect.signature(type(self._base).forward).parameters
        names = [name for name in reversed(CACHE_PARAMETERS) if name in accepted]
        if not names or "inputs_embeds" not in accepted:
            raise UnsupportedModel(family, "its forward takes no inputs_embeds, or no cache")
        self._cache_name = names[0]
        self._takes_positions = "position_ids" in accepted
        self._chooses_rows = "logits_to_keep" in inspect.signature(type(model).forward).parameters
        self._blocks = blocks

    def run(
        self,
        inputs: torch.Tensor,
        positions: torch.Tensor,
        cache: Any,
        rows: torch.Tensor,
        part: Part | None = None,
        before: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute tokens at `positions` `[1, tokens]` with any cache, or with None for none; see Driver.

        `before` stands where the model's own embeddings would stand if they were here; `inputs` by default.
        """
        part = part or Part(0, len(self._blocks))
        first, last = self._first and part.enter == 0, self._last and part.leave == len(self._blocks)
        given = inputs if before is None else before
        arguments: dict[str, Any] = {
            # Some code scales embeddings in place
            "input_ids" if first else "inputs_embeds": given[None] if first else given[None].clone(),
            self._cache_name: cache,
            "use_cache": cache is not None,
        }
        if self._takes_positions:
            arguments["position_ids"] = positions
        self._inputs = inputs[None]
        with ExitStack() as changes:
            for block in (*self._blocks[: part.enter], *self._blocks[part.leave :]):
                changes.enter_context(_skipped(block, self._tuples))
            leaving, entered = self._blocks[part.leave - 1], self._blocks[part.enter]
            changes.callback(leaving.register_forward_hook(self._catch_output).remove)
            if not first:
                changes.callback(entered.register_forward_pre_hook(self._put_inputs, with_kwargs=True).remove)
            try:
                if last:
                    return self._logits(arguments, rows, len(inputs))
                self._base(**arguments)
                assert self._output is not None
                return self._output[0]
            finally:
                self._inputs = self._output = None

    def _logits(self, arguments: dict[str, Any], rows: torch.Tensor, tokens: int) -> torch.Tensor:
        logits: torch.Tensor
        if not self._chooses_rows:
            logits = self.model(**arguments).logits[0]
            return logits if len(rows) == tokens else logits[rows]
        # 0 keeps all rows; where none is wanted one is computed: some heads cannot take an empty batch
        keep = 0 if len(rows) == tokens else rows if len(rows) > 0 else 1
        logits = self.model(**arguments, logits_to_keep=keep).logits[0]
        return logits[: len(rows)]

    def _put_inputs(self, _: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if args:
            return (self._inputs, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._inputs}

    def _catch_output(self, _: nn.Module, __: Any, output: Any) -> None:
        self._output = output[0] if isinstance(output, tuple) else output


class PackedForward:
    """A whole step at once through the model's own forward, over KV pages."""

    def __init__(self, own: OwnForward, cache: StepCache) -> None:
        self.own, self._cache = own, cache

    def run(self, inputs: torch.Tensor, step: Step, rows: torch.Tensor, part: Part | None = None) -> torch.Tensor:
        self._cache.step = step
        return self.own.run(inputs, step.positions, self._cache, rows, part)


class SessionForward:
    """One session of a step after the other through the model's own forward, each with its own cache."""

    def __init__(self, own: OwnForward) -> None:
        self._own = own

    def run(self, inputs: torch.Tensor, step: Step, rows: torch.Tensor, part: Part | None = None) -> torch.Tensor:
        outputs = []
        for stretch, cache in zip(step.stretches, step.caches, strict=True):
            for first, end, checkpoint in cache.pieces(stretch.offset, stretch.tokens):
                if checkpoint:
                    cache.keep()
                mine = rows[(rows >= first) & (rows < end)] - first
                positions = step.positions[:, first:end]
                outputs.append(self._own.run(inputs[first:end], positions, cache, mine, part))
        return torch.cat(outputs)


@contextmanager
def _skipped(block: nn.Module, as_tuple: bool) -> Iterator[None]:
    """Have a block hand its input on."""

    def hand_on(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, None) if as_tuple else hidden

    block.forward = hand_on
    try:
        yield
    finally:
        del block.forward


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

    @property
    def embeds(self) -> bool:
        """Whether it turns the step's token ids into hidden states."""
        return Inputs() in self.args or any(source == Inputs() for _, source in self.kwargs)


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

    def __init__(self, recipe: Recipe, cache: PagedKV, *, first: bool, last: bool) -> None:
        self._recipe, self._cache, self._first, self._last = recipe, cache, first, last
        # Blocks that take the same arguments share one dict, made once a step
        self._kinds = list(dict.fromkeys((call.args, call.kwargs) for call in recipe.blocks))
        self._blocks = [(call.module.forward, self._kinds.index((call.args, call.kwargs))) for call in recipe.blocks]

    def run(self, inputs: torch.Tensor, step: Step, rows: torch.Tensor, part: Part | None = None) -> torch.Tensor:
        part = part or Part(0, len(self._blocks))
        embeds, last = self._first and part.enter == 0, self._last and part.leave == len(self._blocks)
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
            if self._first and not embeds and call.embeds:
                results.append(inputs[None])
                continue
            arguments = [value(source) for source in call.args]
            results.append(call.module.forward(*arguments, **{name: value(source) for name, source in call.kwargs}))
        hidden = value(self._recipe.hidden)  # [1, tokens, hidden]
        kinds = [
            ([value(source) for source in args], {name: value(source) for name, source in kwargs})
            for args, kwargs in self._kinds
        ]
        for forward, kind in self._blocks[part.enter : part.leave]:
            args, kwargs = kinds[kind]
            hidden = forward(hidden, *args, **kwargs)
            if isinstance(hidden, tuple):
                hidden = hidden[0]
        if not last or len(rows) == 0:
            output: torch.Tensor = hidden[0] if not last else hidden.new_empty(0)
            return output
        if len(rows) != step.tokens:
            hidden = hidden.index_select(1, rows)
        for module in self._recipe.behind:
            hidden = module.forward(hidden)
        logits: torch.Tensor = hidden[0]
        if self._recipe.softcap is not None:
            logits = torch.tanh(logits / self._recipe.softcap) * self._recipe.softcap
        return logits
