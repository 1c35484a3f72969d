"""Direct links over real sockets on the loopback, on both event loops: good peers, bad peers, and no peers."""

import asyncio
import contextlib
import gc
import os
import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop

from swarm_net.addresses import parse_address
from swarm_net.admission import Admission, ConnectionCaps
from swarm_net.clocks import SystemClock
from swarm_net.direct import DirectConfig, DirectTransport
from swarm_net.direct_link import DirectLink, LinkConfig
from swarm_net.errors import (
    BadAddress,
    HandshakeFailed,
    LinkLost,
    Malformed,
    NetError,
    PeerUnreachable,
    PortInUse,
    WrongPeer,
)
from swarm_net.frames import EAGER_BODY_BYTES, MIB, FrameLimits, FrameReceiver, encode_frame
from swarm_net.handshake import DialerHandshake, Terms
from swarm_net.holdings import HoldingCaps
from swarm_net.identity import Identity
from swarm_net.links import LANES, Body, Link, LinkHandler, Listener
from swarm_net.messages import AnyMessage, Lane, Models, Rpc, encode

TIMEOUT_S = 30.0
QUICK = LinkConfig(heartbeat_interval_s=0.02, silence_timeout_s=0.2)


@pytest.fixture(params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    return request.param()  # type: ignore[no-any-return]


class End:
    """What one end of a link hears."""

    def __init__(self) -> None:
        self.received: list[tuple[AnyMessage, bytes]] = []
        self.lost: list[NetError] = []
        self.links: list[Link] = []
        self._changed = asyncio.Event()

    def accept(self, link: Link) -> LinkHandler:
        self.links.append(link)
        self._changed.set()
        return self

    def on_message(self, link: Link, message: AnyMessage, body: Body) -> None:
        self.received.append((message, bytes(body)))
        self._changed.set()

    def on_lost(self, link: Link, reason: NetError) -> None:
        self.lost.append(reason)
        self._changed.set()

    async def wait_for(self, messages: int = 0, lost: int = 0, links: int = 0) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.received) < messages or len(self.lost) < lost or len(self.links) < links:
                self._changed.clear()
                await self._changed.wait()


class Swarm:
    """Makes transports, and checks in the end that they leave no task and no descriptor behind."""

    def __init__(self) -> None:
        self._chance = random.Random(11)
        self._transports: list[DirectTransport] = []

    def transport(self, config: DirectConfig | None = None) -> DirectTransport:
        identity = Identity.generate(self._chance.randbytes)
        self._transports.append(DirectTransport(identity, SystemClock(), config=config))
        return self._transports[-1]

    async def listener(self, end: End, config: DirectConfig | None = None) -> Listener:
        return await self.transport(config).listen("127.0.0.1", 0, end.accept)

    async def dial(
        self, listener: Listener, end: End, lane: Lane = "decode", config: DirectConfig | None = None
    ) -> Link:
        transport = self.transport(config)
        return await transport.dial(listener.addresses[0], end, lane=lane, timeout_s=TIMEOUT_S)

    async def close(self) -> None:
        for transport in self._transports:
            await transport.close()


def open_sockets() -> int:
    """Count this process's sockets."""
    gc.collect()
    links = (os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())
    return sum(link.startswith("socket:") for link in links)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - the kernel tells of no event
            await asyncio.sleep(0.005)


@pytest.fixture
async def swarm(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Swarm]:
    sockets_before = open_sockets()
    made = Swarm()
    yield made
    await made.close()
    await until(lambda: open_sockets() <= sockets_before)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def place_of(listener: Listener) -> tuple[str, int]:
    address = parse_address(listener.addresses[0])
    return address.host, address.port


async def still_answers(swarm: Swarm, listener: Listener, far: End) -> None:
    """Show that a listener has survived."""
    before = len(far.received)
    link = await swarm.dial(listener, End())
    link.send(Models(request=7))
    await far.wait_for(messages=before + 1)


# -- good peers


