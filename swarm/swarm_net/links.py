"""What a link is: one authenticated way to one peer, whatever carries it.

Owns the interfaces between what is said (`messages.py`) and what carries it: `direct.py` (TCP and TLS), `memory.py`
(tests and the simulator), later libp2p streams. Node and client hold links through an `Endpoint` (`endpoint.py`), which
dials, shares and watches them.

A link has two lanes. `decode` carries what is small and urgent; `bulk` carries prefill, files and KV, so that a decode
frame never waits behind megabytes. Messages on one lane arrive in order; between lanes there is no order.
"""

from collections.abc import Callable
from typing import NewType, Protocol

from swarm_net.errors import NetError
from swarm_net.messages import AnyMessage, Lane, Message

PeerId = NewType("PeerId", str)
Body = bytes | bytearray | memoryview
LANES: tuple[Lane, Lane] = ("decode", "bulk")


class Clock(Protocol):
    """Where time comes from; the simulator's runs as fast as it can."""

    def monotonic(self) -> float:
        """Seconds from some fixed point, never going back."""

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""


class Link(Protocol):
    """One lane of a connection to an authenticated peer."""

    peer: PeerId
    lane: Lane
    dialed: bool  # by us; its `remote_addresses` are then where we dialed, else what the peer says it listens on
    remote_addresses: tuple[str, ...]
    remote_host: str  # where the other end is, as this one sees it: an IP address, or a name in the simulator
    libp2p_addresses: tuple[str, ...]  # of the peer's DHT daemon, if it runs one (known to the dialer)
    clock_offset_ns: int  # the peer's wall clock less ours, measured by the dialer; 0 on the listener's side
    rtt_s: float  # of the greeting, measured by the dialer; 0.0 on the listener's side

    @property
    def is_open(self) -> bool: ...

    def send(self, message: Message, body: Body = b"") -> None:
        """Queue one frame; never blocks. The body must not be changed afterwards.

        Raises LinkLost if the link has ended, or if the peer has let more than the link's limit pile up: the link is
        then closed, since a frame has been lost. Raises Malformed, and the link stays, for a frame that is larger than
        the peer takes.
        """

    def keep_warm(self, users: int) -> None:
        """Add (or with -1 take away) a user who needs heartbeats: they keep the congestion window open, and a peer that
        sends none for `silence_timeout_s` is lost."""

    def expect_send(self, in_s: float) -> None:
        """Say that a small frame will be sent in about so many seconds. A link that is kept warm may wake the way, and
        both its ends, shortly before: cores that sleep and caches that other work filled cost more than the frame."""

    @property
    def backlog_bytes(self) -> int:
        """What was sent here and has not left yet: the sign of a peer, or a way to it, that is too slow."""

    def idle_s(self) -> float:
        """Seconds since a frame, heartbeats included, last came or went; 0 while users keep this end warm."""

    def close(self, reason: str = "") -> None:
        """End the link; `on_lost` of this end is called, soon, unless it was already."""


class LinkHandler(Protocol):
    """Who listens on a link. Both are called on the event loop and must not block."""

    def on_message(self, link: Link, message: AnyMessage, body: Body) -> None: ...

    def on_lost(self, link: Link, reason: NetError) -> None: ...


class Listener(Protocol):
    """Where others can dial us."""

    addresses: tuple[str, ...]

    async def close(self) -> None: ...


class Transport(Protocol):
    """What makes links: `DirectTransport`, `MemoryTransport`."""

    async def listen(self, host: str, port: int, accept: Callable[[Link], LinkHandler]) -> Listener:
        """Accept links; port 0 takes a free one. Raises PortInUse."""

    async def dial(self, address: str, handler: LinkHandler, *, lane: Lane, timeout_s: float) -> Link:
        """Return a link to the peer that the address names, greeted and ready.

        Raises BadAddress, PeerUnreachable, WrongPeer, HandshakeFailed.
        """

    async def close(self) -> None:
        """End every listener and link, and return when nothing of them is left."""
