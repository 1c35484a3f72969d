"""What a link costs on one machine: `python benchmarks/links.py [--rounds 5]`.

Two processes on the loopback, uvloop in both. A round trip is one message there and one back; throughput is a stream
of 4 MiB bodies, four under way at once. "TCP" is a bare uvloop `BufferedProtocol` echo without framing or TLS: what
any link could reach at best. The ways to measure alternate within each round; medians over rounds with the spread
between the lowest and the highest round.
"""

import argparse
import asyncio
import multiprocessing
import platform
import socket
import ssl
import statistics
import struct
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from swarm_net.clocks import SystemClock
from swarm_net.direct import DirectTransport
from swarm_net.identity import Identity
from swarm_net.links import Body, Link
from swarm_net.messages import AnyMessage, Result, Step
from tables import show_table

KIB, MIB = 1 << 10, 1 << 20
ROUND_TRIPS = 1500
WARM_UP = 300
STREAM_MESSAGES = 32
STREAM_BYTES = 4 * MIB
WINDOW = 4  # messages under way at once
SESSION = bytes(16)
RAW_HEAD = struct.Struct("<II")  # bytes that follow, bytes to answer


class RawEnd(asyncio.BufferedProtocol):
    """The least that could be done: bytes in, after as many as announced a call."""

    def __init__(self, on_message: Callable[["RawEnd", int], None]) -> None:
        self._on_message = on_message
        self._buffer = memoryview(bytearray(4 * MIB + RAW_HEAD.size))
        self._filled = 0
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        while self._filled >= RAW_HEAD.size:
            size, answer = RAW_HEAD.unpack_from(self._buffer)
            end = RAW_HEAD.size + size
            if self._filled < end:
                return
            self._on_message(self, answer)
            rest = self._filled - end
            self._buffer[:rest] = self._buffer[end : self._filled]
            self._filled = rest

    def send(self, body: bytes, answer: int) -> None:
        if len(body) > 32 * KIB:
            self.transport.writelines((RAW_HEAD.pack(len(body), answer), body))
        else:
            self.transport.write(RAW_HEAD.pack(len(body), answer) + body)


class LinkEnd:
    """A `LinkHandler`; a Step is answered by a Result with a body of the size that its `tip` asks for."""

    def __init__(self, on_message: Callable[[Link, AnyMessage], None]) -> None:
        self._on_message = on_message

    def accept(self, link: Link) -> "LinkEnd":
        return self

    def on_message(self, link: Link, message: AnyMessage, body: Body) -> None:
        self._on_message(link, message)

    def on_lost(self, link: Link, reason: Exception) -> None:
        pass


def echo_raw(end: RawEnd, answer: int) -> None:
    end.send(bytes(answer), 0)


def echo_link(link: Link, message: AnyMessage) -> None:
    if isinstance(message, Step) and message.sample:
        link.send(Result(session=SESSION, frame=message.frame, position=0), bytes(message.tip))


def serve(pipe: Connection) -> None:
    """The far process: one listener of each kind, until the pipe closes."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        raw = await loop.create_server(lambda: RawEnd(echo_raw), "127.0.0.1", 0)
        tls = DirectTransport(Identity.generate(), SystemClock())
        raw_tls = await loop.create_server(lambda: RawEnd(echo_raw), "127.0.0.1", 0, ssl=tls.tls.listener)
        listener = await tls.listen("127.0.0.1", 0, LinkEnd(echo_link).accept)
        ports = [server.sockets[0].getsockname()[1] for server in (raw, raw_tls)]
        pipe.send((*ports, listener.addresses[0]))
        await loop.run_in_executor(None, pipe.poll, None)
        await tls.close()

    uvloop.run(run())


class Way:
    """One way to send: `send(body, answer_bytes)`; every message is answered."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.write: Callable[[bytes, int], None] = lambda body, answer: None
        self._unanswered = 0
        self._at_most = 0
        self._reached: asyncio.Future[None] | None = None

    def answer(self, *_: object) -> None:
        self._unanswered -= 1
        if self._reached is not None and self._unanswered <= self._at_most:
            self._reached.set_result(None)
            self._reached = None

    def send(self, body: bytes, answer: int) -> None:
        self._unanswered += 1
        self.write(body, answer)

    async def unanswered(self, *, at_most: int) -> None:
        if self._unanswered > at_most:
            self._at_most = at_most
            self._reached = asyncio.get_running_loop().create_future()
            await self._reached

    async def exchange(self, body: bytes, answer: int) -> None:
        self.send(body, answer)
        await self.unanswered(at_most=0)


