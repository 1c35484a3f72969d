"""The compute thread: what it hands back, and whom a failing executor harms."""

import asyncio
from collections.abc import Sequence

import pytest

from swarm_net.clocks import SystemClock
from swarm_net.session_errors import ComputeFailed
from swarm_node.compute import Adopt, ComputeThread, Drop, Ran, Void
from swarm_node.errors import ComputeThreadFailed
from swarm_node.executor import Output, Piece, Prefix, SpanFacts
from swarm_node.scheduler import Scheduler, Work
from swarm_sim.digest_executor import digest_facts

POISON = b"poison"


class Echo:
    """Gives back what it gets; a batch with a poisonous piece fails as a whole."""

    def __init__(self) -> None:
        self.facts: SpanFacts = digest_facts(0, 4, 8, kv_tokens=64)
        self.dropped: list[bytes] = []

    def run(self, pieces: Sequence[Piece]) -> list[Output]:
        if any(bytes(piece.data) == POISON for piece in pieces):
            raise ZeroDivisionError
        return [bytes(piece.data) for piece in pieces]

    def adopt(self, session: bytes, prefix: Prefix) -> int:
        raise KeyError(prefix.scope)

    def drop(self, session: bytes) -> None:
        self.dropped.append(session)


def step(session: bytes, data: bytes, *, epoch: int = 0) -> Work:
    return Work(
        session=session,
        epoch=epoch,
        frame=0,
        position=0,
        count=1,
        kind="decode",
        blocks=(0, 4),
        data=memoryview(data),
        dtype="",
        sample=False,
        draw=None,
        arrived_s=0.0,
    )


async def test_whose_piece_makes_the_executor_raise_fails_alone() -> None:
    compute = ComputeThread(Echo(), Scheduler(), SystemClock())
    arrived: asyncio.Queue[list[Ran]] = asyncio.Queue()
    compute.start(arrived.put_nowait)
    compute.submit([step(b"a", b"one"), step(b"b", POISON), step(b"c", b"three")])
    async with asyncio.timeout(10):
        outputs = {ran.part.work.session: ran.output for ran in await arrived.get()}
        assert isinstance(outputs.pop(b"b"), ComputeFailed)
        assert outputs == {b"a": b"one", b"c": b"three"}
        await compute.stop()


async def test_what_is_voided_or_dropped_is_told_after_all_that_ran() -> None:
    executor = Echo()
    compute = ComputeThread(executor, Scheduler(), SystemClock())
    arrived: asyncio.Queue[object] = asyncio.Queue()
    compute.start(arrived.put_nowait)
    compute.submit(
        [
            step(b"a", b"old"),
            step(b"a", b"old"),
            Void(b"a", 1, arrived.put_nowait),
            step(b"a", b"new", epoch=1),
        ]
    )
    async with asyncio.timeout(10):
        assert await arrived.get() == 2
        ran = await arrived.get()
        assert isinstance(ran, list)
        assert [part.output for part in ran] == [b"new"]
        compute.submit([step(b"a", b"never"), Drop(b"a", lambda: arrived.put_nowait("dropped"))])
        assert await arrived.get() == "dropped"
        assert executor.dropped == [b"a"]
        await compute.stop()


async def test_a_thread_that_fails_says_so() -> None:
    compute = ComputeThread(Echo(), Scheduler(), SystemClock())
    compute.start(lambda ran: None)
    compute.submit([Adopt(b"a", Prefix(scope=b"missing", digests=(b"d",)), lambda tokens: None)])
    async with asyncio.timeout(10):
        with pytest.raises(ComputeThreadFailed, match="KeyError"):
            await compute.ended()
        await compute.stop()
