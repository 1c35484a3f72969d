"""Direct links: TCP with TLS 1.3, whenever either end can be reached.

Owns listening, dialing, their deadlines and caps, and the mapping from the system's errors to ours; what happens on a
connection is `direct_link.py`, how many a remote address may have `admission.py`, what peers may hold `holdings.py`.
Works on uvloop and on asyncio's own loop. The latter loses what is not sent yet when a link is closed while its peer is
sending: its TLS gives up at data that comes after its goodbye.
"""

import asyncio
import errno
import logging
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

from swarm_net.addresses import address_of, parse_address
from swarm_net.admission import Admission, ConnectionCaps
from swarm_net.direct_link import SHUTDOWN_TIMEOUT_S, DirectLink, LinkConfig
from swarm_net.errors import BadAddress, HandshakeFailed, LinkLost, NetError, PeerUnreachable, PortInUse
from swarm_net.handshake import NONCE_BYTES, DialerHandshake, ListenerHandshake, Terms
from swarm_net.holdings import HoldingCaps, Holdings
from swarm_net.identity import Identity
from swarm_net.links import Clock, Link, LinkHandler, Listener
from swarm_net.messages import MAX_ADDRESSES, Lane
from swarm_net.tasks import TaskScope
from swarm_net.tls import tls_contexts

_log = logging.getLogger(__name__)

_BACKLOG = 512
_RETRY_ACCEPT_AFTER_S = 0.1
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to
# RFC 5737 and RFC 3849: documentation addresses. Connecting a datagram socket to one sends nothing.
_ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectConfig:
    """How a peer's direct links behave; `swarm` is the private swarm's id, empty for the public one."""

    swarm: str = ""
    handshake_timeout_s: float = 5.0
    link: LinkConfig = field(default_factory=LinkConfig)
    caps: ConnectionCaps = field(default_factory=ConnectionCaps)
    holdings: HoldingCaps = field(default_factory=HoldingCaps)


