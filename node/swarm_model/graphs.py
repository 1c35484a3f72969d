"""Decode steps recorded once and replayed: on an accelerator a small step is mostly the host's launching of kernels.

Owns the recordings of a whole span's forward for 1, 2, 4, ... sessions of one token each, with the static tensors that
they read and write, and the choice between replaying and running. The sizes that come first are recorded before the
span serves, wider tables when the first step needs them. A step of fewer sessions is filled up with ones that write to
a page that is nobody's, and so do all runs that are there to be recorded. Prefill, parts of a span, and whatever cannot
be recorded run as they did. Called as a driver by span.py; made and verified by acceleration.py.
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
from swarm_model.transfers import Transfers

log = logging.getLogger(__name__)

LARGEST: Final = 64  # sessions of a recorded step
SIZES: Final = tuple(1 << power for power in range(LARGEST.bit_length()))
NARROWEST: Final = 256  # tokens of a session that the narrowest tables hold
WIDER: Final = 4  # times as many pages: the next width that is recorded
AHEAD: Final = 2  # widths that are recorded before a span serves
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
    """A step of `sessions` sessions with one token each whose tensors are filled anew for each replay.

    At first all of them write to the spare page.
    """

    def __init__(self, sessions: int, width: int, page_size: int, spare_page: int, device: torch.device) -> None:
        super().__init__((), (), page_size, torch.float32, Transfers(device))
        self.tokens = sessions
        self._spare_page = spare_page
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
            most_tokens=width * page_size,
            lasts=True,
        )
        self._send(0)

    def layout(self, longest_chunk: int) -> Layout:
        return self.static_layout

    def fill(self, step: Step) -> None:
        """Take over what another step says, and leave the rest to the spare page.

        The copies stand in the stream that computes: behind the replay that still reads the tensors, before the next.
        """
        rows, layout = self._host_rows.numpy(), self.static_layout
        rows[0, : step.tokens], rows[1, : step.tokens] = step.position_list, step.slot_list
        for place, (stretch, table) in enumerate(zip(step.stretches, step.tables, strict=True)):
            layout.host_lengths[place] = stretch.length
            layout.host_pages[place, : len(table.pages)] = table.pages
        self._send(step.tokens)

    def _send(self, sessions: int) -> None:
        """Bring the tables of so many sessions to the device; those behind them write to the spare page."""
        rows, layout = self._host_rows.numpy(), self.static_layout
        rows[0, sessions:], rows[1, sessions:] = 0, self._spare_page * self.page_size
        layout.host_lengths[sessions:] = 1
        layout.host_pages[sessions:, 0] = self._spare_page
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
        """Count the recordings; 0 after a step, or after recording ahead, if steps cannot be recorded."""
        return len(self._recordings)

    def record_ahead(self, like: torch.Tensor, advance: Callable[[int, int], None]) -> None:
        """Record steps of all sizes with the narrowest tables, as far as the pool has pages for such steps.

        `like` are a step's inputs, of any number of tokens; `advance` is told how many of how many are recorded.
        """
        steps = [
            (size, width)
            for width in self._widths()[:AHEAD]
            for size in SIZES
            if (size // 2 + 1) * width <= self._spare_page  # the fewest sessions that are filled up to this size
        ]
        # What a large step needs for its intermediate results is enough for those after it
        steps.sort(key=lambda step: step[0] * step[1], reverse=True)
        advance(0, len(steps))
        for done, (size, width) in enumerate(steps, start=1):
            if self._record(size, width, like) is None:
                return
            advance(done, len(steps))

    def run(self, inputs: torch.Tensor, step: Step, rows: torch.Tensor, part: Part | None = None) -> torch.Tensor:
        decodes = step.tokens == len(step.stretches) <= LARGEST and not step.caches
        wanted = len(rows) > 0 or not self._last
        if not (self._works and decodes and wanted and part in (None, self._whole)):
            return self._driver.run(inputs, step, rows, part)
        recording = self._recording(inputs, step)
        if recording is None:
            return self._driver.run(inputs, step, rows, part)
        recording.step.fill(step)
        chosen = rows if self._last else torch.arange(step.tokens, device=inputs.device)
        return recording.run(inputs, chosen, self._kernel)

    @property
    def _spare_page(self) -> int:
        return self._cache.pool.pages - 1

    def _widths(self) -> list[int]:
        """Give the pages that recorded tables may have for each session, up to all that sessions are given."""
        pages = self._spare_page
        widths = [min(pages, -(-NARROWEST // self._cache.pool.page_size))]
        while widths[-1] < pages:
            widths.append(min(pages, WIDER * widths[-1]))
        return widths

    def _recording(self, inputs: torch.Tensor, step: Step) -> _Recording | None:
        size = 1 << (step.tokens - 1).bit_length()
        most = max(len(table.pages) for table in step.tables)
        width = next(width for width in self._widths() if width >= most)
        return self._recordings.get((size, width)) or self._record(size, width, inputs)

    def _record(self, size: int, width: int, like: torch.Tensor) -> _Recording | None:
        static = _StaticStep(size, width, self._cache.pool.page_size, self._spare_page, like.device)
        try:
            recording = _Recording(self._driver, self._recorder, static, like)
        except RuntimeError as error:  # torch's, where an operation waits for the device or memory is short
            log.warning("decode steps cannot be recorded, they run one kernel after the other: %s", error)
            self._works = False
            self._recordings.clear()
            return None
        self._recordings[size, width] = recording
        return recording
