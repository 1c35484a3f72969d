"""How a token is to be chosen: the parameters that a client sends, checked once when they are made.

Owns their meaning and ranges; knows no torch, so that everybody can import it. The choice itself: sampler.py.
"""

import math
from dataclasses import dataclass, fields
from typing import Final

from swarm_model.errors import InvalidSampling

MAX_TOP_LOGPROBS: Final = 20
MAX_PENALTY: Final = 2.0
MAX_BIAS: Final = 100.0
COLDEST: Final = 1e-5  # below, differences of logits that are worth nothing outweigh any noise, and then overflow


@dataclass(frozen=True, slots=True)
class Sampling:
    """Parameters with the names, defaults and meanings of transformers' `generate`.

    `temperature` 0 (or next to it) takes the likeliest token; `top_k` 0, `top_p` 1 and `min_p` 0 filter nothing;
    `seed` keys the noise;
    `logprobs` asks for the chosen token's log-probability, `top_logprobs` also for that many of the likeliest tokens.
    `frequency_penalty` and `presence_penalty` are those of OpenAI's interface: for each time that a token is in the
    answer, and once for being there, so much is taken off its logit; the answer begins at position `prompt_tokens`.
    `logit_bias` adds to the logits of single tokens.
    Raises InvalidSampling for a value out of range, NaN and infinities included.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    top_logprobs: int = 0
    logprobs: bool = False
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    prompt_tokens: int = 0

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
        for name in ("frequency_penalty", "presence_penalty"):
            _check(
                name, getattr(self, name), abs(getattr(self, name)) <= MAX_PENALTY, f"-{MAX_PENALTY} to {MAX_PENALTY}"
            )
        for token, bias in self.logit_bias:
            _check("logit_bias", token, token >= 0, "token ids")
            _check("logit_bias", bias, abs(bias) <= MAX_BIAS, f"-{MAX_BIAS} to {MAX_BIAS}")
        _check("prompt_tokens", self.prompt_tokens, self.prompt_tokens >= 0, "0 and above")
        for field in fields(self):
            if isinstance(field.default, int) and not isinstance(getattr(self, field.name), int):
                raise InvalidSampling(field.name, getattr(self, field.name), "whole numbers")

    @property
    def likeliest_alone(self) -> bool:
        """Whether the likeliest token of the model's own distribution is all that is asked for."""
        changes = self.frequency_penalty or self.presence_penalty or self.logit_bias or self.repetition_penalty != 1.0
        return self.greedy and not (changes or self.logprobs or self.top_logprobs)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token wins and no noise is needed."""
        return self.temperature < COLDEST


def _check(field: str, value: float, holds: bool, allowed: str) -> None:
    if not holds or not math.isfinite(value):
        raise InvalidSampling(field, value, allowed)
