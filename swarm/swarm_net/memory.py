"""Links within one process: for tests, and for the simulator, which decides how long each frame takes.

Owns a network of hosts 10.x.y.z, one a peer, whose frames take the time that a `DelayPolicy` says. Messages are really
encoded and decoded; sockets, TLS and heartbeats are left out. Links behave as direct ones (`direct.py`): frames of one
direction stay in order, what was sent before `close` arrives, and too much under way ends the link. Deterministic: no
randomness, no clock but the running loop's, nothing is iterated in an order of hashes.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from swarm_net.addresses import Address, parse_address
from swarm_net.delivery import deliver
from swarm_net.errors import LinkLost, PeerUnreachable, PortInUse, WrongPeer
from swarm_net.frames import DEFAULT_LIMITS, HEAD, MIB, FrameLimits, check_size, size_of
from swarm_net.links import Body, Link, LinkHandler, Listener, PeerId
from swarm_net.messages import Lane, Message, encode

# Seconds that a frame of so many bytes takes from one peer to another; None: it is lost, and its link with it.
DelayPolicy = Callable[[PeerId, PeerId, int, Lane], float | None]

FIRST_PORT = 4001
MAX_BYTES_UNDER_WAY = 64 * MIB
_MAX_HOSTS = 1 << 24
# TCP, TLS 1.3 and the greeting of a direct link take a round trip each, with packets of about this size.
_DIAL_ROUND_TRIPS = 3
_GREETING_BYTES = 512


def no_delay(source: PeerId, target: PeerId, frame_bytes: int, lane: Lane) -> float | None:
    """Deliver every frame in the next iteration of the loop."""
    return 0.0


class MemoryNetwork:
    """What lies between the hosts."""

    def __init__(self, delay: DelayPolicy = no_delay) -> None:
        self.delay = delay
        self._hosts: dict[PeerId, str] = {}
        self._transports: dict[PeerId, MemoryTransport] = {}
        self._listeners: dict[tuple[str, int], MemoryListener] = {}

    def attach(self, transport: "MemoryTransport") -> str:
        """Return the host of a transport's peer; a peer that comes back after a crash keeps it."""
        number = len(self._hosts) + 1
        assert number < _MAX_HOSTS
        host = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        self._transports[transport.peer] = transport
        return self._hosts.setdefault(transport.peer, host)

    def disconnect(self, peer: PeerId, *, notice_s: float = 0.0) -> None:
        """Crash a peer: its own handlers hear nothing any more, those at the other ends of its links `notice_s` after
        what it sent last (0 as when a process dies, a silence timeout as when its machine does)."""
        if (transport := self._transports.pop(peer, None)) is not None:
            transport.crash(notice_s)

    def open_port(self, listener: "MemoryListener", host: str, port: int) -> int:
        """Return the port taken: the one asked for, or for 0 the next free one. Raises PortInUse."""
        if port == 0:
            port = FIRST_PORT
            while (host, port) in self._listeners:
                port += 1
        if (host, port) in self._listeners:
            raise PortInUse(host=host, port=port)
        self._listeners[host, port] = listener
        return port

    def close_port(self, host: str, port: int) -> None:
        self._listeners.pop((host, port), None)

    def listener_at(self, address: Address) -> "MemoryListener | None":
        return self._listeners.get((address.host, address.port))

    def packet_delay_s(self, source: PeerId, target: PeerId, lane: Lane) -> float | None:
        """Return how long a packet of a greeting takes."""
        return self.delay(source, target, _GREETING_BYTES, lane)


class MemoryListener:
    """A port of a host, and who is told of links to it."""

    def __init__(self, transport: "MemoryTransport", port: int, accept: Callable[[Link], LinkHandler]) -> None:
        self.transport = transport
        self.accept = accept
        self.port = transport.network.open_port(self, transport.host, port)
        self.addresses: tuple[str, ...] = (f"/ip4/{transport.host}/tcp/{self.port}/p2p/{transport.peer}",)

    async def close(self) -> None:
        self.transport.forget_listener(self)


