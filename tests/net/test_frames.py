"""Frames out of any stream: however it is split, and whatever it holds."""

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_net.errors import Malformed
from swarm_net.frames import (
    DEFAULT_LIMITS,
    EAGER_BODY_BYTES,
    HEAD,
    HEARTBEAT,
    SMALL_BODY_BYTES,
    UNAUTHENTICATED,
    UNEXPECTED_BODY_BYTES,
    Frame,
    FrameLimits,
    FrameReceiver,
    encode_frame,
)

LIMITS = FrameLimits(max_header=300, max_body=200_000)

body_sizes = st.one_of(
    st.integers(0, 100),
    st.integers(SMALL_BODY_BYTES - 2, SMALL_BODY_BYTES + 2),
    st.integers(SMALL_BODY_BYTES, LIMITS.max_body),
)


@st.composite
def frames(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Return a header and a body; an empty header is a heartbeat."""
    header = draw(st.binary(max_size=LIMITS.max_header))
    return header, random.Random(draw(st.integers(0, 99))).randbytes(draw(body_sizes)) if header else b""


def stream_of(sent: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(bytes(piece) for header, body in sent for piece in encode_frame(header, body))


def receive(receiver: FrameReceiver, data: bytes, split: random.Random, largest: int) -> list[tuple[bytes, bytes]]:
    """Feed a stream in pieces of random length, taking frames at random moments."""
    found: list[tuple[bytes, bytes]] = []
    view = memoryview(data)
    while view:
        room = receiver.buffer()
        assert len(room) > 0
        count = min(len(view), len(room), split.randint(1, largest))
        room[:count] = view[:count]
        receiver.received(count)
        view = view[count:]
        while (frame := receiver.next_frame()) is not None:
            found.append((bytes(frame.header), bytes(frame.body)))
    return found


@given(st.lists(frames(), max_size=6), st.integers(0, 1000), st.sampled_from([1, 7, 100, 5000, 1 << 20]))
def test_any_split_gives_the_same_frames(sent: list[tuple[bytes, bytes]], seed: int, largest: int) -> None:
    stream = stream_of(sent)
    if len(stream) > 5000 * largest:
        largest = 5000
    assert receive(FrameReceiver(LIMITS), stream, random.Random(seed), largest) == sent


@given(st.lists(frames(), min_size=1, max_size=4), st.integers(0, 1000), st.data())
def test_a_stream_that_breaks_off_gives_the_frames_before(
    sent: list[tuple[bytes, bytes]], seed: int, data: st.DataObject
) -> None:
    stream = stream_of(sent)
    cut = data.draw(st.integers(0, len(stream) - 1))
    found = receive(FrameReceiver(LIMITS), stream[:cut], random.Random(seed), 5000)
    assert found == sent[: len(found)]
    assert len(found) < len(sent)


@given(st.binary(max_size=3000), st.integers(0, 1000))
def test_random_bytes_raise_nothing_but_malformed(data: bytes, seed: int) -> None:
    with contextlib.suppress(Malformed):
        receive(FrameReceiver(LIMITS), data, random.Random(seed), 50)


@given(st.binary(min_size=1, max_size=8), st.integers(0, 1000))
def test_a_broken_stream_stays_broken(junk: bytes, seed: int) -> None:
    receiver = FrameReceiver(LIMITS)
    for attempt in range(3):
        with pytest.raises(Malformed):
            receive(receiver, b"\xff" * 8 + junk if attempt == 0 else junk, random.Random(seed), 8)


def fed(receiver: FrameReceiver, data: bytes) -> Frame | None:
    receiver.buffer()[: len(data)] = data
    receiver.received(len(data))
    return receiver.next_frame()


@pytest.mark.parametrize(
    ("header_bytes", "body_bytes", "limits"),
    [
        (249, 0, UNAUTHENTICATED),
        (1, 1, UNAUTHENTICATED),
        (LIMITS.max_header + 1, 0, LIMITS),
        (1, LIMITS.max_body + 1, LIMITS),
        (2**32 - 1, 2**32 - 1, DEFAULT_LIMITS),
        (0, 1, LIMITS),
    ],
)
def test_lengths_beyond_the_limits_are_refused_at_once(header_bytes: int, body_bytes: int, limits: FrameLimits) -> None:
    with pytest.raises(Malformed):
        fed(FrameReceiver(limits), HEAD.pack(header_bytes, body_bytes))


def test_an_announced_body_gets_memory_only_as_it_arrives() -> None:
    receiver = FrameReceiver(DEFAULT_LIMITS)
    assert fed(receiver, HEAD.pack(1, DEFAULT_LIMITS.max_body) + b"h") is None
    assert len(receiver.buffer()) == EAGER_BODY_BYTES
    received = 0
    while received < 9 * EAGER_BODY_BYTES:
        room = len(receiver.buffer())
        assert room <= 4 * max(received, EAGER_BODY_BYTES)
        receiver.received(room)
        received += room


def test_a_heartbeat_is_eight_zero_bytes() -> None:
    assert encode_frame(b"") == (HEARTBEAT,) == (bytes(8),)
    frame = fed(FrameReceiver(UNAUTHENTICATED), HEARTBEAT)
    assert frame is not None
    assert frame.is_heartbeat


def test_other_limits_hold_from_the_next_frame_on() -> None:
    receiver = FrameReceiver(UNAUTHENTICATED)
    stream = stream_of([(b"first", b""), (b"second" * 40, b"body" * 500)])
    first = fed(receiver, stream[:200])
    assert first is not None
    assert bytes(first.header) == b"first"
    receiver.set_limits(LIMITS)
    assert bytes(first.header) == b"first"
    assert receiver.next_frame() is None
    second = fed(receiver, stream[200:])
    assert second is not None
    assert (bytes(second.header), bytes(second.body)) == (b"second" * 40, b"body" * 500)


def test_a_wide_memoryview_counts_in_bytes() -> None:
    tokens = memoryview(bytes(range(16))).cast("i")
    assert b"".join(bytes(piece) for piece in encode_frame(b"h", tokens)) == HEAD.pack(1, 16) + b"h" + bytes(range(16))
    large = memoryview(bytes(2 * SMALL_BODY_BYTES)).cast("d")
    assert sum(map(len, encode_frame(b"h", large))) == HEAD.size + 1 + 2 * SMALL_BODY_BYTES


def test_a_large_body_that_nobody_waits_for_is_read_past_without_memory() -> None:
    expected = False
    receiver, split = FrameReceiver(DEFAULT_LIMITS, lambda: expected), random.Random(3)
    large, small = (b"h", bytes(UNEXPECTED_BODY_BYTES + 1)), (b"h", bytes(UNEXPECTED_BODY_BYTES))
    stream = stream_of([large, small])
    begun = UNEXPECTED_BODY_BYTES // 2
    assert receive(receiver, stream[:begun], split, 5000) == []
    assert receiver.held_bytes == 0
    assert receive(receiver, stream[begun:], split, 5000) == [small]
    expected = True
    assert receive(receiver, stream_of([large]), split, 5000) == [large]