async def test_frames_of_every_size_arrive_in_order_both_ways(swarm: Swarm) -> None:
    near, far = End(), End()
    listener = await swarm.listener(far)
    link = await swarm.dial(listener, near)
    await far.wait_for(links=1)
    far.links[0].keep_warm(1)  # as for a session: without one, large bodies are not taken
    chance = random.Random(5)
    bodies = [chance.randbytes(size) for size in (0, 1, 16_384, 32_768, 32_769, 70_000, 1 << 20, 3_000_000, 5)]
    for number, body in enumerate(bodies):
        link.send(Rpc(request=number, service="s", method="m"), body)
        far.links[0].send(Rpc(request=number, service="s", method="m"), memoryview(body))
    await far.wait_for(messages=len(bodies))
    await near.wait_for(messages=len(bodies))
    expected = [(Rpc(request=number, service="s", method="m"), body) for number, body in enumerate(bodies)]
    assert far.received == expected
    assert near.received == expected


async def test_the_greeting_tells_addresses_clock_and_lane(swarm: Swarm) -> None:
    far = End()
    serving = swarm.transport()
    serving.libp2p_addresses = ("/ip4/1.2.3.4/tcp/5/p2p/Q",)
    listener = await serving.listen("127.0.0.1", 0, far.accept)
    dialing = swarm.transport()
    dialing.announced = ("/dns/example.org/tcp/1/p2p/Q",)
    link = await dialing.dial(listener.addresses[0], End(), lane="bulk", timeout_s=TIMEOUT_S)
    await far.wait_for(links=1)
    accepted = far.links[0]
    assert (link.peer, link.lane, link.dialed) == (serving.identity.peer_id, "bulk", True)
    assert (accepted.peer, accepted.lane, accepted.dialed) == (dialing.identity.peer_id, "bulk", False)
    assert link.libp2p_addresses == serving.libp2p_addresses
    assert link.remote_addresses == listener.addresses
    assert accepted.remote_addresses == dialing.announced
    assert link.rtt_s > 0
    assert abs(link.clock_offset_ns) <= link.rtt_s * 1e9


async def test_what_was_sent_before_close_arrives(swarm: Swarm) -> None:
    near, far = End(), End()
    await swarm.dial(await swarm.listener(far), near)
    await far.wait_for(links=1)
    link = far.links[0]
    body = random.Random(1).randbytes(4_000_000)
    link.send(Rpc(request=1, service="s", method="m"), body)
    link.close("done")
    await near.wait_for(messages=1, lost=1)
    await far.wait_for(lost=1)
    assert near.received[0][1] == body
    assert [str(error).rpartition(" lost: ")[2] for error in far.lost + near.lost] == ["done", "closed by the peer"]
    with pytest.raises(LinkLost):
        link.send(Models(request=1))


async def test_what_was_sent_before_close_arrives_against_a_stream_from_the_peer(swarm: Swarm) -> None:
    if "uvloop" not in type(asyncio.get_running_loop()).__module__:
        pytest.skip("asyncio's own TLS gives up at data after its goodbye")
    near, far = End(), End()
    link = await swarm.dial(await swarm.listener(far), near)
    await far.wait_for(links=1)
    far.links[0].keep_warm(1)
    for number in range(10):
        far.links[0].send(Rpc(request=number, service="s", method="m"), bytes(1 << 20))
        link.send(Rpc(request=number, service="s", method="m"), bytes(1 << 20))
    link.close("done")
    await far.wait_for(messages=10, lost=1)
    assert near.received == []


async def test_hundreds_dial_at_once(swarm: Swarm) -> None:
    far, dialing = End(), swarm.transport()
    listener = await swarm.listener(far, DirectConfig(holdings=HoldingCaps(links_per_peer=200)))
    links = await asyncio.gather(
        *(dialing.dial(listener.addresses[0], End(), lane="decode", timeout_s=TIMEOUT_S) for _ in range(200))
    )
    for number, link in enumerate(links):
        link.send(Models(request=number))
    await far.wait_for(messages=200)