class MemoryLink:
    """One end of a link; `_arriving` holds what is under way to it."""

    clock_offset_ns = 0  # the peers of one process share its clock

    def __init__(self, transport: "MemoryTransport", peer: PeerId, lane: Lane, handler: LinkHandler | None) -> None:
        self.peer = peer
        self.lane = lane
        self.dialed = handler is not None
        self.remote_addresses: tuple[str, ...] = ()
        self.remote_host = ""
        self.libp2p_addresses: tuple[str, ...] = ()
        self.rtt_s = 0.0
        self.handler = handler
        self._transport = transport
        self._other = self
        self._users = 0
        self._ended: LinkLost | None = None
        self._arriving: deque[tuple[bytes, Body] | LinkLost] = deque()
        self._bytes_under_way = 0
        self._last_due_s = 0.0
        self._last_moved_s = asyncio.get_running_loop().time()
        transport.links[self] = None

    @property
    def is_open(self) -> bool:
        return self._ended is None

    def pair_with(self, other: "MemoryLink") -> None:
        self._other, other._other = other, self
        self.remote_host, other.remote_host = other._transport.host, self._transport.host

    def idle_s(self) -> float:
        if self._users or self._other._users:
            return 0.0
        return asyncio.get_running_loop().time() - self._last_moved_s

    @property
    def backlog_bytes(self) -> int:
        return self._other._bytes_under_way

    def expect_send(self, in_s: float) -> None:
        """Nothing sleeps here."""

    def keep_warm(self, users: int) -> None:
        self._users += users
        self._last_moved_s = asyncio.get_running_loop().time()

    def send(self, message: Message, body: Body = b"") -> None:
        if self._ended is not None:
            raise LinkLost(peer=self.peer, reason=self._ended.reason)
        header = encode(message)
        check_size(len(header), size_of(body), self._other._transport.limits)
        frame_bytes = HEAD.size + len(header) + size_of(body)
        if self._other._bytes_under_way > MAX_BYTES_UNDER_WAY:
            self.close(f"more than {MAX_BYTES_UNDER_WAY} bytes are under way")
            raise LinkLost(peer=self.peer, reason=f"more than {MAX_BYTES_UNDER_WAY} bytes are under way")
        self._last_moved_s = asyncio.get_running_loop().time()
        self._put((header, body), frame_bytes)

    def close(self, reason: str = "") -> None:
        if self._ended is None:
            self.end(LinkLost(peer=self.peer, reason=reason or "closed by this end"))
            self._put(LinkLost(peer=self._transport.peer, reason="closed by the peer"), HEAD.size)

    def end(self, reason: LinkLost) -> None:
        """End this side alone and tell its handler, soon."""
        if self._ended is None:
            self._ended = reason
            self._transport.links.pop(self, None)
            if self.handler is not None:
                asyncio.get_running_loop().call_soon(self.handler.on_lost, self, reason)

    def crash(self, notice_s: float) -> None:
        """End as the process at this side does: nobody here hears of it, the other side after `notice_s`."""
        self._ended = LinkLost(peer=self.peer, reason="this peer has crashed")
        self._put(LinkLost(peer=self._transport.peer, reason="the peer vanished"), HEAD.size, later_s=notice_s)

    def nothing_before(self, due_s: float) -> None:
        """Let nothing arrive at this end before the greeting has."""
        self._last_due_s = max(self._last_due_s, due_s)

    def _put(self, item: tuple[bytes, Body] | LinkLost, frame_bytes: int, later_s: float = 0.0) -> None:
        transport, other, loop = self._transport, self._other, asyncio.get_running_loop()
        delay_s = transport.network.delay(transport.peer, self.peer, frame_bytes, self.lane)
        if delay_s is None:
            self.end(LinkLost(peer=self.peer, reason="the network lost a frame"))
            other.end(LinkLost(peer=transport.peer, reason="the network lost a frame"))
            return
        due_s = max(loop.time() + delay_s + later_s, other._last_due_s)
        other._last_due_s = due_s
        other._arriving.append(item)
        other._bytes_under_way += frame_bytes
        # Whichever call comes first takes the first item, so equal times keep their order as well.
        if due_s <= loop.time():
            loop.call_soon(other._arrive, frame_bytes)
        else:
            loop.call_at(due_s, other._arrive, frame_bytes)

    def _arrive(self, frame_bytes: int) -> None:
        item = self._arriving.popleft()
        self._bytes_under_way -= frame_bytes
        if self._ended is not None:
            return
        self._last_moved_s = asyncio.get_running_loop().time()
        if isinstance(item, LinkLost):
            self.end(item)
        elif self.handler is not None:
            deliver(self, self.handler, *item)


