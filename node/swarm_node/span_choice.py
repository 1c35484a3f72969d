"""Which span a node serves, and getting it into memory.

Owns `--blocks`: a span as given, or what fits this machine and what the swarm lacks most. Loading runs in a thread of
its own, so that the node stays reachable and a signal ends it at once.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, TypeVar

from swarm_model.checkpoint import Checkpoint
from swarm_model.sizing import DtypeName, WeightSizes, require_memory, weight_sizes
from swarm_net.placement import choose_span
from swarm_net.records import Record
from swarm_node.data_dir import default_base, running
from swarm_node.errors import BadBlocks, NothingToServe
from swarm_node.reporting import Reporter
from swarm_node.settings import Settings

if TYPE_CHECKING:
    import torch

    from swarm_model.span import LoadProgress
    from swarm_node.span_executor import Rates, SpanExecutor

_T = TypeVar("_T")

KV_BYTES = 2 << 30  # where the node chooses
KV_SHARE = 0.25  # of what a GPU has free, beside blocks that are still to be chosen: all of it is for the span
ONE_THREAD_KEEPS = 0.8  # of decode speed times prefill speed with many threads, and one is chosen


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where and how a node computes, all `auto` resolved."""

    device: torch.device
    device_name: str  # what the hardware is called, where that is known
    dtype: torch.dtype
    threads: int
    free_memory_bytes: int
    expands: bool  # a quantized checkpoint, to its full size
    experts: bool = True  # whether those of a mixture can be quantized

    @property
    def dtype_name(self) -> DtypeName:
        return str(self.dtype).removeprefix("torch.")  # type: ignore[return-value]

    def kv_bytes(self, setting: int | str, weight_bytes: int | None = None) -> int:
        """Return what keys and values may take: as asked, else a fixed size, or what weights leave free on a GPU.

        Without `weight_bytes`: what to keep for them while the blocks are chosen.
        """
        if isinstance(setting, int):
            return setting
        if self.device.type != "cuda":
            return KV_BYTES
        if weight_bytes is None:
            return int(KV_SHARE * self.free_memory_bytes)
        return max(KV_BYTES, self.free_memory_bytes - weight_bytes)


def examine(settings: Settings, checkpoint: Checkpoint, span: tuple[int, int] | None) -> Hardware:
    """Resolve device, number format and threads, and see that a given span fits; imports torch: call it in a thread.

    Raises BadSetting, NotEnoughMemory, QuantizationUnavailable, FormatUnavailable.
    """
    from swarm_model.devices import available_bytes
    from swarm_model.experts import quantizes_experts
    from swarm_model.prequantized import plan_of
    from swarm_model.quantization import format_for
    from swarm_node import hardware

    device = hardware.choose_device(settings.device)
    format_for(settings.quantize, checkpoint, device)
    plan = plan_of(checkpoint, device)
    stored = str(checkpoint.raw_config.get("dtype") or "bfloat16")
    found = Hardware(
        device,
        hardware.device_name(device),
        hardware.choose_dtype(settings.dtype, device, stored, packed=plan is not None and not plan.expanded),
        hardware.choose_threads(settings.threads, other_nodes=len(running(default_base()))),
        hardware.free_memory_bytes(device),
        plan is not None and plan.expanded,
        quantizes_experts(checkpoint),
    )
    if span is not None:
        available = available_bytes(device)
        require_memory(
            checkpoint,
            *span,
            found.dtype_name,
            settings.quantize,
            kv_bytes=found.kv_bytes(settings.kv_memory, _weight_bytes(settings, checkpoint, span, found)),
            available_bytes=available,
            expanded=found.expands,
            experts=found.experts,
        )
    return found


def _sizes(settings: Settings, checkpoint: Checkpoint, hardware: Hardware) -> WeightSizes:
    return weight_sizes(
        checkpoint, hardware.dtype_name, settings.quantize, expanded=hardware.expands, experts=hardware.experts
    )


def _weight_bytes(settings: Settings, checkpoint: Checkpoint, span: tuple[int, int], hardware: Hardware) -> int:
    sizes = _sizes(settings, checkpoint, hardware)
    return sizes.span(*span) + sizes.loading


def fixed_span(setting: str, num_blocks: int) -> tuple[int, int] | None:
    """Read --blocks; None for auto. Raises BadBlocks."""
    if setting == "auto":
        return None
    start, end = (int(part) for part in setting.split(":"))
    if not 0 <= start < end <= num_blocks:
        raise BadBlocks(start, end, num_blocks)
    return start, end


def automatic_span(
    settings: Settings, checkpoint: Checkpoint, hardware: Hardware, records: Sequence[Record], rng: Random
) -> tuple[int, int]:
    """Choose as many blocks as fit beside the KV, where the swarm needs them most. Raises NothingToServe."""
    sizes = _sizes(settings, checkpoint, hardware)
    beside = hardware.kv_bytes(settings.kv_memory) + sizes.first_edge + sizes.last_edge + sizes.loading
    room = hardware.free_memory_bytes - beside
    blocks = max(sizes.blocks)
    if room < blocks:
        raise NothingToServe(beside + blocks, hardware.free_memory_bytes)
    capacity = min(room // blocks, len(sizes.blocks))
    rates = [record.decode_tokens_per_s for record in records if record.decode_tokens_per_s > 0]
    mean_rate = sum(rates) / len(rates) if rates else 1.0
    return choose_span(records, len(sizes.blocks), capacity, mean_rate, rng)


def load(
    settings: Settings, checkpoint: Checkpoint, span: tuple[int, int], hardware: Hardware, reporter: Reporter
) -> tuple[SpanExecutor, Rates]:
    """Load a span and measure it; imports torch and takes long, so call it in a thread."""
    import torch

    from swarm_model.span import Span
    from swarm_node.span_executor import SpanExecutor, measure

    torch.set_num_threads(hardware.threads)
    with reporter.progress(f"blocks {span[0]}:{span[1]}") as advance:

        def show(progress: LoadProgress) -> None:
            advance(progress.stage, progress.done, progress.total)

        loaded = Span.load(
            checkpoint,
            *span,
            device=hardware.device,
            dtype=hardware.dtype,
            kv_bytes=hardware.kv_bytes(settings.kv_memory, _weight_bytes(settings, checkpoint, span, hardware)),
            quantize=settings.quantize,
            on_progress=show,
        )
    executor = SpanExecutor(loaded, swap_bytes=settings.swap_memory)
    rates = measure(executor)
    if settings.threads == 0 and hardware.threads > 1 and hardware.device.type == "cpu":
        torch.set_num_threads(1)  # a small span is not worth dividing, and a busy machine makes threads wait
        alone = measure(executor)
        kept = (alone.decode_tokens_per_s / rates.decode_tokens_per_s) * (
            alone.prefill_tokens_per_s / rates.prefill_tokens_per_s
        )
        if kept > ONE_THREAD_KEEPS:
            return executor, alone
        torch.set_num_threads(hardware.threads)
    return executor, rates


async def in_thread(work: Callable[[], _T], name: str) -> _T:
    """Run blocking work in a daemon thread: unlike a pool's, it does not hold up the end of the program."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        try:
            result, error = work(), None
        except BaseException as raised:
            result, error = None, raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done