async def test_a_wildcard_listener_names_hosts_that_can_be_dialed(swarm: Swarm) -> None:
    far = End()
    listener = await swarm.transport().listen("0.0.0.0", 0, far.accept)
    assert not any("0.0.0.0" in address for address in listener.addresses)
    link = await swarm.transport().dial(listener.addresses[-1], End(), lane="decode", timeout_s=TIMEOUT_S)
    assert link.is_open


async def test_a_name_is_resolved(swarm: Swarm) -> None:
    far = End()
    listener = await swarm.listener(far)
    address = listener.addresses[0].replace("/ip4/127.0.0.1/", "/dns/localhost/")
    assert (await swarm.transport().dial(address, End(), lane="decode", timeout_s=TIMEOUT_S)).is_open


# -- heartbeats


async def test_a_warm_link_stays_and_heartbeats_end_with_its_users(swarm: Swarm) -> None:
    near, far = End(), End()
    config = DirectConfig(link=QUICK)
    link = await swarm.dial(await swarm.listener(far, config), near, config=config)
    await far.wait_for(links=1)
    link.keep_warm(1)
    await asyncio.sleep(3 * QUICK.silence_timeout_s)
    assert link.is_open
    assert link.idle_s() < QUICK.silence_timeout_s
    assert far.links[0].idle_s() < QUICK.silence_timeout_s
    far.links[0].keep_warm(1)  # both ends at once, then neither
    await asyncio.sleep(0.1)
    link.keep_warm(-1)
    far.links[0].keep_warm(-1)
    await until(lambda: link.idle_s() > 0.1 and far.links[0].idle_s() > 0.1)
    assert link.is_open


async def test_a_way_is_woken_before_a_frame_that_is_expected(swarm: Swarm) -> None:
    near, far = End(), End()
    config = DirectConfig(link=LinkConfig(heartbeat_interval_s=60.0, silence_timeout_s=120.0))
    link = await swarm.dial(await swarm.listener(far, config), near, config=config)
    await far.wait_for(links=1)
    other = far.links[0]
    link.keep_warm(1)
    await until(lambda: other.idle_s() > 0.1)
    link.expect_send(0.3)
    await until(lambda: other.idle_s() < 0.1)
    for end in (link, other):  # both at once: neither may take what it hears for a question, again and again
        end.keep_warm(1)
        end.expect_send(0.1)
    await asyncio.sleep(0.2)
    for end in (link, other):
        end.keep_warm(-1)
    link.keep_warm(-1)
    await until(lambda: link.idle_s() > 0.3 and other.idle_s() > 0.3)


async def test_a_silent_peer_is_noticed_by_the_end_that_keeps_warm(swarm: Swarm) -> None:
    near = End()
    with Stranger() as stranger:
        link = await stranger.accept_dial(swarm, near, swarm.transport(DirectConfig(link=QUICK)))
        await asyncio.sleep(2 * QUICK.silence_timeout_s)
        assert link.is_open  # nobody needs it
        link.keep_warm(1)
        await near.wait_for(lost=1)
    assert "silent" in str(near.lost[0])


async def test_a_peer_that_does_not_read_ends_the_link(swarm: Swarm) -> None:
    near = End()
    with Stranger() as stranger:
        config = DirectConfig(link=LinkConfig(max_pending_bytes=1 << 20))
        link = await stranger.accept_dial(swarm, near, swarm.transport(config))
        with pytest.raises(LinkLost, match="wait to be sent"):  # noqa: PT012 - the kernel takes an unknown part
            for number in range(10_000):
                link.send(Rpc(request=number, service="s", method="m"), bytes(1 << 20))
        await near.wait_for(lost=1)
        assert not link.is_open


async def test_large_bodies_of_a_peer_without_a_session_are_thrown_away_and_its_link_stays(swarm: Swarm) -> None:
    far = End()
    link = await swarm.dial(await swarm.listener(far), End())
    await far.wait_for(links=1)
    taken = far.links[0]
    for number in range(20):
        link.send(Rpc(request=number, service="s", method="m"), bytes(MIB))
    link.send(Models(request=20), bytes(200_000))  # up to 256 KiB are taken from anybody
    await far.wait_for(messages=1)
    assert far.received == [(Models(request=20), bytes(200_000))]
    taken.keep_warm(1)
    link.send(Models(request=21), bytes(MIB))
    await far.wait_for(messages=2)
    taken.keep_warm(-1)
    link.send(Rpc(request=22, service="s", method="m"), bytes(MIB))
    link.send(Models(request=23))
    await far.wait_for(messages=3)
    assert far.received[1:] == [(Models(request=21), bytes(MIB)), (Models(request=23), b"")]


