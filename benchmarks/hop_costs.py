"""Where a hop's time beyond its compute goes, measured part by part with the hop's own pieces.

Used by `decode.py`. One way over a link is half of a round trip between two processes: bare TCP is the kernel's share,
bare TLS less bare TCP is encryption, our link less bare TLS is framing and serialization. The hand-over is a step
through a `ComputeThread` whose executor does nothing.
"""

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import uvloop

from links import Way, link_way, raw_way, round_trip_us, serve
from swarm_net.clocks import SystemClock
from swarm_net.direct import DirectTransport
from swarm_net.identity import Identity
from swarm_node.compute import ComputeThread, Ran
from swarm_node.executor import Output, Piece
from swarm_node.scheduler import Scheduler, Work

HAND_OVERS = 500


@dataclass(frozen=True, slots=True)
class HopCosts:
    """Microseconds of one decode step, one way, medians."""

    hand_over: float
    serialization: float
    tls: float
    kernel: float


class NoExecutor:
    """Returns a body as it came."""

    def run(self, pieces: Sequence[Piece]) -> list[Output]:
        return [piece.data for piece in pieces]

    def drop(self, session: bytes) -> None:
        pass


def measure(hidden_bytes: int) -> HopCosts:
    """Measure with bodies of this size."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    try:
        ports = ours.recv()
        tcp, tls, link = uvloop.run(_round_trips(ports, hidden_bytes))
    finally:
        ours.close()
        server.terminate()
        server.join()
    return HopCosts(
        hand_over=uvloop.run(_hand_over_us(hidden_bytes)),
        serialization=max(0.0, link - tls) / 2,
        tls=max(0.0, tls - tcp) / 2,
        kernel=tcp / 2,
    )


async def _round_trips(ports: tuple[int, int, str], hidden_bytes: int) -> list[float]:
    transport = DirectTransport(Identity.generate(), SystemClock())
    ways: list[Way] = [
        await raw_way("tcp", ports[0], None),
        await raw_way("tls", ports[1], transport.tls.dialer),
        await link_way("link", ports[2], transport, warm=True),
    ]
    medians = [(await round_trip_us(way, hidden_bytes))[0] for way in ways]
    await transport.close()
    return medians


async def _hand_over_us(hidden_bytes: int) -> float:
    """From the loop to the compute thread and back."""
    compute = ComputeThread(NoExecutor(), Scheduler(), SystemClock())
    came: asyncio.Queue[list[Ran]] = asyncio.Queue()
    compute.start(came.put_nowait)
    body, taken_us = memoryview(bytes(hidden_bytes)), []
    for frame in range(HAND_OVERS):
        work = Work(bytes(16), 0, frame, frame, 1, "decode", (1, 2), body, "", False, None, 0.0)
        started_s = time.perf_counter()
        compute.submit([work])
        await came.get()
        taken_us.append((time.perf_counter() - started_s) * 1e6)
        await asyncio.sleep(0.0005)
    await compute.stop()
    return statistics.median(taken_us)