class DirectTransport:
    """One peer's direct links.

    `announced` (where others can dial this peer; None: its listeners) and `libp2p_addresses` are told to peers in the
    greeting of each new link.
    """

    def __init__(
        self,
        identity: Identity,
        clock: Clock,
        *,
        config: DirectConfig | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.announced: tuple[str, ...] | None = None
        self.libp2p_addresses: tuple[str, ...] = ()
        self.config = config or DirectConfig()
        self.admission = Admission(self.config.caps)
        self._holdings = Holdings(self.config.holdings)
        self.identity = identity
        self.tls = tls_contexts(identity)
        self._clock = clock
        self._entropy = entropy
        self._listeners: dict[DirectListener, None] = {}
        self._links: dict[DirectLink, None] = {}

    async def listen(self, host: str, port: int, accept: Callable[[Link], LinkHandler]) -> Listener:
        """Accept links. Raises PortInUse, and BadAddress for a host that is not this machine's."""
        listener = DirectListener(self, await _bind(host, port), accept)
        self._listeners[listener] = None
        listener.gone.add_done_callback(lambda _: self._listeners.pop(listener))
        return listener

    async def dial(self, address: str, handler: LinkHandler, *, lane: Lane, timeout_s: float) -> Link:
        wanted = parse_address(address)
        handshake = DialerHandshake(
            self.identity, wanted.peer, address, lane, self._terms(), self._entropy(NONCE_BYTES)
        )
        link = self._make_link(handshake, lambda _: handler)
        loop = asyncio.get_running_loop()
        failure: NetError = HandshakeFailed(address=address, reason="given up")
        is_wanted = False
        try:
            async with asyncio.timeout(timeout_s):
                await loop.create_connection(
                    lambda: link,
                    wanted.host,
                    wanted.port,
                    ssl=self.tls.dialer,
                    server_hostname="",
                    ssl_handshake_timeout=self.config.handshake_timeout_s,
                    ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
                )
                await link.ready
            is_wanted = True
            return link
        except TimeoutError as error:
            reason = f"no answer within {timeout_s:g} s"
            failure = PeerUnreachable(peer=wanted.peer, addresses=(address,), reason=reason)
            raise failure from error
        except (ssl.SSLError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError) as error:
            failure = HandshakeFailed(address=address, reason=error.strerror or str(error) or "it hung up")
            raise failure from error
        except OSError as error:
            reason = error.strerror or str(error)
            failure = PeerUnreachable(peer=wanted.peer, addresses=(address,), reason=reason)
            raise failure from error
        finally:
            if not is_wanted:  # also where it became ready in the moment in which it was given up
                link.abort(failure)

    async def close(self) -> None:
        for listener in list(self._listeners):
            await listener.close()
        links = list(self._links)
        for link in links:
            link.close()
        if links:
            await asyncio.wait([link.gone for link in links], timeout=2 * SHUTDOWN_TIMEOUT_S)
        await asyncio.sleep(0)  # handlers are told of the end in the loop's next iteration

    def accept_link(self, host: str, port: int, accept: Callable[[Link], LinkHandler]) -> DirectLink:
        """Return the listener's end of a connection from a remote host; called by the listener."""
        handshake = ListenerHandshake(self.identity, f"{host}:{port}", self._terms(), self._entropy(NONCE_BYTES))
        return self._make_link(handshake, accept)

    def _make_link(
        self, handshake: DialerHandshake | ListenerHandshake, get_handler: Callable[[Link], LinkHandler]
    ) -> DirectLink:
        link = DirectLink(handshake, get_handler, self._clock, self.config.link, self._holdings)
        self._links[link] = None
        link.gone.add_done_callback(lambda _: self._links.pop(link))
        return link

    def _terms(self) -> Terms:
        listens = self.announced
        if listens is None:
            listens = tuple(address for listener in self._listeners for address in listener.addresses)
        return Terms(
            swarm=self.config.swarm,
            limits=self.config.link.limits,
            listens=listens[:MAX_ADDRESSES],
            libp2p=self.libp2p_addresses[:MAX_ADDRESSES],
        )


class DirectListener:
    """A listening socket, and a task for each connection that is not greeted yet."""

    def __init__(
        self, transport: DirectTransport, listening: socket.socket, accept: Callable[[Link], LinkHandler]
    ) -> None:
        self._transport = transport
        self._listening = listening
        self._accept = accept
        self._tasks = TaskScope()
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        host, port = listening.getsockname()[:2]
        hosts = _hosts_of_this_machine(listening.family) if host in _WILDCARDS else (host,)
        self.addresses: tuple[str, ...] = tuple(
            str(address_of(host, port, transport.identity.peer_id)) for host in hosts
        )
        self._tasks.start(self._accept_all(), name=f"listen {host}:{port}")

    async def close(self) -> None:
        """Accept nothing more; links that are greeted stay."""
        await self._tasks.close()
        self._listening.close()
        if not self.gone.done():
            self.gone.set_result(None)

    async def _accept_all(self) -> None:
        loop, admission = asyncio.get_running_loop(), self._transport.admission
        while True:
            try:
                connection, remote = await loop.sock_accept(self._listening)
            except OSError as error:  # the dialer is gone again, or file descriptors are short for a while
                _log.warning("accept failed reason=%s", error)
                await asyncio.sleep(_RETRY_ACCEPT_AFTER_S)
                continue
            if admission.admit(remote[0]):
                self._tasks.start(self._greet(connection, remote[0], remote[1]), name=f"greet {remote[0]}")
            else:
                _log.debug("connection refused remote=%s reason=too many", remote[0])
                connection.close()

    async def _greet(self, connection: socket.socket, host: str, port: int) -> None:
        transport, admission = self._transport, self._transport.admission
        link = transport.accept_link(host, port, self._accept)
        link.gone.add_done_callback(lambda _: admission.gone(host))
        reason = "this end was closed"
        try:
            async with asyncio.timeout(transport.config.handshake_timeout_s):
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: link,
                    connection,
                    ssl=transport.tls.listener,
                    ssl_handshake_timeout=transport.config.handshake_timeout_s,
                    ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
                )
                await link.ready
        except (OSError, TimeoutError, NetError) as error:
            reason = str(error) or "no greeting in time"
            _log.info("greeting failed remote=%s reason=%s", host, reason)
        finally:
            admission.settled(host)
            if not link.ready.done() or link.ready.cancelled() or link.ready.exception() is not None:
                link.abort(LinkLost(peer="", reason=reason))


async def _bind(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise BadAddress(text=f"{host}:{port}", reason=error.strerror or str(error)) from error
    family, kind, protocol, _, where = found[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(host=host, port=port) from error
        raise BadAddress(text=f"{host}:{port}", reason=error.strerror or str(error)) from error
    listening.setblocking(False)
    return listening


def _hosts_of_this_machine(family: int) -> tuple[str, ...]:
    """Return the host that the way to elsewhere starts from, if there is one, and the loopback."""
    loopback = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((_ELSEWHERE[socket.AddressFamily(family)], 9))
        except OSError:
            return (loopback,)
        outward: str = probe.getsockname()[0]
    return tuple(dict.fromkeys((outward.partition("%")[0], loopback)))