async def test_a_session_on_one_lane_makes_room_for_its_prefill_on_the_other(swarm: Swarm) -> None:
    far, dialing = End(), swarm.transport()
    listener = await swarm.listener(far)
    address = listener.addresses[0]
    _, bulk = [await dialing.dial(address, End(), lane=lane, timeout_s=TIMEOUT_S) for lane in LANES]
    await far.wait_for(links=2)
    next(link for link in far.links if link.lane == "decode").keep_warm(1)
    bulk.send(Models(request=1), bytes(MIB))
    await far.wait_for(messages=1)


async def test_a_peer_that_begins_bodies_on_many_links_loses_links_and_others_do_not(swarm: Swarm) -> None:
    far, honest = End(), End()
    caps = HoldingCaps(bytes_per_peer=4 * EAGER_BODY_BYTES, total_bytes=64 * EAGER_BODY_BYTES)
    listener = await swarm.listener(far, DirectConfig(holdings=caps))
    with contextlib.ExitStack() as stack:
        link = await swarm.dial(listener, honest)
        await far.wait_for(links=1)
        far.links[0].keep_warm(1)
        beginning = encode_frame(encode(Models(request=1)), bytes(8 * MIB))[0] + bytes(40_000)
        for number in range(6):
            stranger = stack.enter_context(Stranger())
            await stranger.greet(listener)
            await far.wait_for(links=number + 2)
            far.links[-1].keep_warm(1)
            await stranger.send(bytes(beginning))
        await far.wait_for(lost=2)
        assert all("memory" in str(error) for error in far.lost)
        link.send(Models(request=2), bytes(MIB))
        await far.wait_for(messages=1)
        assert [each.is_open for each in far.links].count(True) == 5
        assert honest.lost == []


async def test_peers_that_do_not_read_lose_their_links_when_all_hold_too_much(swarm: Swarm) -> None:
    near, honest = End(), End()
    config = DirectConfig(holdings=HoldingCaps(bytes_per_peer=64 * MIB, total_bytes=24 * MIB))
    with Stranger() as one, Stranger() as two:
        dialing = swarm.transport(config)
        links = [await each.accept_dial(swarm, near, dialing) for each in (one, two)]
        with contextlib.suppress(LinkLost):
            for number in range(200):
                for link in links:
                    link.send(Rpc(request=number, service="s", method="m"), bytes(MIB))
        await near.wait_for(lost=1)
        assert "memory" in str(near.lost[0])
        taking = End()
        link = await dialing.dial((await swarm.listener(taking)).addresses[0], honest, lane="decode", timeout_s=30)
        link.send(Models(request=1))
        await taking.wait_for(messages=1)
        assert honest.lost == []


async def test_a_peer_has_only_so_many_links(swarm: Swarm) -> None:
    far, dialing = End(), swarm.transport()
    listener = await swarm.listener(far, DirectConfig(holdings=HoldingCaps(links_per_peer=2)))
    address = listener.addresses[0]
    links = [await dialing.dial(address, End(), lane="decode", timeout_s=TIMEOUT_S) for _ in range(2)]
    with pytest.raises(HandshakeFailed, match="2 links of this peer are open already"):
        await dialing.dial(address, End(), lane="decode", timeout_s=TIMEOUT_S)
    await still_answers(swarm, listener, far)  # another peer has links of its own
    links[0].close()
    await far.wait_for(lost=1)
    await until(lambda: isinstance(far.links[0], DirectLink) and far.links[0].gone.done())
    assert (await dialing.dial(address, End(), lane="decode", timeout_s=TIMEOUT_S)).is_open


