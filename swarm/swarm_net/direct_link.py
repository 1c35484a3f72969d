"""One direct link: a TLS connection as an asyncio protocol, from its first byte to its last.

Owns framing, greeting, heartbeats and the bound on what waits to be written; who makes connections is `direct.py`, what
all links together may hold `holdings.py`. Bytes are received straight into the frame receiver's memory
(`BufferedProtocol`).

Heartbeats. An end that keeps the link warm sends one every 120 ms. The other end sends one back for each, unless
heartbeats of its own are still without answer: then it counts the one that came as the answer. So two ends that both
keep the link warm do not answer each other, heartbeats under way are never more than those unanswered, and they end
when nobody keeps the link warm. An end that keeps it warm and hears nothing for `silence_timeout_s` loses it.

A heartbeat also goes out shortly before a frame that was announced by `expect_send`. Both ends wake, and the code that
sends and receives is in their caches when the frame comes (`benchmarks/hops.py` measures what a hop costs).
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from swarm_net.delivery import deliver
from swarm_net.errors import HandshakeFailed, LinkLost, Malformed, NetError
from swarm_net.frames import (
    DEFAULT_LIMITS,
    HEARTBEAT,
    KIB,
    MIB,
    Frame,
    FrameLimits,
    FrameReceiver,
    check_size,
    encode_frame,
    size_of,
)
from swarm_net.handshake import DialerHandshake, Greeted, ListenerHandshake, refusal
from swarm_net.holdings import Holdings
from swarm_net.links import Body, Clock, Link, LinkHandler, PeerId
from swarm_net.messages import Failure, Lane, Message, encode
from swarm_net.tls import key_of_certificate

_log = logging.getLogger(__name__)

# Small paced messages are quicker with cubic, megabytes over a lossy path by far with bbr.
_CONGESTION_CONTROL: dict[Lane, bytes] = {"decode": b"cubic", "bulk": b"bbr"}
_KEEPALIVE_IDLE_S = 60
# How long a closed link may take to send what waits and to say goodbye.
SHUTDOWN_TIMEOUT_S = 2.0
# Where the bytes go that still come in meanwhile; nobody reads them.
_DISCARDED = memoryview(bytearray(64 * KIB))


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkConfig:
    """How a link behaves."""

    limits: FrameLimits = DEFAULT_LIMITS
    heartbeat_interval_s: float = 0.12
    silence_timeout_s: float = 5.0
    wake_ahead_s: float = 0.0015  # before a frame that is expected; 0: never
    max_pending_bytes: int = 64 * MIB  # what may wait to be written when one more frame comes


class DirectLink(asyncio.BufferedProtocol):
    """A `Link`, once `ready` is done; `gone` is done when its socket is closed."""

    def __init__(
        self,
        handshake: DialerHandshake | ListenerHandshake,
        get_handler: Callable[[Link], LinkHandler],
        clock: Clock,
        config: LinkConfig,
        holdings: Holdings,
    ) -> None:
        self.peer = PeerId("")
        self.lane: Lane = "decode"
        self.dialed = isinstance(handshake, DialerHandshake)
        self.remote_addresses: tuple[str, ...] = ()
        self.remote_host = ""
        self.libp2p_addresses: tuple[str, ...] = ()
        self.clock_offset_ns = 0
        self.rtt_s = 0.0
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._handshake: DialerHandshake | ListenerHandshake | None = handshake
        self._address = handshake.address
        self._get_handler = get_handler
        self._handler: LinkHandler | None = None
        self._clock = clock
        self._config = config
        self._holdings = holdings
        self._noted_bytes = 0
        self._receiver = FrameReceiver(handshake.limits, self._expects_large)
        self._peer_limits = handshake.limits
        self._transport: asyncio.Transport | None = None
        self._ended: NetError | None = None
        self._writing_paused = False
        self._users = 0
        self._unanswered = 0
        self._beat: asyncio.TimerHandle | None = None
        self._waking: asyncio.TimerHandle | None = None
        self._beat_due_s = 0.0
        self._pending_at_beat = 0
        self._shutdown: asyncio.TimerHandle | None = None
        self._sent_s = self._received_s = self._heard_s = self._loop.time()

    # -- Link

    @property
    def is_open(self) -> bool:
        return self._ended is None

    def send(self, message: Message, body: Body = b"") -> None:
        if self._ended is not None or self._transport is None:
            raise LinkLost(peer=self.peer, reason=_reason(self._ended))
        header = encode(message)
        check_size(len(header), size_of(body), self._peer_limits)
        if self._writing_paused and self._transport.get_write_buffer_size() > self._config.max_pending_bytes:
            lost = LinkLost(peer=self.peer, reason=f"more than {self._config.max_pending_bytes} bytes wait to be sent")
            self._lose(lost)
            raise lost
        pieces = encode_frame(header, body)
        if len(pieces) == 1:
            self._transport.write(pieces[0])
        else:
            self._transport.writelines(pieces)
        self._sent_s = self._loop.time()
        if self._writing_paused:
            self._note_held()
            if self._ended is not None:
                raise LinkLost(peer=self.peer, reason=_reason(self._ended))

    def keep_warm(self, users: int) -> None:
        self._users += users
        assert self._users >= 0
        if self._users and self._beat is None and self._ended is None:
            self._heard_s = self._beat_due_s = self._loop.time()
            self._keep_beating()

    def expect_send(self, in_s: float) -> None:
        ahead_s = self._config.wake_ahead_s
        if ahead_s and in_s > ahead_s and self._waking is None and self._users and self._ended is None:
            self._waking = self._loop.call_later(in_s - ahead_s, self._wake)

    @property
    def backlog_bytes(self) -> int:
        if self._ended is not None or self._transport is None:
            return 0
        return self._transport.get_write_buffer_size()

    @property
    def in_use(self) -> bool:
        return bool(self._users) and self._ended is None

    @property
    def held_bytes(self) -> int:
        unsent = self._transport.get_write_buffer_size() if self._transport is not None else 0
        return unsent + self._receiver.held_bytes

    def idle_s(self) -> float:
        return 0.0 if self._users else self._loop.time() - max(self._sent_s, self._received_s)

    def close(self, reason: str = "") -> None:
        if self._ended is None:
            self._end(LinkLost(peer=self.peer, reason=reason or "closed by this end"))
            self._close_transport()

    def abort(self, reason: NetError) -> None:
        """End the link without sending what waits; for its maker, when the greeting fails."""
        self._end(reason)
        if self._transport is not None:
            self._transport.abort()
        elif not self.gone.done():
            self.gone.set_result(None)

    # -- asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has no such base class
        if self._ended is not None or self._handshake is None:
            self._transport.abort()
            return
        self.remote_host = str((transport.get_extra_info("peername") or ("",))[0])
        try:
            if self.dialed:
                tls = transport.get_extra_info("ssl_object")
                challenge = self._handshake.start(key_of_certificate(tls.getpeercert(binary_form=True)))
            else:
                challenge = self._handshake.start(None)
        except NetError as error:
            self._lose(error)
            return
        if challenge:
            self._transport.write(challenge)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._receiver.buffer() if self._ended is None else _DISCARDED

    def buffer_updated(self, nbytes: int) -> None:
        if self._ended is not None:
            return  # closed by this end, which still sends what waits
        self._receiver.received(nbytes)
        self._received_s = self._heard_s = self._loop.time()
        try:
            while self._ended is None and (frame := self._receiver.next_frame()) is not None:
                if self._handshake is not None:
                    self._greet(self._handshake, frame)
                elif frame.is_heartbeat:
                    self._answer_heartbeat()
                elif self._handler is not None:
                    deliver(self, self._handler, frame.header, frame.body)
        except NetError as error:
            _log.info("link ended peer=%s reason=%s", self.peer or "unknown", error)
            self._lose(error)
        if self._ended is None and self._receiver.held_bytes != self._noted_bytes:
            self._noted_bytes = self._receiver.held_bytes
            self._note_held()

    def eof_received(self) -> None:
        """A peer that has closed its half is not listened to any further: the transport closes."""

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._ended is None:
            self._note_held()

    def connection_lost(self, error: Exception | None) -> None:
        if self._ended is None:
            self._end(LinkLost(peer=self.peer, reason=str(error) if error is not None else "closed by the peer"))
        self._holdings.leave(self)
        if self._shutdown is not None:
            self._shutdown.cancel()
        if not self.gone.done():
            self.gone.set_result(None)

    # -- greeting

    def _greet(self, handshake: DialerHandshake | ListenerHandshake, frame: Frame) -> None:
        assert self._transport is not None
        turn = handshake.receive(frame.header, self._clock.monotonic(), self._clock.wall_ns())
        if turn.greeted is not None and not self.dialed and not self._holdings.has_room(turn.greeted.peer):
            text = f"{self._holdings.caps.links_per_peer} links of this peer are open already: it must use those"
            turn = refusal(self._address, Failure(code="too_many_links", retry="elsewhere", text=text))
        if turn.send:
            self._transport.write(turn.send)
        if turn.refused is not None:
            self._end(turn.refused)
            self._close_transport()  # after the Failure has been sent
        elif turn.greeted is not None:
            self._become_ready(turn.greeted)
        else:
            self._receiver.set_limits(handshake.limits)

    def _become_ready(self, greeted: Greeted) -> None:
        assert self._transport is not None
        self._handshake = None
        self._receiver.set_limits(self._config.limits)
        self.peer, self.lane, self._peer_limits = greeted.peer, greeted.lane, greeted.limits
        self.remote_addresses, self.libp2p_addresses = greeted.listens, greeted.libp2p
        self.clock_offset_ns, self.rtt_s = greeted.clock_offset_ns, greeted.rtt_s
        self._holdings.join(self)
        _tune(self._transport.get_extra_info("socket"), self.lane)
        try:
            self._handler = self._get_handler(self)
        except Exception:
            _log.exception("link could not be taken peer=%s", self.peer)
            self._lose(LinkLost(peer=self.peer, reason="this end could not take the link"))
            return
        if not self.ready.done():
            self.ready.set_result(None)

    # -- what is held

    def _expects_large(self) -> bool:
        """A peer that dialed us sends large bodies in sessions alone; one that we dialed answers us as well."""
        return self.dialed or self._holdings.has_session(self.peer)

    def _note_held(self) -> None:
        while self._ended is None and (loser := self._holdings.note(self)) is not None:
            loser.give_way()

    def give_way(self) -> None:
        _log.warning("link ended peer=%s held_bytes=%d reason=too much is held for peers", self.peer, self.held_bytes)
        self._lose(LinkLost(peer=self.peer, reason="it held more memory than this peer can spare"))

    # -- heartbeats

    def _answer_heartbeat(self) -> None:
        if self._unanswered:
            self._unanswered -= 1
        elif self._transport is not None and not self._writing_paused:
            self._transport.write(HEARTBEAT)

    def _keep_beating(self) -> None:
        self._beat = None
        if not self._users or self._ended is not None or self._transport is None:
            return
        now_s = self._loop.time()
        # What our own loop was late cannot be held against the peer; nor can a way that is slow but moves: bytes that
        # wait to be sent stand before our heartbeats.
        self._heard_s += now_s - self._beat_due_s
        pending_bytes = self._transport.get_write_buffer_size()
        if pending_bytes < self._pending_at_beat:
            self._heard_s = now_s
        self._pending_at_beat = pending_bytes
        if now_s - self._heard_s > self._config.silence_timeout_s:
            self._lose(LinkLost(peer=self.peer, reason=f"silent for {self._config.silence_timeout_s:g} s"))
            return
        self._send_heartbeat()
        self._beat_due_s = now_s + self._config.heartbeat_interval_s
        self._beat = self._loop.call_at(self._beat_due_s, self._keep_beating)

    def _wake(self) -> None:
        self._waking = None
        if self._ended is None:
            self._send_heartbeat()

    def _send_heartbeat(self) -> None:
        """Send one that counts as unanswered: else the two ends would answer each other for ever."""
        if self._transport is not None and not self._writing_paused:
            self._transport.write(HEARTBEAT)
            self._unanswered += 1
            self._sent_s = self._loop.time()

    # -- end

    def _close_transport(self) -> None:
        """Close once what waits is sent. The deadline is our own: a TLS transport whose peer has closed its half
        already sets none and may wait for ever."""
        if self._transport is not None:
            self._transport.close()
            self._shutdown = self._loop.call_later(SHUTDOWN_TIMEOUT_S, self._transport.abort)

    def _lose(self, reason: NetError) -> None:
        self._end(reason)
        self._holdings.leave(self)
        if self._transport is not None:
            self._transport.abort()

    def _end(self, reason: NetError) -> None:
        if self._ended is not None:
            return
        self._ended = reason
        self._receiver.drop()
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None
        if not self.ready.done():
            self.ready.set_exception(_as_handshake_failure(self._address, reason))
            self.ready.exception()  # its maker may have given up; nobody else is to be told
        if self._handler is not None:
            self._loop.call_soon(self._handler.on_lost, self, _as_lost(self.peer, reason))


def _as_handshake_failure(address: str, reason: NetError) -> NetError:
    if isinstance(reason, LinkLost | Malformed):
        text = reason.reason if isinstance(reason, LinkLost) else str(reason)
        return HandshakeFailed(address=address, reason=text)
    return reason


def _as_lost(peer: PeerId, reason: NetError) -> LinkLost:
    return reason if isinstance(reason, LinkLost) else LinkLost(peer=peer, reason=str(reason))


def _reason(ended: NetError | None) -> str:
    if ended is None:
        return "not connected yet"
    return ended.reason if isinstance(ended, LinkLost) else str(ended)


def _tune(connection: socket.socket, lane: Lane) -> None:
    """Set what suits a lane; what this kernel does not have is left as it is."""
    options: list[tuple[int, int, int | bytes]] = [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    ]
    if hasattr(socket, "TCP_KEEPIDLE"):
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S))
    if hasattr(socket, "TCP_CONGESTION"):
        options.append((socket.IPPROTO_TCP, socket.TCP_CONGESTION, _CONGESTION_CONTROL[lane]))
    for level, option, value in options:
        try:
            connection.setsockopt(level, option, value)
        except OSError as error:
            _log.debug("socket option %s left alone: %s", option, error)
