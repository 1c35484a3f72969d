"""A span that is quantized while it is loaded: a few blocks at a time are read in full, so that the rest stays small.

Owns the order: read some blocks, see which of their layers read the same input, quantize them, put them into the span.
The checks of load_checks.py then compare the quantized span with itself: they are about attention and drivers. What
quantizing does to a model's output is measured by benchmarks/executor.py. Called by span.py.
"""

import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final

import torch

from swarm_model.checkpoint import Checkpoint
from swarm_model.errors import FormatUnavailable, UnsupportedModel
from swarm_model.experts import expert_counts, replace_experts
from swarm_model.inference_linears import InferenceLinear
from swarm_model.loading import CPU, check_finite, drop_unused_embedding, load_model, move_weights
from swarm_model.quantization import FITS, Format, heads, layer_class, plain_matrices, quantizable
from swarm_model.siblings import replace_linears, watch_linears
from swarm_model.sizing import DtypeName, blocks_at_once
from swarm_model.skeleton import Anatomy, foreign_code

log = logging.getLogger(__name__)

WORTH_SAYING: Final = 0.05  # of a span's quantized and unquantized bytes


def load_quantized(
    checkpoint: Checkpoint,
    anatomy: Anatomy,
    start: int,
    end: int,
    *,
    dtype: torch.dtype,
    wanted: Format,
    on_bytes: Callable[[int], None],
    device: torch.device = CPU,
) -> Any:
    """Build blocks `start` to `end` with their edges on a device, their linears quantized; see load_model.

    Raises CheckpointBroken, and FormatUnavailable for a model without plain linears in its blocks.
    """
    counts = expert_counts(checkpoint.config.get_text_config())
    whole: Any = None
    at_once = blocks_at_once(checkpoint, _name(dtype), expanded=anatomy.plan is not None)
    quantized, first, make = 0, start, layer_class(wanted, dtype, device)
    while first < end:
        last = min(end, first + at_once)
        part = load_model(checkpoint, anatomy, first, last, dtype=dtype, on_bytes=on_bytes, device=device)
        with torch.inference_mode():
            move_weights(part, device)
            check_finite(part, checkpoint.source)
            with watch_linears(part) as use:
                _try_out(part, checkpoint.family, dtype, device)
            for number in range(first, last):
                names = quantizable(part, f"{anatomy.blocks}.{number}", counts, wanted, use.read_directly)
                inside = [group for group in use.siblings if group[0].startswith(f"{anatomy.blocks}.{number}.")]
                replace_linears(part, names, inside, make)
                mixtures = replace_experts(part, f"{anatomy.blocks}.{number}", FITS[wanted], make)
                quantized += len(names) + len(mixtures)
            replace_linears(part, heads(part, anatomy), [], layer_class("int8", dtype, device))
        whole = part if whole is None else _joined(whole, part, anatomy, (first, last))
        first = last
    if not quantized:
        nothing = f"the blocks of {checkpoint.family} hold no linear layers that it takes"
        raise FormatUnavailable(wanted, nothing, "choose --quantize int8, or none")
    drop_unused_embedding(whole, anatomy, start)
    _say_what_stays(whole, anatomy, (start, end), wanted, dtype)
    if any(isinstance(module, InferenceLinear) and not module.quick for module in whole.modules()):
        log.warning("no kernel for %s in %s on this device: every step widens all weights", wanted, _name(dtype))
    return whole


def _try_out(model: Any, family: str, dtype: torch.dtype, device: torch.device) -> None:
    """Send two made-up tokens through what is loaded; a family that fails here only goes without shared products."""
    hidden = torch.zeros(1, 2, int(model.config.get_text_config().hidden_size), dtype=dtype, device=device)
    with contextlib.suppress(UnsupportedModel), foreign_code(family):
        model.base_model(inputs_embeds=hidden, use_cache=False)


def _joined(whole: Any, part: Any, anatomy: Anatomy, blocks: tuple[int, int]) -> Any:
    """Put the blocks of a part, and the modules behind them, into the span that begins before it."""
    layers, more = whole.get_submodule(anatomy.blocks), part.get_submodule(anatomy.blocks)
    for number in range(*blocks):
        layers[number] = more[number]
    for name in anatomy.edges:
        if anatomy.needs_module(name, *blocks):
            whole.set_submodule(name, part.get_submodule(name))
    return whole


def _say_what_stays(model: Any, anatomy: Anatomy, span: tuple[int, int], wanted: Format, dtype: torch.dtype) -> None:
    """Tell the operator where the format saves less than they may hope."""
    stays = [entry for number in range(*span) for entry in plain_matrices(model, f"{anatomy.blocks}.{number}")]
    size = sum(size for _, size in stays)
    if size > WORTH_SAYING * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()):
        kinds = sorted({name.removeprefix(anatomy.blocks + ".").partition(".")[2] for name, _ in stays})
        log.warning(
            "%s does not cover all of the blocks: %s (%.0f MB) stay in %s",
            wanted,
            ", ".join(kinds),
            size / 1e6,
            _name(dtype),
        )


def _name(dtype: torch.dtype) -> DtypeName:
    name: DtypeName = str(dtype).removeprefix("torch.")  # type: ignore[assignment]
    return name