async def test_a_frame_beyond_the_peers_limits_is_not_sent(swarm: Swarm) -> None:
    near, far = End(), End()
    small = DirectConfig(link=LinkConfig(limits=FrameLimits(1000, 1000)))
    link = await swarm.dial(await swarm.listener(far, small), near)
    with pytest.raises(Malformed, match="at most 1000"):
        link.send(Models(request=1), bytes(1001))
    link.send(Models(request=2), bytes(1000))
    await far.wait_for(messages=1)


# -- nobody, or somebody else


async def test_errors_of_dialing_and_listening(swarm: Swarm) -> None:
    far, transport = End(), swarm.transport()
    listener = await swarm.listener(far)
    address, port = listener.addresses[0], place_of(listener)[1]
    other = Identity.generate(random.Random(99).randbytes).peer_id
    with pytest.raises(WrongPeer):
        await transport.dial(address.rpartition("/")[0] + f"/{other}", End(), lane="decode", timeout_s=TIMEOUT_S)
    with pytest.raises(BadAddress):
        await transport.dial("nonsense", End(), lane="decode", timeout_s=TIMEOUT_S)
    with pytest.raises(PortInUse):
        await transport.listen("127.0.0.1", port, far.accept)
    with pytest.raises(BadAddress):
        await transport.listen("192.0.2.77", 0, far.accept)
    await listener.close()
    with pytest.raises(PeerUnreachable):
        await transport.dial(address, End(), lane="decode", timeout_s=TIMEOUT_S)
    await still_answers(swarm, await swarm.listener(far), far)


async def test_a_listener_that_says_nothing_is_given_up_in_time(swarm: Swarm) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        peer = Identity.generate(random.Random(1).randbytes).peer_id
        address = f"/ip4/127.0.0.1/tcp/{mute.getsockname()[1]}/p2p/{peer}"
        with pytest.raises(PeerUnreachable, match=r"within 0\.1 s"):
            await swarm.transport().dial(address, End(), lane="decode", timeout_s=0.1)


async def test_a_cancelled_dial_leaves_nothing(swarm: Swarm) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        peer = Identity.generate(random.Random(1).randbytes).peer_id
        address = f"/ip4/127.0.0.1/tcp/{mute.getsockname()[1]}/p2p/{peer}"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await swarm.transport().dial(address, End(), lane="decode", timeout_s=TIMEOUT_S)


async def test_a_peer_of_another_swarm_is_told_why(swarm: Swarm) -> None:
    far = End()
    listener = await swarm.listener(far, DirectConfig(swarm="ours"))
    with pytest.raises(HandshakeFailed, match="not of the swarm theirs"):
        await swarm.dial(listener, End(), config=DirectConfig(swarm="theirs"))
    assert (await swarm.dial(listener, End(), config=DirectConfig(swarm="ours"))).is_open


async def test_a_peer_that_does_not_speak_tls_is_a_failed_handshake(swarm: Swarm) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    peer = Identity.generate(random.Random(1).randbytes).peer_id
    address = f"/ip4/127.0.0.1/tcp/{server.sockets[0].getsockname()[1]}/p2p/{peer}"
    with pytest.raises(HandshakeFailed):
        await swarm.transport().dial(address, End(), lane="decode", timeout_s=TIMEOUT_S)
    server.close()
    await server.wait_closed()


# -- strangers: blocking sockets in a thread, so that they may be as rude as they like


