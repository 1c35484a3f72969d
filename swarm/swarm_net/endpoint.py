"""The one way in which node and client use links: dial, share, ask, answer, watch.

Owns which links are open to whom, whose request an answer is, and the tasks that serve requests. It does not know what
a session is: `on` hands messages to whoever runs sessions.

- Links are shared: `link` returns the oldest open one to that peer and lane, whoever dialed it, or dials; of callers
  who want the same link at once one dials for all, if they name the same addresses: nobody waits for an address that
  somebody else made up. Two peers who dial each other at once get two links, both usable.
- A handler given to `on` that raises: a SessionError on a message of a session goes back to its sender as a Failure;
  Malformed or NotUnderstood, and any exception that is not a NetError, is logged and ends the link; other errors (a
  send to a third peer that is gone) are logged.
- A handler given to `serve` that raises: the error goes back as a Failure; only its class is told of unexpected ones.
- A link without users for `idle_timeout_s` is closed; by the end that did not dial it after twice that time, so that
  the dialer never takes one that is being closed.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast, overload

import msgspec

from swarm_net.addresses import parse_address
from swarm_net.errors import Malformed, NetError, NotUnderstood, PeerUnreachable, RequestTimeout, WrongPeer
from swarm_net.links import LANES, Body, Clock, Link, LinkHandler, Listener, PeerId, Transport
from swarm_net.messages import (
    MAX_ADDRESSES,
    AnyMessage,
    Failure,
    Fetch,
    File,
    Lane,
    Lookup,
    Message,
    ModelList,
    Models,
    Publish,
    Published,
    Records,
    Rpc,
    RpcReply,
)
from swarm_net.session_errors import Busy, SessionError, Unsupported, from_failure, to_failure
from swarm_net.tasks import TaskScope

_log = logging.getLogger(__name__)
_M = TypeVar("_M", bound=Message)

MessageHandler = Callable[[Link, _M, Body], None]
RequestHandler = Callable[[Link, _M, bytes], Awaitable[tuple[Message, Body]]]
LostHandler = Callable[[Link, NetError], None]

_REPLY_TO: dict[type[Message], type[Message]] = {
    Lookup: Records,
    Publish: Published,
    Models: ModelList,
    Fetch: File,
    Rpc: RpcReply,
}
_REPLIES = frozenset(_REPLY_TO.values())

# RFC 8305, section 5: the next address is tried while the one before has not answered.
_NEXT_ADDRESS_AFTER_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointLimits:
    """What an endpoint puts up with."""

    idle_timeout_s: float = 300.0
    request_bytes: int = 64 << 10  # of a request's body
    serving_per_peer: int = 64  # requests at once, on all its links; one more is answered with the Failure `busy`
    serving: int = 4096  # of all peers: each holds a body of `request_bytes` at most, so together 256 MiB
    unread_bytes_per_link: int = 4 << 20  # of answers; a peer that does not read them gets `busy` too


class _Asked(NamedTuple):
    """A request that waits for its answer; only the link that it went out on may bring one."""

    link: Link
    answer: asyncio.Future[tuple[AnyMessage, Body]]
    expected: type[Message]


class _Events:
    """The endpoint as its links see it."""

    def __init__(self, endpoint: "Endpoint") -> None:
        self.on_message = endpoint._received
        self.on_lost = endpoint._lost


class Endpoint:
    """A peer among peers."""

    def __init__(
        self, *, peer: PeerId, transport: Transport, clock: Clock, limits: EndpointLimits | None = None
    ) -> None:
        self.peer = peer
        self._transport = transport
        self._clock = clock
        self._limits = limits or EndpointLimits()
        self._links: dict[tuple[PeerId, Lane], list[Link]] = {}
        self._dials: dict[tuple[PeerId, Lane, tuple[str, ...]], asyncio.Task[Link | NetError]] = {}
        self._listeners: list[Listener] = []
        self._handlers: dict[type[Message], MessageHandler[Any]] = {}
        self._servers: dict[type[Message], RequestHandler[Any]] = {}
        self._lost_handlers: list[LostHandler] = []
        self._numbers = itertools.count(1)
        self._asked: dict[int, _Asked] = {}
        self._serving: dict[Link, dict[asyncio.Task[None], None]] = {}
        self._serving_in_all = 0
        self._tasks = TaskScope()
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False
        self._events = _Events(self)

    # -- who handles what

    def on(self, kind: type[_M], handler: MessageHandler[_M]) -> None:
        """Hand messages of a kind to a handler, called on the loop; it must not block."""
        assert kind not in self._handlers
        self._handlers[kind] = handler

    def serve(self, kind: type[_M], handler: RequestHandler[_M]) -> None:
        """Answer requests of a kind with the message and body that the handler returns; `request` is filled in."""
        assert kind in _REPLY_TO
        assert kind not in self._servers
        self._servers[kind] = handler

    def on_lost(self, handler: LostHandler) -> None:
        """Tell a handler of every link that ends."""
        self._lost_handlers.append(handler)

    # -- links

    async def listen(self, host: str, port: int) -> Listener:
        """Accept links; port 0 takes a free one. Raises PortInUse."""
        listener = await self._transport.listen(host, port, self._accept)
        self._listeners.append(listener)
        return listener

    def get(self, peer: PeerId, lane: Lane = "decode") -> Link | None:
        """Return the oldest open link to a peer, if there is one; the answer changes only when that link ends."""
        return next((link for link in self._links.get((peer, lane), ()) if link.is_open), None)

    async def link(self, peer: PeerId, addresses: Sequence[str], *, lane: Lane = "decode", timeout_s: float) -> Link:
        """Return a link to a peer: one that is open, or a new one to the first address that answers.

        Raises what the address raised if there was one, else PeerUnreachable with the reasons of all.
        """
        deadline_s = self._clock.monotonic() + timeout_s
        wanted = (peer, lane, tuple(dict.fromkeys(addresses))[:MAX_ADDRESSES])
        while (link := self.get(peer, lane)) is None:
            dial, is_ours = self._dials.get(wanted), False
            if dial is None:
                if self._closed:
                    raise PeerUnreachable(peer=peer, addresses=tuple(addresses), reason="this endpoint is closed")
                work = self._dial_any(*wanted, deadline_s)
                dial, is_ours = self._tasks.start(work, name=f"dial {peer}"), True
                self._dials[wanted] = dial
                dial.add_done_callback(lambda _: self._dials.pop(wanted, None))
            await asyncio.wait((dial,), timeout=max(0.0, deadline_s - self._clock.monotonic()))
            if not dial.done():
                reason = f"no answer within {timeout_s:g} s"
                raise PeerUnreachable(peer=peer, addresses=tuple(addresses), reason=reason)
            if dial.cancelled():
                raise PeerUnreachable(peer=peer, addresses=tuple(addresses), reason="this endpoint was closed")
            outcome = dial.result()
            if not isinstance(outcome, NetError):
                return self.get(peer, lane) or outcome
            if is_ours:
                raise outcome
        return link

    async def dial(self, address: str, timeout_s: float) -> Link:
        """Return a decode link to the peer that an address names. Raises BadAddress, and what `link` raises."""
        return await self.link(parse_address(address).peer, (address,), timeout_s=timeout_s)

    async def close(self) -> None:
        """End all links, listeners and tasks, and return when nothing of them is left."""
        self._closed = True
        for listener in self._listeners:
            await listener.close()
        if self._sweep is not None:
            self._sweep.cancel()
        await self._tasks.close()
        for link in self._open_links():
            link.close("this endpoint was closed")
        await self._transport.close()

    # -- requests

    @overload
    async def request(
        self, link: Link, message: Lookup, *, timeout_s: float, body: Body = ...
    ) -> tuple[Records, Body]: ...
    @overload
    async def request(
        self, link: Link, message: Publish, *, timeout_s: float, body: Body = ...
    ) -> tuple[Published, Body]: ...
    @overload
    async def request(
        self, link: Link, message: Models, *, timeout_s: float, body: Body = ...
    ) -> tuple[ModelList, Body]: ...
    @overload
    async def request(self, link: Link, message: Fetch, *, timeout_s: float, body: Body = ...) -> tuple[File, Body]: ...
    @overload
    async def request(
        self, link: Link, message: Rpc, *, timeout_s: float, body: Body = ...
    ) -> tuple[RpcReply, Body]: ...
    async def request(
        self, link: Link, message: Message, *, timeout_s: float, body: Body = b""
    ) -> tuple[AnyMessage, Body]:
        """Send a request, whose number is filled in here, and return its reply and the reply's body.

        Raises RequestTimeout, LinkLost, Malformed for a reply of another kind, and what a Failure carries.
        """
        number = next(self._numbers)
        expected = _REPLY_TO[type(message)]
        asked = _Asked(link, asyncio.get_running_loop().create_future(), expected)
        self._asked[number] = asked
        try:
            link.send(msgspec.structs.replace(message, request=number), body)
            async with asyncio.timeout(timeout_s):
                return await asked.answer
        except TimeoutError as error:
            raise RequestTimeout(peer=link.peer, request=type(message).__name__, timeout_s=timeout_s) from error
        finally:
            del self._asked[number]

    # -- called by the links

    def _received(self, link: Link, message: AnyMessage, body: Body) -> None:
        if self._closed:
            return
        kind = type(message)
        if kind in _REPLIES or (isinstance(message, Failure) and message.request is not None):
            self._take_answer(link, message, body)
        elif (handler := self._handlers.get(kind)) is not None:
            self._handle(handler, link, message, body)
        elif kind in _REPLY_TO:
            self._start_serving(link, message, body)
        else:
            _log.debug("message without a handler peer=%s message=%s", link.peer, kind.__name__)

    def _lost(self, link: Link, reason: NetError) -> None:
        siblings = self._links.get((link.peer, link.lane), [])
        if link not in siblings:
            return  # ended while it was being dialed: nobody has it
        siblings.remove(link)
        if not siblings:
            del self._links[link.peer, link.lane]
        for asked in list(self._asked.values()):
            if asked.link is link and not asked.answer.done():
                asked.answer.set_exception(reason)
        for task in self._serving.pop(link, {}):
            task.cancel()
        for handler in self._lost_handlers:
            handler(link, reason)

    def _accept(self, link: Link) -> LinkHandler:
        if self._closed:
            link.close("this endpoint was closed")
        else:
            self._register(link)
        return self._events

    def _register(self, link: Link) -> None:
        self._links.setdefault((link.peer, link.lane), []).append(link)
        if self._sweep is None:
            self._plan_sweep()

    def _handle(self, handler: MessageHandler[Any], link: Link, message: AnyMessage, body: Body) -> None:
        session = getattr(message, "session", None)
        try:
            handler(link, message, body)
        except SessionError as error:
            if session is not None and not isinstance(message, Failure):
                send_if_open(link, to_failure(error, session=session))
            else:
                _log.warning("message dropped peer=%s message=%s reason=%s", link.peer, type(message).__name__, error)
        except (Malformed, NotUnderstood) as error:
            _log.warning("link closed peer=%s reason=%s", link.peer, error)
            link.close(str(error))
        except NetError as error:
            _log.warning("message dropped peer=%s message=%s reason=%s", link.peer, type(message).__name__, error)
        except Exception:
            _log.exception("handler failed peer=%s message=%s", link.peer, type(message).__name__)
            link.close("a message could not be handled")

    def _take_answer(self, link: Link, message: AnyMessage, body: Body) -> None:
        asked = self._asked.get(cast("int", getattr(message, "request", 0)))
        if asked is None or asked.link is not link or asked.answer.done():
            return  # late: its asker has given up
        if isinstance(message, Failure):
            asked.answer.set_exception(from_failure(message))
        elif isinstance(message, asked.expected):
            asked.answer.set_result((message, body))
        else:
            reason = f"{type(message).__name__} where {asked.expected.__name__} was asked for"
            asked.answer.set_exception(Malformed(what="reply", reason=reason))

    # -- serving

    def _start_serving(self, link: Link, message: AnyMessage, body: Body) -> None:
        number = cast("int", getattr(message, "request", 0))
        server = self._servers.get(type(message))
        if server is None:
            send_if_open(link, to_failure(Unsupported(type(message).__name__), request=number))
            return
        if len(body) > self._limits.request_bytes:
            text = f"a request of {len(body)} bytes, at most {self._limits.request_bytes} are read"
            send_if_open(link, _failure_of(number, text, "ask for less at a time"))
            return
        limits, unread_bytes = self._limits, link.backlog_bytes
        siblings = [each for lane in LANES for each in self._links.get((link.peer, lane), ())]
        of_peer = sum(len(self._serving.get(each, ())) for each in siblings)
        if (
            of_peer >= limits.serving_per_peer
            or self._serving_in_all >= limits.serving
            or unread_bytes > limits.unread_bytes_per_link
        ):
            reason = f"{of_peer} requests of this peer are being served, {unread_bytes} bytes wait to be read"
            send_if_open(link, to_failure(Busy(reason), request=number))
            return
        work = self._serve_one(server, link, message, bytes(body), number)
        task = self._tasks.start(work, name=f"serve {type(message).__name__}")
        self._serving.setdefault(link, {})[task] = None
        self._serving_in_all += 1
        task.add_done_callback(lambda task: self._served(link, task))

    def _served(self, link: Link, task: asyncio.Task[None]) -> None:
        self._serving_in_all -= 1
        if (serving := self._serving.get(link)) is not None:
            serving.pop(task, None)
            if not serving:
                del self._serving[link]

    async def _serve_one(
        self, server: RequestHandler[Any], link: Link, message: AnyMessage, body: bytes, number: int
    ) -> None:
        try:
            reply, answer = await server(link, message, body)
            if link.is_open:
                link.send(msgspec.structs.replace(reply, request=number), answer)
        except SessionError as error:
            send_if_open(link, to_failure(error, request=number))
        except NetError as error:
            send_if_open(link, _failure_of(number, str(error), error.remedy()))
        except Exception as error:
            _log.exception("request failed peer=%s request=%s", link.peer, type(message).__name__)
            send_if_open(link, _failure_of(number, f"the peer met a {type(error).__name__}", "ask another node"))

    # -- dialing

    async def _dial_any(
        self, peer: PeerId, lane: Lane, addresses: tuple[str, ...], deadline_s: float
    ) -> Link | NetError:
        """Dial addresses one after the other, not waiting for long for any; the first link wins."""
        errors: list[NetError] = []
        running: list[asyncio.Task[Link | NetError]] = []
        waiting = list(addresses)
        try:
            while waiting or running:
                if waiting:
                    work = self._dial_one(peer, waiting.pop(0), lane, deadline_s)
                    running.append(self._tasks.start(work, name=f"dial {peer}"))
                await asyncio.wait(
                    running, timeout=_NEXT_ADDRESS_AFTER_S if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                for attempt in [task for task in running if task.done()]:
                    running.remove(attempt)
                    outcome = attempt.result()
                    if not isinstance(outcome, NetError):
                        return outcome
                    errors.append(outcome)
        finally:
            for attempt in running:
                attempt.cancel()
        if len(errors) == 1:
            return errors[0]
        reason = "; ".join(str(error) for error in errors) or "it has no address that can be dialed"
        return PeerUnreachable(peer=peer, addresses=addresses, reason=reason)

    async def _dial_one(self, peer: PeerId, address: str, lane: Lane, deadline_s: float) -> Link | NetError:
        try:
            named = parse_address(address).peer
            if named != peer:
                return WrongPeer(address=address, wanted=peer, got=named)
            timeout_s = max(0.0, deadline_s - self._clock.monotonic())
            link = await self._transport.dial(address, self._events, lane=lane, timeout_s=timeout_s)
        except NetError as error:
            return error
        if not link.is_open:
            return PeerUnreachable(peer=peer, addresses=(address,), reason="it closed the link at once")
        self._register(link)
        return link

    # -- idleness

    def _plan_sweep(self) -> None:
        self._sweep = None
        if self._links and not self._closed:
            loop = asyncio.get_running_loop()
            self._sweep = loop.call_later(self._limits.idle_timeout_s / 4, self._close_idle_links)

    def _close_idle_links(self) -> None:
        busy = [asked.link for asked in self._asked.values()]
        for link in self._open_links():
            patience_s = self._limits.idle_timeout_s * (1 if link.dialed else 2)
            if link.idle_s() >= patience_s and link not in busy and not self._serving.get(link):
                link.close("idle")
        self._plan_sweep()

    def _open_links(self) -> list[Link]:
        return [link for siblings in self._links.values() for link in siblings]


def send_if_open(link: Link, message: Message) -> None:
    """Send what the other end may not be there to hear, or may refuse to take."""
    with contextlib.suppress(NetError):  # also a peer that takes only smaller frames
        link.send(message)


def _failure_of(number: int, text: str, remedy: str) -> Failure:
    return Failure(request=number, code="request_failed", retry="elsewhere", text=text[:2048], remedy=remedy[:2048])
