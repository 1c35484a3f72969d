"""How a token is to be chosen: the parameters that a client sends, checked once when they are made.

Owns their meaning and ranges; knows no torch, so that everybody can import it. The choice itself: sampler.py.
"""

import math
from dataclasses import dataclass, fields
from typing import Final

from swarm_model.errors import InvalidSampling

MAX_TOP_LOGPROBS: Final = 20
COLDEST: Final = 1e-5  # below, differences of logits that are worth nothing outweigh any noise, and then overflow


@dataclass(frozen=True, slots=True)
class Sampling:
    """Parameters with the names, defaults and meanings of transformers' `generate`.

    `temperature` 0 (or next to it) takes the likeliest token; `top_k` 0, `top_p` 1 and `min_p` 0 filter nothing;
    `seed` keys the noise;
    `top_logprobs` asks for that many of the likeliest tokens beside the chosen one.
    Raises InvalidSampling for a value out of range, NaN and infinities included.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0 <= self.temperature <= 100.0, "0 to 100")
        _check("top_k", self.top_k, self.top_k >= 0, "0 (off) and above")
        _check("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "above 0, up to 1 (off)")
        _check("min_p", self.min_p, 0.0 <= self.min_p <= 1.0, "0 (off) to 1")
        _check("repetition_penalty", self.repetition_penalty, 0.01 <= self.repetition_penalty <= 100.0, "0.01 to 100")
        _check("seed", self.seed, 0 <= self.seed < 1 << 64, "0 to 2^64 - 1")
        _check(
            "top_logprobs", self.top_logprobs, 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS, f"0 to {MAX_TOP_LOGPROBS}"
        )
        for field in fields(self):
            if isinstance(field.default, int) and not isinstance(getattr(self, field.name), int):
                raise InvalidSampling(field.name, getattr(self, field.name), "whole numbers")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token wins and no noise is needed."""
        return self.temperature < COLDEST


def _check(field: str, value: float, holds: bool, allowed: str) -> None:
    if not holds or not math.isfinite(value):
        raise InvalidSampling(field, value, allowed)
