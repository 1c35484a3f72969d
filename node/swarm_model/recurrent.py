"""Mixers that carry a running state from token to token (Mamba, gated delta rule, short convolutions) in packed steps.

Their recurrence cannot run across the sessions that share a step: inside the mixer alone, and nowhere else, each
session's rows go through it with that session's own cache. Which modules are mixers is found by watching who asks the
cache for a state: session_cache.py. Called by load_checks.py.
"""

import inspect
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn

from swarm_model.attention import StepCache
from swarm_model.step import Step

CACHE_PARAMETERS: Final = ("cache_params", "past_key_values")  # the names by which modelling code takes a cache


class MixerLoop:
    """Has mixers go through a packed step session by session; with any other cache they run as they are."""

    def __init__(self, mixers: Mapping[nn.Module, int]) -> None:
        """`mixers` come with the index of the layer in which each keeps its state."""
        self.by_token = False
        """Whether tokens that follow on a state go one by one: some mixers heed a state in no other way."""
        for mixer, layer in mixers.items():
            self._wrap(mixer, layer)

    def _wrap(self, mixer: Any, layer: int) -> None:
        own = mixer.forward
        signature = inspect.signature(own)
        parameter = next(name for name in CACHE_PARAMETERS if name in signature.parameters)

        def forward(*args: Any, **kwargs: Any) -> Any:
            arguments = signature.bind(*args, **kwargs).arguments
            cache = arguments.get(parameter)
            if not isinstance(cache, StepCache):
                return own(*args, **kwargs)
            step = cache.step
            named = {**arguments, **arguments.pop("kwargs", {})}
            outputs = []
            for stretch, session in zip(step.stretches, step.caches, strict=True):
                for begin, end, checkpoint in session.pieces(stretch.offset, stretch.tokens):
                    if checkpoint:
                        session.keep(layer)
                    follows = begin > stretch.offset or stretch.length > stretch.tokens
                    at_once = 1 if follows and self.by_token else end - begin
                    for first in range(begin, end, at_once):
                        rows = slice(first, first + at_once)
                        mine = {name: _rows_of(value, rows, step) for name, value in named.items()}
                        outputs.append(own(**{**mine, parameter: session}))
            if isinstance(outputs[0], tuple):
                return torch.cat([output[0] for output in outputs], dim=1), *outputs[0][1:]
            return torch.cat(outputs, dim=1)

        mixer.forward = forward


def _rows_of(value: Any, rows: slice, step: Step) -> Any:
    """Take one session's rows of whatever runs along the step, `[1, tokens, ...]`."""
    if isinstance(value, tuple):
        return tuple(_rows_of(item, rows, step) for item in value)
    if isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[1] == step.tokens:
        return value[:, rows]
    return value