class Stranger:
    """A peer that speaks as much of the protocol as a test wants."""

    def __init__(self) -> None:
        self.identity = Identity.generate(random.Random(77).randbytes)
        self.tls: ssl.SSLSocket | None = None
        self.plain: socket.socket | None = None
        self._deaf: asyncio.Transport | None = None
        self._receiver = FrameReceiver(FrameLimits(1 << 16, 1 << 20))

    def __enter__(self) -> "Stranger":
        return self

    def __exit__(self, *_: object) -> None:
        for opened in (self.tls, self.plain):
            if opened is not None:
                opened.close()
        if self._deaf is not None:
            self._deaf.resume_reading()

    async def connect(self, listener: Listener) -> None:
        self.plain = await asyncio.to_thread(socket.create_connection, place_of(listener), TIMEOUT_S)

    async def wrap(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        assert self.plain is not None
        self.tls = await asyncio.to_thread(context.wrap_socket, self.plain)

    async def next_header(self) -> bytes:
        while (frame := self._receiver.next_frame()) is None:
            assert self.tls is not None
            data = await asyncio.to_thread(self.tls.recv, 1024)
            assert data, "closed"
            self._receiver.buffer()[: len(data)] = data
            self._receiver.received(len(data))
        return bytes(frame.header)

    async def send(self, data: bytes) -> None:
        assert self.tls is not None
        await asyncio.to_thread(self.tls.sendall, data)

    async def greet(self, listener: Listener, wanted: Identity | None = None) -> bytes:
        """Greet a listener; `wanted` other than it is whom our signature names. Returns the answer's header."""
        await self.connect(listener)
        await self.wrap()
        peer = wanted.peer_id if wanted is not None else parse_address(listener.addresses[0]).peer
        handshake = DialerHandshake(self.identity, peer, "", "decode", Terms(), bytes(32))
        await self.send(handshake.receive(await self.next_header(), 0.0, 0).send)
        return await self.next_header()

    async def is_closed(self) -> bool:
        """Tell whether the listener hangs up on us."""
        assert self.plain is not None
        stream: socket.socket = self.tls or self.plain

        def drain() -> bool:
            try:
                while stream.recv(4096):
                    pass
            except (ConnectionError, ssl.SSLError):
                return True
            except TimeoutError:
                return False
            return True

        return await asyncio.to_thread(drain)

    async def accept_dial(self, swarm: Swarm, end: End, dialing: DirectTransport) -> Link:
        """Be dialed; from then on neither read nor write. The far end is a real one whose reading is stopped."""
        far = End()
        address = (await swarm.listener(far)).addresses[0]
        link = await dialing.dial(address, end, lane="decode", timeout_s=TIMEOUT_S)
        await far.wait_for(links=1)
        accepted = far.links[0]
        assert isinstance(accepted, DirectLink)
        assert accepted._transport is not None
        self._deaf = accepted._transport
        self._deaf.pause_reading()
        return link


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", bytes(1000), random.Random(2).randbytes(5000), b"\x16\x03\x01\xff\xff" + bytes(70_000)],
    ids=["http", "zeros", "random", "endless record"],
)
async def test_garbage_instead_of_tls(swarm: Swarm, garbage: bytes) -> None:
    far = End()
    listener = await swarm.listener(far, DirectConfig(handshake_timeout_s=2.0))
    with Stranger() as stranger:
        await stranger.connect(listener)
        assert stranger.plain is not None
        with contextlib.suppress(ConnectionError):  # hung up on already
            await asyncio.to_thread(stranger.plain.sendall, garbage)
        assert await stranger.is_closed()
    await still_answers(swarm, listener, far)


@pytest.mark.parametrize(
    "garbage",
    [
        random.Random(4).randbytes(3000),
        bytes(64),
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xf9\x00\x00\x00\x00\x00\x00\x00" + bytes(249),
        encode_frame(bytes(128))[0],
        encode_frame(bytes(32), b"body")[0],
    ],
    ids=["random", "heartbeats", "longest lengths", "one byte too many", "wrong signature", "a body"],
)
async def test_garbage_instead_of_a_proof(swarm: Swarm, garbage: bytes) -> None:
    far = End()
    listener = await swarm.listener(far)
    with Stranger() as stranger:
        await stranger.connect(listener)
        await stranger.wrap()
        await stranger.next_header()
        await stranger.send(bytes(garbage))
        assert await stranger.is_closed()
    assert far.links == []
    await still_answers(swarm, listener, far)


async def test_a_relayed_signature_is_refused(swarm: Swarm) -> None:
    far = End()
    listener = await swarm.listener(far)
    with Stranger() as stranger, pytest.raises(AssertionError, match="closed"):
        await stranger.greet(listener, wanted=Identity.generate(random.Random(5).randbytes))
    assert far.links == []
    await still_answers(swarm, listener, far)