class MemoryTransport:
    """One peer's access to a MemoryNetwork.

    `announced` (where others can dial this peer; None: its listeners) and `libp2p_addresses` are told to peers in the
    greeting of each new link.
    """

    def __init__(self, network: MemoryNetwork, peer: PeerId, *, limits: FrameLimits = DEFAULT_LIMITS) -> None:
        self.network = network
        self.peer = peer
        self.limits = limits
        self.announced: tuple[str, ...] | None = None
        self.libp2p_addresses: tuple[str, ...] = ()
        self.links: dict[MemoryLink, None] = {}
        self._listeners: dict[MemoryListener, None] = {}
        self._crashed = False
        self.host = network.attach(self)

    async def listen(self, host: str, port: int, accept: Callable[[Link], LinkHandler]) -> Listener:
        """Listen on the network's own host for this peer, whatever `host` is."""
        listener = MemoryListener(self, port, accept)
        self._listeners[listener] = None
        return listener

    async def dial(self, address: str, handler: LinkHandler, *, lane: Lane, timeout_s: float) -> Link:
        wanted = parse_address(address)
        loop, network = asyncio.get_running_loop(), self.network
        link: MemoryLink | None = None
        try:
            async with asyncio.timeout(timeout_s):
                for _ in range(_DIAL_ROUND_TRIPS - 1):
                    await _pass(network.packet_delay_s(self.peer, wanted.peer, lane))
                    self._listener_at(wanted)
                    await _pass(network.packet_delay_s(wanted.peer, self.peer, lane))
                hello_s = loop.time()
                await _pass(network.packet_delay_s(self.peer, wanted.peer, lane))
                listener = self._listener_at(wanted)
                link = MemoryLink(self, wanted.peer, lane, handler)
                link.remote_addresses = (address,)
                link.libp2p_addresses = listener.transport.libp2p_addresses
                self._accept(listener, link)
                welcome_delay_s = network.packet_delay_s(wanted.peer, self.peer, lane)
                link.nothing_before(loop.time() + (welcome_delay_s or 0.0))
                await _pass(welcome_delay_s)
                link.rtt_s = loop.time() - hello_s
        except TimeoutError as error:
            reason = f"no answer within {timeout_s:g} s"
            if link is not None:
                link.close(reason)
            raise PeerUnreachable(peer=wanted.peer, addresses=(address,), reason=reason) from error
        except asyncio.CancelledError:
            if link is not None:
                link.close("no longer wanted")
            raise
        return link

    async def close(self) -> None:
        for listener in list(self._listeners):
            await listener.close()
        for link in list(self.links):
            link.close("closed by this end")
        await asyncio.sleep(0)

    def crash(self, notice_s: float) -> None:
        """Called by the network: everything of this peer ends at once."""
        self._crashed = True
        for listener in list(self._listeners):
            self.forget_listener(listener)
        for link in list(self.links):
            link.crash(notice_s)
        self.links.clear()

    def forget_listener(self, listener: MemoryListener) -> None:
        if listener in self._listeners:
            del self._listeners[listener]
            self.network.close_port(self.host, listener.port)

    def _listener_at(self, wanted: Address) -> MemoryListener:
        listener = self.network.listener_at(wanted)
        if self._crashed or listener is None:
            reason = "this peer has crashed" if self._crashed else "connection refused"
            raise PeerUnreachable(peer=wanted.peer, addresses=(str(wanted),), reason=reason)
        if listener.transport.peer != wanted.peer:
            raise WrongPeer(address=str(wanted), wanted=wanted.peer, got=listener.transport.peer)
        return listener

    def _accept(self, listener: MemoryListener, dialed: MemoryLink) -> None:
        """Make the listener's end of a link that we dialed, and the two a pair."""
        theirs = MemoryLink(listener.transport, self.peer, dialed.lane, None)
        theirs.remote_addresses = self._announced_addresses()
        dialed.pair_with(theirs)
        theirs.handler = listener.accept(theirs)

    def _announced_addresses(self) -> tuple[str, ...]:
        if self.announced is not None:
            return self.announced
        return tuple(address for listener in self._listeners for address in listener.addresses)


async def _pass(delay_s: float | None) -> None:
    """Wait as long as a packet takes; for ever, if it is lost."""
    if delay_s is None:
        await asyncio.get_running_loop().create_future()
    else:
        await asyncio.sleep(delay_s)
