"""What a session keeps in transformers' own cache: recurrent states beside our pages, or all of its keys and values.

Owns making such caches for a span, cutting them back or going back to a checkpoint, and their size; `CacheLayout` is
what a watched run tells of a model's cache. Which session has which cache: session_states.py.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from swarm_model.recurrent import CACHE_PARAMETERS

CUTTABLE: Final = (DynamicLayer, DynamicIndexedLayer)


class SessionCache(DynamicCache):  # type: ignore[misc]
    """transformers' cache of one session, for some of a model's blocks.

    Layers of other spans stand for one of ours of the same kind: modelling code asks the first layer of a kind how many
    tokens there are. Windows are left to the masks, so that every layer of keys and values can be cut back.
    """

    layers: list[Any]

    def __init__(self, config: Any, start: int, end: int) -> None:
        super().__init__(config=config)
        self.layers = [DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer for layer in self.layers]
        self.owned: Final = self.layers[start:end]
        self._start: Final = start
        self._redone, self._keeps = 0, False
        self._kept: dict[int, dict[str, Any]] = {}  # place in `owned` -> attributes of the layer
        self._has_attention = any(isinstance(layer, CacheLayerMixin) for layer in self.layers)
        kinds = {type(layer): layer for layer in reversed(self.owned)}
        self.layers = [
            layer if start <= number < end else kinds.get(type(layer), layer)
            for number, layer in enumerate(self.layers)
        ]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(super().get_seq_length(layer_idx)) if self._has_attention else 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        if not self._has_attention:
            return query_length, 0  # for a mask that nobody reads
        length, offset = super().get_mask_sizes(query_length, layer_idx)
        return length, offset

    @property
    def can_be_cut(self) -> bool:
        """Whether all that is kept is kept per token."""
        return all(type(layer) in CUTTABLE for layer in self.owned)

    def cut(self, tokens: int) -> None:
        """Forget all but the first `tokens` tokens; only where `can_be_cut`."""
        for layer in self.owned:
            if isinstance(layer, DynamicLayer) and layer.is_initialized:
                layer.crop(min(0, tokens - layer.get_seq_length()))

    def enter(self, *, redone: int, keeps: bool) -> None:
        """Get ready for a step in which the first `redone` rows stand for what is computed once more.

        `keeps` says to make a checkpoint between those and the new ones.
        """
        self._redone, self._keeps = redone, keeps
        self._kept.clear()

    def pieces(self, offset: int, tokens: int) -> Iterator[tuple[int, int, bool]]:
        """Divide the session's rows of a step, [first, end); True: a checkpoint stands before them."""
        if self._redone:
            yield offset, offset + self._redone, False
        yield offset + self._redone, offset + tokens, self._keeps

    def keep(self, layer: int | None = None) -> None:
        """Copy a layer's running state, by default every layer's, as the checkpoint to go back to.

        Keys and values, which are never written in place, are not copied.
        """
        for number in range(len(self.owned)) if layer is None else (layer - self._start,):
            own = self.owned[number]
            growing = (own.keys, own.values) if isinstance(own, DynamicLayer) else ()
            self._kept[number] = copy.deepcopy(vars(own), {id(tensor): tensor for tensor in growing})

    def go_back(self) -> None:
        """Be what it was at the checkpoint."""
        for number, kept in self._kept.items():
            vars(self.owned[number]).update(kept)
        self._kept.clear()

    @property
    def size_bytes(self) -> int:
        """Count the bytes of all tensors kept."""
        return sum(_tensor_bytes(list(vars(layer).values())) for layer in self.owned)


@dataclass(frozen=True)
class CacheLayout:
    """What a span's blocks keep of a session, as a watched run showed."""

    keeping: frozenset[int]  # indices of layers that keep keys and values
    mixers: dict[nn.Module, int]  # modules that keep a running state -> index of their layer
    bytes_per_token: int
    state_bytes: int  # that do not grow with the tokens
    can_be_cut: bool


class WatchedCache(SessionCache):
    """Notes who keeps what."""

    def __init__(self, config: Any, start: int, end: int, blocks: Sequence[nn.Module]) -> None:
        super().__init__(config, start, end)
        self.keeping: set[int] = set()
        self.mixers: dict[nn.Module, int] = {}
        self._running: list[nn.Module] = []
        self._blocks = blocks

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.keeping.add(layer_idx)
        updated: tuple[torch.Tensor, torch.Tensor] = super().update(keys, values, layer_idx, *args, **kwargs)
        return updated

    def update_conv_state(self, conv_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._note_mixer(layer_idx)
        state: torch.Tensor = super().update_conv_state(conv_states, layer_idx, *args, **kwargs)
        return state

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        self._note_mixer(layer_idx)
        state: torch.Tensor = super().update_recurrent_state(recurrent_states, layer_idx, *args, **kwargs)
        return state

    def watch(self) -> ExitStack:
        """While this context is open, know which module is running."""

        def enter(module: nn.Module, _: Any) -> None:
            self._running.append(module)

        def leave(*_: Any) -> None:
            self._running.pop()

        hooks = ExitStack()
        for block in self._blocks:
            for module in block.modules():
                hooks.callback(module.register_forward_pre_hook(enter).remove)
                hooks.callback(module.register_forward_hook(leave).remove)
        return hooks

    def _note_mixer(self, layer: int) -> None:
        for module in reversed(self._running):
            if not inspect.signature(module.forward).parameters.keys().isdisjoint(CACHE_PARAMETERS):
                self.mixers[module] = layer
                return


def _tensor_bytes(values: list[Any]) -> int:
    total = 0
    for value in values:
        if isinstance(value, torch.Tensor):
            total += value.numel() * value.element_size()
        elif isinstance(value, dict):
            total += _tensor_bytes(list(value.values()))
    return total
