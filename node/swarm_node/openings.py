"""Sessions while they are opened: admitted here, passed on to the next hop, promised to the client.

    Open      admit, ask what is kept of the prompt and who pays, dial the next hop, pass it on
    Opened    of the next hop: add our own grant and pass it back
    Refuse    of the next hop: pass its words back, and end here

Owns the openings that wait for their next hop. Once a session is ready it is `node.py`'s, whose one this is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from swarm_net.endpoint import Endpoint, send_if_open
from swarm_net.errors import NetError
from swarm_net.links import LANES, Body, Clock, Link, PeerId
from swarm_net.messages import HopGrant, HopSpec, Load, Open, Opened, Refuse
from swarm_net.prefixes import prefix_scope
from swarm_net.session_errors import (
    ComputeFailed,
    Draining,
    HopSilent,
    HopUnreachable,
    Overloaded,
    SessionError,
    to_failure,
)
from swarm_net.tasks import TaskScope
from swarm_node.compute import Adopt, Command
from swarm_node.dues import Dues
from swarm_node.executor import Prefix
from swarm_node.grammars import Grammars
from swarm_node.limits import NodeLimits
from swarm_node.next_hop import allowed
from swarm_node.sessions import Session, SessionTable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Owner:
    """What the node does for its openings."""

    submit: Callable[[Command], None]  # to the compute driver
    forget: Callable[..., bool]  # a session, and with a reason `cancel` it at later hops; False if it had ended
    load: Callable[[], Load]
    opened: Callable[[], None]  # one more session is served


class Openings:
    """The openings of one node."""

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        table: SessionTable,
        dues: Dues,
        grammars: Grammars | None,
        limits: NodeLimits,
        clock: Clock,
        tasks: TaskScope,
        owner: Owner,
    ) -> None:
        self.is_draining = False  # then nothing more is opened
        self._endpoint = endpoint
        self._table = table
        self._dues = dues
        self._grammars = grammars
        self._limits = limits
        self._clock = clock
        self._tasks = tasks
        self._owner = owner
        self._waiting: dict[bytes, Opening] = {}

    def __len__(self) -> int:
        """Count those that wait for their next hop."""
        return len(self._waiting)

    def stop(self, session: Session) -> None:
        """A session has ended: nobody waits for its next hop any more."""
        if (opening := self._waiting.pop(session.id, None)) is not None:
            opening.stop()

    def on_open(self, link: Link, message: Open, body: Body) -> None:
        try:
            if self.is_draining:
                raise Draining()
            self._check_room(link)
            self._check_queue()
            session = self._table.open(message, link, self._clock.monotonic())
        except SessionError as error:
            self._refuse(link, message, error)
            return
        link.keep_warm(1)
        task = self._tasks.start(self._connect(session), name="open session")
        self._waiting[session.id] = Opening(task, asyncio.get_running_loop().create_future(), link.peer)

    def _check_room(self, link: Link) -> None:
        """Raise ComputeFailed if too many openings wait, of all peers or of this one: a silent next hop costs room."""
        limits = self._limits
        if len(self._waiting) >= limits.max_opening:
            raise ComputeFailed(reason=f"{limits.max_opening} sessions are being opened already")
        if sum(opening.peer == link.peer for opening in self._waiting.values()) >= limits.max_opening_of_a_peer:
            raise ComputeFailed(reason=f"{limits.max_opening_of_a_peer} sessions of this peer are being opened already")

    def _check_queue(self) -> None:
        """Raise Overloaded if what waits takes longer than a new session should."""
        limits = self._limits
        if limits.prefill_tokens_per_s:
            waiting_s = self._owner.load().queued_tokens / limits.prefill_tokens_per_s
            if waiting_s > limits.max_waiting_s:
                raise Overloaded(waiting_ms=int(waiting_s * 1000), limit_ms=int(limits.max_waiting_s * 1000))

    async def _connect(self, session: Session) -> None:
        """Reach the next hop and have it open the session, or on the last hop find the client's link."""
        message, started_s = session.open, self._clock.monotonic()
        deadline_s = min(message.deadline_ms / 1000, self._limits.max_opening_s)
        try:
            async with asyncio.timeout(deadline_s):
                adopted = self._adopt_prefix(session)
                admitted = self._tasks.start(self._dues.admit(session), name="look at a channel")
                try:
                    grants = await self._open_rest(session, started_s + deadline_s)
                    await admitted
                finally:
                    admitted.cancel()
                session.begin_at(await adopted)
        except SessionError as error:
            self._give_up(session, error)
        except TimeoutError:
            self._give_up(session, HopSilent(waited_ms=int(deadline_s * 1000)))
        except NetError as error:
            log.info("next hop not reached session=%s reason=%s", session.id.hex()[:8], error)
            self._give_up(session, _not_reached(message, session.next_spec))
        except Exception as error:  # a bug of ours must end this session, not the node
            log.exception("opening failed session=%s", session.id.hex()[:8])
            self._give_up(session, ComputeFailed(reason=type(error).__name__))
        else:
            del self._waiting[session.id]
            lease_s, sealed = self._dues.grant(session)
            own = HopGrant(
                hop=session.hop,
                max_tokens=message.max_tokens,
                idle_timeout_ms=int(self._limits.idle_timeout_s * 1000),
                cached_tokens=session.tail,
                lease_s=lease_s,
                sealed=sealed,
            )
            session.is_ready = True
            session.touched_s = self._clock.monotonic()
            self._owner.opened()
            send_if_open(session.upstream, Opened(session=session.id, grants=(own, *grants)))

    def _adopt_prefix(self, session: Session) -> asyncio.Future[int]:
        """Ask, while later hops are reached, how much of the session's prompt is kept; done when the thread looked."""
        message, cached = session.open, asyncio.get_running_loop().create_future()
        if not message.prefix or self._limits.prefix_sharing == "off" or not session.may_begin_later:
            cached.set_result(0)
            return cached
        everyone = self._limits.prefix_sharing == "everyone"
        scope = prefix_scope(message, upstream=session.upstream.peer, everyone=everyone)

        def adopted(tokens: int) -> None:
            if not cached.done():
                cached.set_result(tokens)

        self._owner.submit(Adopt(session.id, Prefix(scope, message.prefix), adopted))
        return cached

    async def _open_rest(self, session: Session, deadline_s: float) -> tuple[HopGrant, ...]:
        message, spec = session.open, session.next_spec
        if spec is None:
            reply = self._endpoint.get(PeerId(message.client))
            if reply is None:
                raise HopUnreachable(target=message.client, reason="the client has no link to the last hop")
            session.reply = reply
            reply.keep_warm(1)
            if message.sampling.grammar:
                assert self._grammars is not None, "the table refuses grammars that nobody can compile"
                session.matcher = await self._grammars.matcher(message.sampling.grammar)
            return ()
        peer, timeout_s, addresses = PeerId(spec.peer), self._limits.dial_timeout_s, spec.addresses
        if any(self._endpoint.get(peer, lane) is None for lane in LANES):
            addresses = await allowed(spec.addresses, session.upstream.remote_host, timeout_s)
        for lane in LANES:
            link = await self._endpoint.link(peer, addresses, lane=lane, timeout_s=timeout_s)
            session.downstream[lane] = link
            link.keep_warm(1)
        left_ms = int((deadline_s - self._clock.monotonic()) * 1000)
        opening = self._waiting[session.id]
        session.downstream["decode"].send(
            msgspec.structs.replace(message, hop=message.hop + 1, deadline_ms=max(1, left_ms))
        )
        return (await opening.opened).grants

    def _give_up(self, session: Session, error: SessionError) -> None:
        if self._owner.forget(session, cancel=error.code):
            self._refuse(session.upstream, session.open, error)

    def _refuse(self, link: Link, message: Open, error: SessionError) -> None:
        log.info("refuse session=%s reason=%s", message.session.hex()[:8], error.code)
        failure = to_failure(error.at(message.hop, self._endpoint.peer), session=message.session)
        # Until half of the limit waits: whoever comes back at the same time finds room.
        retry_after_ms = error.waiting_ms - error.limit_ms // 2 if isinstance(error, Overloaded) else 0
        load = self._owner.load()
        send_if_open(link, Refuse(session=message.session, failure=failure, load=load, retry_after_ms=retry_after_ms))

    def on_opened(self, link: Link, message: Opened, body: Body) -> None:
        opening = self._opening_of(message.session, link)
        if opening is None or opening.opened.done():
            return
        session = self._table.sessions[message.session]
        later_hops = len(session.open.hops) - session.hop - 1
        if len(message.grants) == later_hops:
            opening.opened.set_result(message)
        else:
            reason = f"it answers with {len(message.grants)} grants for {later_hops} hops"
            opening.opened.set_exception(HopUnreachable(target=link.peer, reason=reason))

    def on_refuse(self, link: Link, message: Refuse, body: Body) -> None:
        """The next hop refuses: pass its words on, with its load, and end the opening here."""
        if self._opening_of(message.session, link) is None:
            return
        session = self._table.sessions[message.session]
        if self._owner.forget(session, cancel=None):
            send_if_open(session.upstream, message)

    def _opening_of(self, session: bytes, link: Link) -> Opening | None:
        """The opening that waits for this link's answer."""
        known, opening = self._table.sessions.get(session), self._waiting.get(session)
        return opening if known is not None and link is known.downstream.get("decode") else None


def _not_reached(message: Open, spec: HopSpec | None) -> HopUnreachable:
    """Say that a peer was not reached, and nothing of why: the addresses are the client's, the network is ours."""
    if spec is None:
        return HopUnreachable(target=message.client, reason="its link to the last hop has ended")
    return HopUnreachable(target=spec.peer, reason=f"none of its {len(spec.addresses)} addresses led to it")


class Opening:
    """A session that waits for its later hops."""

    def __init__(self, task: asyncio.Task[None], opened: asyncio.Future[Opened], peer: PeerId) -> None:
        self.task = task
        self.opened = opened
        self.peer = peer  # that asked for it

    def stop(self) -> None:
        if self.task is not asyncio.current_task():
            self.task.cancel()
