"""Copies between host and device wait for what they need and for nothing else, on stand-ins for a device's streams."""

import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from swarm_model.acceleration import Acceleration
from swarm_model.graphs import Eager
from swarm_model.kernels import GatheredDecode
from swarm_model.transfers import Event, Transfers
from tests.model.families import BLOCKS, load_spans
from tests.model.test_acceleration import PLAIN, compare, run

CPU = torch.device("cpu")
CUTS = [0, 2, BLOCKS]


class LateStreams:
    """A side stream that copies nothing before somebody waits for it; until then there is garbage.

    Work here is whatever torch does on the CPU, at once. `told` is what was asked, in order.
    """

    def __init__(self, *, works_late: bool = False) -> None:
        """`works_late`: work that waits for copies lets them wait, too."""
        self.told: list[str] = []
        self._works_late = works_late
        self._given: deque[Callable[[], object]] = deque()
        self._done = 0

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        self.told.append("pin")
        return tensor.clone()

    def pinned_like(self, tensor: torch.Tensor) -> torch.Tensor:
        return _garbage(tensor)

    def copy_in(self, source: torch.Tensor) -> torch.Tensor:
        self.told.append("copy in")
        moved, kept = _garbage(source), weakref.ref(source)

        def copy() -> None:
            still_there = kept()
            assert still_there is not None, "the source is gone before it was copied"
            moved.copy_(still_there)

        self._given.append(copy)
        return moved

    def copy_out(self, source: torch.Tensor, target: torch.Tensor) -> None:
        assert self.told[-1] == "copies wait for work"
        self.told.append("copy out")
        self._given.append(lambda: target.copy_(source))

    def work_waits(self) -> None:
        self.told.append("work waits for copies")
        if not self._works_late:
            self.copy_until(self._done + len(self._given))

    def copies_wait(self) -> None:
        self.told.append("copies wait for work")

    def mark(self) -> Event:
        return _Mark(self, self._done + len(self._given))

    def copy_until(self, count: int) -> None:
        """Copy up to the first so many things given."""
        while self._done < count:
            self._given.popleft()()
            self._done += 1

    @property
    def done(self) -> int:
        return self._done


class _Mark:
    def __init__(self, streams: LateStreams, end: int) -> None:
        self._streams, self._end = streams, end

    def query(self) -> bool:
        return self._streams.done >= self._end

    def synchronize(self) -> None:
        self._streams.told.append("host waits for copies")
        self._streams.copy_until(self._end)


def _garbage(tensor: torch.Tensor) -> torch.Tensor:
    return torch.full(tensor.shape, float("nan") if tensor.is_floating_point() else 1 << 30, dtype=tensor.dtype)


def test_inputs_are_there_when_work_begins_and_outputs_when_the_host_reads() -> None:
    streams = LateStreams()
    transfers = Transfers(CPU, streams)
    moved = transfers.to_device(torch.arange(4), torch.float32)
    assert streams.told == ["pin", "copy in", "work waits for copies"]
    output = moved * 2.0
    assert torch.equal(transfers.to_host(output), torch.tensor([0.0, 2.0, 4.0, 6.0]))
    assert streams.told[3:] == ["copies wait for work", "copy out", "host waits for copies"]
    assert moved.dtype == torch.float32


def test_sources_stay_until_they_are_copied_and_no_longer() -> None:
    sources: list[weakref.ref[torch.Tensor]] = []

    class Watched(LateStreams):
        def pin(self, tensor: torch.Tensor) -> torch.Tensor:
            source = super().pin(tensor)
            sources.append(weakref.ref(source))
            return source

    streams = Watched(works_late=True)
    transfers = Transfers(CPU, streams)
    moved = [transfers.to_device(torch.tensor([number])) for number in range(5)]
    assert all(source() is not None for source in sources)
    streams.copy_until(3)
    assert [int(tensor) for tensor in moved] == [0, 1, 2, 1 << 30, 1 << 30]
    transfers.to_device(torch.tensor([5]))
    assert [source() is None for source in sources] == [True, True, True, False, False, False]
    streams.copy_until(6)


@pytest.mark.parametrize("graphs", [True, False])
def test_spans_give_the_same_over_a_side_stream(graphs: bool, checkpoint_of: Callable[[str], Path]) -> None:
    made: list[LateStreams] = []

    def streams() -> LateStreams:
        made.append(LateStreams())
        return made[-1]

    quick = Acceleration((GatheredDecode,), Eager, streams) if graphs else Acceleration(streams=streams)
    spans = load_spans(checkpoint_of("llama"), CUTS, acceleration=quick)
    compare(run(spans, 9), run(load_spans(checkpoint_of("llama"), CUTS, acceleration=PLAIN), 9), 1e-4)
    assert len(made) == len(spans)
    for span_streams in made:
        told = span_streams.told
        for place, what in enumerate(told):
            if what == "host waits for copies":
                assert told[place - 2 : place] == ["copies wait for work", "copy out"]
            if what == "copy in":
                assert told[place + 1] == "work waits for copies"
        assert "copy out" in told


def test_on_a_cpu_nothing_is_copied() -> None:
    transfers, tensor = Transfers(CPU), torch.ones(3)
    assert transfers.to_device(tensor) is tensor
    assert transfers.to_host(tensor) is tensor
