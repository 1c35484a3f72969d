"""What a model's generation_config.json asks for where the caller does not; pure.

The file is the model's own: what cannot be read in it is left out. Limits and end-of-sequence ids come from the
manifest, not from here. Read by `model_files.py`, used by `parameters.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """None where the file says nothing."""

    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None


def read_sampling_defaults(generation_config: Mapping[str, Any]) -> SamplingDefaults:
    """Return what the file's content says about sampling."""
    return SamplingDefaults(
        do_sample=generation_config.get("do_sample") is True,
        temperature=_number(generation_config.get("temperature")),
        top_k=_count(generation_config.get("top_k")),
        top_p=_number(generation_config.get("top_p")),
        min_p=_number(generation_config.get("min_p")),
        repetition_penalty=_number(generation_config.get("repetition_penalty")),
        max_new_tokens=_count(generation_config.get("max_new_tokens")),
    )


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