@pytest.mark.parametrize(
    "garbage",
    [
        random.Random(6).randbytes(9000),
        b"\xff\xff\xff\xff\x00\x00\x00\x00",
        b"\x01\x00\x00\x00\xff\xff\xff\xff",
        b"\x00\x00\x00\x00\x01\x00\x00\x00x",
        encode_frame(b"\xc1")[0],
    ],
    ids=["random", "long header", "long body", "body alone", "no message"],
)
async def test_garbage_of_a_peer_that_is_known(swarm: Swarm, garbage: bytes) -> None:
    far = End()
    listener = await swarm.listener(far)
    with Stranger() as stranger:
        await stranger.greet(listener)
        await stranger.send(bytes(garbage))
        assert await stranger.is_closed()
        await far.wait_for(lost=1)
    assert far.received == []
    await still_answers(swarm, listener, far)


@pytest.mark.parametrize("speaks_tls", [False, True])
async def test_a_stranger_that_says_nothing_is_hung_up_on(swarm: Swarm, speaks_tls: bool) -> None:
    far = End()
    listener = await swarm.listener(far, DirectConfig(handshake_timeout_s=0.5))
    with Stranger() as stranger:
        await stranger.connect(listener)
        if speaks_tls:
            await stranger.wrap()
        assert await stranger.is_closed()
    await still_answers(swarm, listener, far)


async def test_a_proof_byte_by_byte_does_not_outlast_the_deadline(swarm: Swarm) -> None:
    far = End()
    listener = await swarm.listener(far, DirectConfig(handshake_timeout_s=0.3))
    with Stranger() as stranger:
        await stranger.connect(listener)
        await stranger.wrap()
        await stranger.next_header()
        with pytest.raises((ConnectionError, ssl.SSLError)):  # noqa: PT012
            for _ in range(200):
                await stranger.send(b"\x01")
                await asyncio.sleep(0.02)
    assert far.links == []


async def test_half_closed_connections_end(swarm: Swarm) -> None:
    far = End()
    listener = await swarm.listener(far)
    with Stranger() as greeted, Stranger() as unknown:
        await greeted.greet(listener)
        await far.wait_for(links=1)
        await unknown.connect(listener)
        for stranger in (greeted, unknown):
            (stranger.tls or stranger.plain).shutdown(socket.SHUT_WR)  # type: ignore[union-attr]
        await far.wait_for(lost=1)
        assert await unknown.is_closed()
        assert await greeted.is_closed()


async def test_connections_of_one_address_are_capped(swarm: Swarm) -> None:
    far = End()
    caps = ConnectionCaps(half_open_per_address=3, total_per_address=100)
    listener = await swarm.listener(far, DirectConfig(caps=caps))
    mute = [Stranger() for _ in range(4)]
    for stranger in mute:
        await stranger.connect(listener)
    assert await mute[3].is_closed()
    for stranger in mute:
        stranger.__exit__()
    # Until the listener has noticed, further dials are refused as well.
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                link = await swarm.dial(listener, End())
                break
            except HandshakeFailed:
                await asyncio.sleep(0.01)
    assert link.is_open


def test_admission_counts_by_address_and_ipv6_network() -> None:
    admission = Admission(ConnectionCaps(half_open_per_address=2, total_per_address=3, total=4))
    assert admission.admit("2001:db8:1:2::1")
    assert admission.admit("2001:db8:1:2:ffff::9")
    assert not admission.admit("2001:db8:1:2::3")
    admission.settled("2001:db8:1:2::1")
    assert admission.admit("2001:db8:1:2::3")
    admission.settled("2001:db8:1:2::3")
    assert not admission.admit("2001:db8:1:2::4")  # three in all
    assert admission.admit("::ffff:10.0.0.1")
    assert not admission.admit("10.0.0.2")  # four of all addresses
    admission.gone("2001:db8:1:2::1")
    assert admission.admit("10.0.0.1")
