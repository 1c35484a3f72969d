"""Decode steps recorded once and replayed: on an accelerator a small step is mostly the host's launching of kernels.

Owns the recordings of a whole span's forward for 1, 2, 4, ... sessions of one token each, with the static tensors that
they read and write, and the choice between replaying and running. A step of fewer sessions is filled up with ones that
write to a page that is nobody's. Prefill, parts of a span, and whatever cannot be recorded run as they did. Called as a
driver by span.py; made and verified by acceleration.py.
"""

import logging
from collections.abc import Callable
from typing import Final, Protocol

import numpy as np
import torch

from swarm_model.attention import PagedKV
from swarm_model.drivers import Driver, Part
from swarm_model.kernels import Kernel, Layout
from swarm_model.step import Step

log = logging.getLogger(__name__)

LARGEST: Final = 64  # sessions of a recorded step
WIDER: Final = 4  # times as many pages: the next width that is recorded
WARM_UPS: Final = 2  # runs before a recording, so that libraries have made up their minds

Run = Callable[[], torch.Tensor]


class Recorder(Protocol):
    """Turns a run over static tensors into one that can be repeated."""

    def record(self, run: Run) -> Run:
        """Return what computes the same again into the same tensor, from what the static tensors then hold."""


class CudaGraphs:
    """Records CUDA graphs; they share the memory of their intermediate results."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Run) -> Run:
        with torch.cuda.device(self._device):
            return self._record(run)

    def _record(self, run: Run) -> Run:
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = run()

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay


class Eager:
    """Records nothing: runs again. For tests, and for devices without graphs."""

    def record(self, run: Run) -> Run:
        run()
        return run


class _StaticStep(Step):
    """A step of `sessions` sessions with one token each whose tensors are filled anew for each replay."""

    def __init__(self, sessions: int, width: int, page_size: int, most_tokens: int, device: torch.device) -> None:
        super().__init__((), (), page_size, torch.float32, device)
        self.tokens = sessions
        cuda = device.type == "cuda"
        # One buffer on each side, so that filling the tensors takes two copies
        self._host_rows = torch.zeros(2, sessions, dtype=torch.int64, pin_memory=cuda)
        self._rows = torch.zeros(2, sessions, dtype=torch.int64, device=device)
        self._host_tables = torch.zeros(sessions * (1 + width), dtype=torch.int32, pin_memory=cuda)
        self._tables = torch.zeros(sessions * (1 + width), dtype=torch.int32, device=device)
        ends = np.arange(sessions + 1, dtype=np.int32)
        self.positions, self.slots = self._rows[:1], self._rows[1]
        self.static_layout = Layout(
            host_row_ends=ends,
            host_lengths=self._host_tables[:sessions].numpy(),
            host_pages=self._host_tables[sessions:].view(sessions, width).numpy(),
            row_ends=torch.from_numpy(ends).to(device),
            lengths=self._tables[:sessions],
            pages=self._tables[sessions:].view(sessions, width),
            page_size=page_size,
            most_rows=1,
            most_tokens=most_tokens,
            lasts=True,
        )

    def layout(self, longest_chunk: int) -> Layout:
        return self.static_layout

    def fill(self, step: Step, spare_page: int) -> None:
        """Take over what another step says, and send what is left over to the spare page."""
        real = step.tokens
        rows = self._host_rows.numpy()
        rows[0, :real], rows[0, real:] = step.position_list, 0
        rows[1, :real], rows[1, real:] = step.slot_list, spare_page * self.page_size
        layout = self.static_layout
        layout.host_lengths[real:] = 1
        layout.host_pages[real:, 0] = spare_page
        for place, (stretch, table) in enumerate(zip(step.stretches, step.tables, strict=True)):
            layout.host_lengths[place] = stretch.length
            layout.host_pages[place, : len(table.pages)] = table.pages
        self._rows.copy_(self._host_rows, non_blocking=True)
        self._tables.copy_(self._host_tables, non_blocking=True)


class _Recording:
    """A span's decode step of one size."""

    def __init__(self, driver: Driver, recorder: Recorder, step: _StaticStep, like: torch.Tensor) -> None:
        self.step = step
        self._inputs = like.new_zeros(step.tokens, *like.shape[1:])
        rows = torch.arange(step.tokens, device=like.device)
        self._replay = recorder.record(lambda: driver.run(self._inputs, step, rows))

    def run(self, inputs: torch.Tensor, rows: torch.Tensor, kernel: Kernel) -> torch.Tensor:
        self._inputs[: len(inputs)].copy_(inputs, non_blocking=True)
        kernel.replan(self.step.static_layout)
        output = self._replay()
        # The next replay writes over it
        return output[: len(rows)].clone() if len(rows) == len(inputs) else output.index_select(0, rows)


class DecodeGraphs:
    """Replays decode steps through a whole span; everything else goes to the driver behind it."""

    def __init__(
        self, driver: Driver, cache: PagedKV, kernel: Kernel, recorder: Recorder, *, blocks: int, last: bool
    ) -> None:
        """`cache.pool` has one page more than sessions are given: the last."""
        self._driver, self._cache, self._kernel, self._recorder = driver, cache, kernel, recorder
        self._whole, self._last = Part(0, blocks), last
        self._recordings: dict[tuple[int, int], _Recording] = {}
        self._works = True

    @property
    def recorded(self) -> int:
        """Count the recordings; 0 after a step if steps cannot be recorded."""
        return len(self._recordings)

    def run(self, inputs: torch.Tensor, step: Step, rows: torch.Tensor, part: Part | None = None) -> torch.Tensor:
        decodes = step.tokens == len(step.stretches) <= LARGEST and not step.caches
        wanted = len(rows) > 0 or not self._last
        if not (self._works and decodes and wanted and part in (None, self._whole)):
            return self._driver.run(inputs, step, rows, part)
        recording = self._recording(inputs, step)
        if recording is None:
            return self._driver.run(inputs, step, rows, part)
        recording.step.fill(step, self._spare_page)
        chosen = rows if self._last else torch.arange(step.tokens, device=inputs.device)
        return recording.run(inputs, chosen, self._kernel)

    @property
    def _spare_page(self) -> int:
        return self._cache.pool.pages - 1

    def _recording(self, inputs: torch.Tensor, step: Step) -> _Recording | None:
        size = 1 << (step.tokens - 1).bit_length()
        most = max(len(table.pages) for table in step.tables)
        width = 1
        while width < most:
            width *= WIDER
        key = (size, width)
        if key not in self._recordings:
            page_size = self._cache.pool.page_size
            static = _StaticStep(size, width, page_size, width * page_size, inputs.device)
            static.fill(step, self._spare_page)
            try:
                self._recordings[key] = _Recording(self._driver, self._recorder, static, inputs)
            except RuntimeError as error:  # torch's, where an operation waits for the device
                log.warning("decode steps cannot be recorded, they run one kernel after the other: %s", error)
                self._works = False
                return None
        return self._recordings[key]
