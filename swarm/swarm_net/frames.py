"""How messages stand in a stream of bytes: `u32 header_len | u32 body_len | header | body`, little-endian.

Owns the framing and its limits; what a header means is `messages.py`, sockets are `direct.py`. Sans-I/O: the owner of a
stream asks `buffer()` where the next bytes go, reports them with `received()`, and takes frames with `next_frame()`.
A frame of eight zero bytes is a heartbeat.

Lengths are checked against the limits of the stream's state before anything is allocated, and a large body gets memory
only as it arrives: a peer that merely announces 64 MiB holds `EAGER_BODY_BYTES`. A large body that nobody waits for is
read and thrown away: it may be late, so its link stays, and it gets no memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

from swarm_net.errors import Malformed
from swarm_net.links import Body

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

HEAD = Struct("<II")
HEARTBEAT = bytes(HEAD.size)

# A body up to this size is copied out of the scratch; a larger one is received straight into its own memory.
SMALL_BODY_BYTES = 32 * KIB
EAGER_BODY_BYTES = MIB
# A body up to this size is taken from anybody: requests are smaller (`EndpointLimits.request_bytes`), and get an answer
# where they are somewhat too large.
UNEXPECTED_BODY_BYTES = 256 * KIB
_GROWTH = 4


@dataclass(frozen=True, slots=True)
class FrameLimits:
    """The longest header and body that a receiver takes, in bytes."""

    max_header: int
    max_body: int


UNAUTHENTICATED = FrameLimits(max_header=256 - HEAD.size, max_body=0)
GREETING = FrameLimits(max_header=16 * KIB, max_body=0)
DEFAULT_LIMITS = FrameLimits(max_header=64 * KIB, max_body=64 * MIB)


class Frame(NamedTuple):
    """`header` may be a view of the receiver's scratch: it is valid until the next `buffer()`."""

    header: Body
    body: Body

    @property
    def is_heartbeat(self) -> bool:
        return not len(self.header)


def size_of(body: Body) -> int:
    """Return the bytes of a body, whose memoryview may have wider items."""
    return body.nbytes if isinstance(body, memoryview) else len(body)


def check_size(header_bytes: int, body_bytes: int, limits: FrameLimits) -> None:
    """Raise Malformed unless a frame stays within limits."""
    if header_bytes > limits.max_header:
        raise Malformed(what="frame", reason=f"header of {header_bytes} bytes, at most {limits.max_header} are taken")
    if body_bytes > limits.max_body:
        raise Malformed(what="frame", reason=f"body of {body_bytes} bytes, at most {limits.max_body} are taken")


def encode_frame(header: bytes, body: Body = b"") -> Sequence[Body]:
    """Return what to write: one piece where copying the body is cheaper than a second write, else two."""
    body_bytes = size_of(body)
    head = HEAD.pack(len(header), body_bytes)
    if body_bytes <= SMALL_BODY_BYTES:
        return (b"".join((head, header, body)),)
    return (head + header, body.cast("B") if isinstance(body, memoryview) else body)


class FrameReceiver:
    """Cuts a stream into frames, however it was split.

    Small frames are parsed out of one scratch, used again and again. Invariant: bytes [_start, _end) of the scratch are
    received and not yet taken; while `_body` is set they are none, and bytes go into `_body` instead. While `_to_skip`
    is not 0 they are none either, and bytes go into the scratch to be overwritten.
    """

    def __init__(self, limits: FrameLimits, expects_large: Callable[[], bool] = lambda: True) -> None:
        """`expects_large` says, for each body above UNEXPECTED_BODY_BYTES that begins, whether anybody waits for it."""
        self._limits = limits
        self._expects_large = expects_large
        self._scratch = bytearray(_scratch_bytes(limits))
        self._view = memoryview(self._scratch)
        self._start = 0
        self._end = 0
        self._body: bytearray | None = None
        self._body_header = b""
        self._body_bytes = 0
        self._body_received = 0
        self._to_skip = 0

    @property
    def held_bytes(self) -> int:
        """What the body that is being received takes by now, if it is a large one."""
        return 0 if self._body is None else len(self._body)

    def drop(self) -> None:
        """Let go of the body that is being received; nothing is received any more."""
        self._body = None

    def set_limits(self, limits: FrameLimits) -> None:
        """Apply other limits from the next frame on; headers taken before stay valid."""
        pending = self._view[self._start : self._end]
        scratch = bytearray(max(_scratch_bytes(limits), len(pending)))
        scratch[: len(pending)] = pending
        self._limits, self._scratch, self._view = limits, scratch, memoryview(scratch)
        self._start, self._end = 0, len(pending)

    def buffer(self) -> memoryview:
        """Return where the next bytes go; never empty."""
        if self._body is not None:
            if self._body_received == len(self._body):
                self._grow_body()
            return memoryview(self._body)[self._body_received :]
        if self._to_skip:
            return self._view[: self._to_skip]
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start and len(self._scratch) - self._end < len(self._scratch) // 2:
            pending = self._end - self._start
            self._scratch[:pending] = self._view[self._start : self._end]
            self._start, self._end = 0, pending
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """Report that `count` bytes were written to the last `buffer()`."""
        if self._body is not None:
            self._body_received += count
        elif self._to_skip:
            self._to_skip -= count
        else:
            self._end += count

    def next_frame(self) -> Frame | None:
        """Return the next frame that is complete, if there is one.

        Raises Malformed, now and for ever, where lengths go beyond the limits or contradict each other.
        """
        if self._body is not None:
            return self._take_body()
        if self._end - self._start < HEAD.size:
            return None
        header_bytes, body_bytes = HEAD.unpack_from(self._scratch, self._start)
        check_size(header_bytes, body_bytes, self._limits)
        if body_bytes and not header_bytes:
            raise Malformed(what="frame", reason="a body without a header")
        header_start = self._start + HEAD.size
        body_start = header_start + header_bytes
        if self._end < body_start:
            return None
        frame_end = body_start + body_bytes
        if self._end >= frame_end:
            self._start = frame_end
            return Frame(self._view[header_start:body_start], bytes(self._view[body_start:frame_end]))
        if body_bytes > SMALL_BODY_BYTES:
            arrived = self._end - body_start
            if body_bytes > UNEXPECTED_BODY_BYTES and not self._expects_large():
                self._to_skip = body_bytes - arrived
                self._start = self._end = 0
                return None
            self._body_header = bytes(self._view[header_start:body_start])
            self._body = bytearray(max(arrived, min(body_bytes, EAGER_BODY_BYTES)))
            self._body[:arrived] = self._view[body_start : self._end]
            self._body_bytes, self._body_received = body_bytes, arrived
            self._start = self._end = 0
        return None

    def _take_body(self) -> Frame | None:
        if self._body is None or self._body_received < self._body_bytes:
            return None
        frame = Frame(self._body_header, self._body)
        self._body = None
        return frame

    def _grow_body(self) -> None:
        # Another one, since the stream's owner may still hold a view of this one, which then could not be resized.
        assert self._body is not None
        grown = bytearray(min(self._body_bytes, _GROWTH * len(self._body)))
        grown[: self._body_received] = self._body
        self._body = grown


def _scratch_bytes(limits: FrameLimits) -> int:
    """Room for the largest frame that is not received into its own memory."""
    return HEAD.size + limits.max_header + min(limits.max_body, SMALL_BODY_BYTES)
