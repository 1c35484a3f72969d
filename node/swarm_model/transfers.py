"""What crosses between host and device in a step: over a stream beside the one that computes, through pinned memory.

Owns the order of those copies. What goes in is copied while earlier work runs, and work launched later waits for it.
What comes out is copied behind the work that gave it, and the host waits for that copy alone: nothing else has to end,
and nothing is kept from being launched. Made once a span; called by span.py, step.py and drawing.py. Where there are no
such streams tensors are moved as torch moves them, and on a CPU nothing is.
"""

from collections import deque
from typing import Final, Protocol

import torch


class Event(Protocol):
    """A place in what a stream was given."""

    def query(self) -> bool:
        """Whether all before it is done."""

    def synchronize(self) -> None:
        """Have the host wait for all before it."""


class Streams(Protocol):
    """A device's stream that computes, whichever is current, and one beside it for copies."""

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Put a host tensor into pinned memory."""

    def pinned_like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Make room in pinned memory for a device tensor."""

    def copy_in(self, source: torch.Tensor) -> torch.Tensor:
        """Give the side stream a copy of a pinned tensor to a new one on the device, which work may then use."""

    def copy_out(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Give the side stream a copy of a device tensor to a pinned one."""

    def work_waits(self) -> None:
        """Have work that is launched later wait for the copies that were given."""

    def copies_wait(self) -> None:
        """Have copies that are given later wait for the work that was launched."""

    def mark(self) -> Event:
        """Mark the end of the copies that were given."""


class CudaStreams:
    """Those of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory()

    def pinned_like(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)

    def copy_in(self, source: torch.Tensor) -> torch.Tensor:
        with torch.cuda.stream(self._side):
            moved = source.to(self._device, non_blocking=True)
        moved.record_stream(self._current)  # its memory belongs to the side stream, the work that reads it does not
        return moved

    def copy_out(self, source: torch.Tensor, target: torch.Tensor) -> None:
        with torch.cuda.stream(self._side):
            target.copy_(source, non_blocking=True)
        source.record_stream(self._side)

    def work_waits(self) -> None:
        self._current.wait_stream(self._side)

    def copies_wait(self) -> None:
        self._side.wait_stream(self._current)

    def mark(self) -> Event:
        event: torch.cuda.Event = self._side.record_event()
        return event

    @property
    def _current(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self._device)


class Transfers:
    """Moves a span's inputs to its device, and its outputs to the host."""

    def __init__(self, device: torch.device, streams: Streams | None = None) -> None:
        self.device: Final = device
        self._streams = streams
        self._sent: deque[tuple[Event, torch.Tensor]] = deque()  # pinned sources, with the end of their copies

    def to_device(self, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Bring a host tensor over, in `dtype`; the host goes on at once, what is launched later finds it there."""
        streams = self._streams
        if streams is None or tensor.numel() == 0:
            return tensor.to(self.device, dtype)
        while self._sent and self._sent[0][0].query():
            self._sent.popleft()
        source = streams.pin(tensor)
        moved = streams.copy_in(source)
        self._sent.append((streams.mark(), source))
        streams.work_waits()
        return moved if dtype is None else moved.to(dtype)

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """Bring what was launched last over, and wait for it and for nothing behind it."""
        streams = self._streams
        if streams is None:
            return tensor.cpu()
        target = streams.pinned_like(tensor)
        streams.copies_wait()
        streams.copy_out(tensor, target)
        streams.mark().synchronize()
        return target
