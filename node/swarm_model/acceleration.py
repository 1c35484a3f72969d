"""What makes a span quick on its device: the kernel that serves all its blocks, and recorded decode steps on a GPU.

Owns the candidates for a device and the choice among them, which is made when a span is loaded: each is run on the
inputs of the load checks, and one that fails or gives anything but the reference is passed over. Without any the span
serves all the same, by plain torch. Called by span.py; the ways themselves: kernels.py, native_attention.py, graphs.py.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

import torch

from swarm_model.drivers import Driver
from swarm_model.graphs import CudaGraphs, DecodeGraphs, Recorder
from swarm_model.kernels import FlashInferAttention, GatheredDecode, Kernel, VarlenAttention
from swarm_model.kv_pool import KVPool
from swarm_model.load_checks import (
    TEST_PAGES,
    TEST_STEPS,
    TEST_TOKENS,
    LoadedSpan,
    Reference,
    Service,
    Steps,
    run_chunks,
)
from swarm_model.native_attention import NativeAttention
from swarm_model.transfers import CudaStreams, Streams

log = logging.getLogger(__name__)

# Prompts, then steps in which one session or both decode, up to TEST_TOKENS of each
DECODE_STEPS: Final[Steps] = (
    ((0, 0, 5), (1, 0, 4)),
    ((0, 5, 1),),
    *(((1, position, 1), (0, position + 2, 1)) for position in range(4, TEST_TOKENS - 2)),
    ((1, TEST_TOKENS - 2, 1),),
    ((1, TEST_TOKENS - 1, 1),),
)


@dataclass(frozen=True)
class Acceleration:
    """What may be tried: kernels, best first, and a way of recording; and streams for what crosses to the host."""

    kernels: Sequence[Callable[[], Kernel]] = ()
    recorder: Callable[[], Recorder] | None = None
    streams: Callable[[], Streams] | None = None


@dataclass(frozen=True)
class Accelerated:
    """What was chosen."""

    kernel: str
    page_size: int
    driver: Driver
    graphs: DecodeGraphs | None  # the driver, where it records decode steps

    @property
    def spare_pages(self) -> int:
        """Count the pages that the pool needs beside those for sessions."""
        return 0 if self.graphs is None else 1

    @property
    def label(self) -> str:
        """Name the kernel, and "graphs" once steps are recorded."""
        return f"{self.kernel}+graphs" if self.graphs is not None and self.graphs.recorded else self.kernel


def acceleration_of(device: torch.device, page_size: int) -> Acceleration:
    """Name what may be tried on a device; what cannot run on it, such as a ROCm device's, is passed over.

    `page_size` is for kernels that take any.
    """
    if device.type == "cpu":
        return Acceleration((lambda: NativeAttention(page_size),))
    if device.type != "cuda":
        return Acceleration()
    kernels: list[Callable[[], Kernel]] = [VarlenAttention, GatheredDecode]
    if find_spec("flashinfer") is not None:
        kernels.insert(0, lambda: FlashInferAttention(device))
    return Acceleration(kernels, lambda: CudaGraphs(device), lambda: CudaStreams(device))


def accelerate(
    span: LoadedSpan, reference: Reference, service: Service, acceleration: Acceleration
) -> Accelerated | None:
    """Choose the first kernel that does all that a span's blocks ask, and record decode steps if that is right too.

    Leaves the service's pages with a small pool, and with the kernel if there is one.
    """
    cache = service.pages
    if cache is None or service.new_cache is not None:
        return None
    for make in acceleration.kernels:
        try:
            kernel = make()
            cache.kernel = kernel
            cache.asked.clear()
            cache.pool = KVPool(
                cache.pool.shapes, pages=TEST_PAGES, page_size=kernel.page_size, dtype=span.dtype, device=span.device
            )
            served = _agrees(span, reference, service.driver, kernel, DECODE_STEPS) and (
                kernel.longest_chunk == 1 or _agrees(span, reference, service.driver, kernel, TEST_STEPS)
            )
        except Exception as error:  # whatever a library or a device may say
            log.info("attention kernel passed over: %s", error)
            continue
        if served and cache.asked and all(kernel.serves(asked) for asked in cache.asked.values()):
            return _record(span, reference, service, kernel, acceleration)
    cache.kernel = None
    return None


def _record(
    span: LoadedSpan, reference: Reference, service: Service, kernel: Kernel, acceleration: Acceleration
) -> Accelerated:
    cache = service.pages
    assert cache is not None
    plain = Accelerated(kernel.name, kernel.page_size, service.driver, None)
    if acceleration.recorder is None:
        return plain

    def graphs() -> DecodeGraphs:
        assert acceleration.recorder is not None
        recorder = acceleration.recorder()
        return DecodeGraphs(service.driver, cache, kernel, recorder, blocks=len(span.blocks), last=span.last)

    cache.pool = KVPool(
        cache.pool.shapes, pages=TEST_PAGES + 1, page_size=kernel.page_size, dtype=span.dtype, device=span.device
    )
    tried = graphs()
    if not _agrees(span, reference, tried, kernel, DECODE_STEPS) or not tried.recorded:
        return plain
    chosen = graphs()
    return Accelerated(kernel.name, kernel.page_size, chosen, chosen)


def _agrees(span: LoadedSpan, reference: Reference, driver: Driver, kernel: Kernel, steps: Steps) -> bool:
    def run(inputs: torch.Tensor) -> list[torch.Tensor]:
        return run_chunks(driver, span, inputs, None, steps=steps, page_size=kernel.page_size)

    return reference.compare(span, run)[1] <= span.tolerance