async def raw_way(name: str, port: int, tls: ssl.SSLContext | None) -> Way:
    way = Way(name)
    loop = asyncio.get_running_loop()
    host = "" if tls else None
    _, end = await loop.create_connection(lambda: RawEnd(way.answer), "127.0.0.1", port, ssl=tls, server_hostname=host)
    way.write = end.send
    return way


async def link_way(name: str, address: str, transport: DirectTransport, *, warm: bool) -> Way:
    way = Way(name)
    link = await transport.dial(address, LinkEnd(way.answer), lane="decode", timeout_s=5)
    link.keep_warm(int(warm))

    def write(body: bytes, answer: int) -> None:
        link.send(Step(session=SESSION, frame=1, position=100, count=1, sample=True, tip=answer), body)

    way.write = write
    return way


async def round_trip_us(way: Way, size: int) -> tuple[float, float]:
    """Return the median and the 99th percentile."""
    body, taken_us = bytes(size), []
    for number in range(WARM_UP + ROUND_TRIPS):
        start = time.perf_counter()
        await way.exchange(body, size)
        if number >= WARM_UP:
            taken_us.append((time.perf_counter() - start) * 1e6)
    return statistics.median(taken_us), statistics.quantiles(taken_us, n=100)[98]


async def throughput_mb_s(way: Way) -> tuple[float, float]:
    body = bytes(STREAM_BYTES)
    await way.exchange(body, 8)
    start = time.perf_counter()
    for _ in range(STREAM_MESSAGES):
        way.send(body, 8)
        await way.unanswered(at_most=WINDOW - 1)
    await way.unanswered(at_most=0)
    return STREAM_MESSAGES * STREAM_BYTES / (time.perf_counter() - start) / 1e6, 0.0


async def measure(ports: tuple[int, int, str], rounds: int) -> None:
    transport = DirectTransport(Identity.generate(), SystemClock())
    ways = [
        await raw_way("TCP, bare", ports[0], None),
        await raw_way("TLS 1.3, bare", ports[1], transport.tls.dialer),
        await link_way("link", ports[2], transport, warm=False),
        await link_way("link, kept warm", ports[2], transport, warm=True),
    ]
    cases: list[tuple[str, Callable[[Way], Awaitable[tuple[float, float]]]]] = [
        ("8 B round trip, us", lambda way: round_trip_us(way, 8)),
        ("16 KiB round trip, us", lambda way: round_trip_us(way, 16 * KIB)),
        ("4 MiB stream, MB/s", throughput_mb_s),
    ]
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for case, run in cases:
            for way in ways:
                found.setdefault((case, way.name), []).append(await run(way))
    console = Console(width=None if Console().is_terminal else 120)
    console.print(f"Python {platform.python_version()}, uvloop {uvloop.__version__}, {ssl.OPENSSL_VERSION}")
    table = Table("what", "way", "p50", "lowest to highest round", "p99", title=f"A link, {rounds} rounds")
    for case, _ in cases:
        for way in ways:
            middles = [middle for middle, _ in found[case, way.name]]
            tail = statistics.median(tail for _, tail in found[case, way.name])
            spread = f"{min(middles):.0f} to {max(middles):.0f}"
            shown_tail = f"{tail:.0f}" if tail else ""
            table.add_row(case, way.name, f"{statistics.median(middles):.0f}", spread, shown_tail)
    show_table(console, table)
    await transport.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=serve, args=(far,))
    process.start()
    try:
        uvloop.run(measure(near.recv(), rounds))
    finally:
        near.send(None)
        process.join(10)


if __name__ == "__main__":
    main()
