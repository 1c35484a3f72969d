"""A node: takes sessions and steps from its links, has them computed, and sends what comes out to the next hop.

Owns the shell around the pure parts, once a session is open (`openings.py` brings it there): `sessions.py` decides what
is accepted, `scheduler.py` what runs, the compute driver runs it. It starts no process, reads no file and knows neither
torch nor the DHT; `program.py` builds it from real parts, the simulator from simulated ones.

    Open     admit, dial the next hop, pass it on, wait for its Opened, answer Opened
    Step     collect, accept, queue                           -> compute
    ran      pass on as a Step, or as a Result to the client  <- compute
    Credit   collect, pass on
    Cancel   pass on, forget
    lost     a link ended: its sessions fail upstream and are cancelled downstream

An error whose `retry` is `here` leaves its session open. Any other ends it at every hop: the hop where it happens sends
Failure upstream and Cancel downstream. A step that is not paid for waits, while its client is asked, and with it those
behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

import msgspec

from swarm_net.endpoint import Endpoint, send_if_open
from swarm_net.errors import LinkLost, NetError
from swarm_net.links import Body, Clock, Link
from swarm_net.messages import (
    Cancel,
    Credit,
    Failure,
    HopTiming,
    Load,
    ModelId,
    Open,
    Opened,
    Refuse,
    Result,
    Step,
    StepKind,
    TokenLogprob,
)
from swarm_net.session_errors import (
    Draining,
    GrammarRefused,
    HopLost,
    PaymentRefused,
    SessionError,
    SessionUnknown,
    to_failure,
)
from swarm_net.tasks import TaskScope
from swarm_node.cashier import Cashier
from swarm_node.compute import Command, Compute, Drop, Hold, Ran, Release, Void
from swarm_node.dues import Dues
from swarm_node.executor import SpanFacts
from swarm_node.grammars import Grammars, Matcher
from swarm_node.limits import NodeLimits
from swarm_node.openings import Openings, Owner
from swarm_node.scheduler import Work
from swarm_node.sessions import Session, SessionTable

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.01
TOKEN_BY_TOKEN: tuple[StepKind, ...] = ("decode", "verify")


class Node:
    """Serves one span to the peers of an endpoint; an async context manager."""

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        compute: Compute,
        facts: SpanFacts,
        model: ModelId,
        clock: Clock,
        limits: NodeLimits | None = None,
        grammars: Grammars | None = None,
        cashier: Cashier | None = None,
    ) -> None:
        limits = limits or NodeLimits()
        self.facts = facts
        self.model = model
        self.table = SessionTable(facts, endpoint.peer, model.revision, model.name, grammars is not None)
        self.served = Served()
        self._endpoint = endpoint
        self._compute = compute
        self._clock = clock
        self._limits = limits
        self._commands: list[Command] = []
        self._busy = BusyShare()
        self._decode_s = 0.0  # what the last batch of decode steps took, and the next one probably will
        self._slow_links: list[Link] = []  # whose sessions wait until what was sent has left
        self._tasks = TaskScope()
        self._dues = Dues(
            cashier,
            own=endpoint.peer,
            tasks=self._tasks,
            timeout_s=limits.pay_timeout_s,
            take=self._take,
            fail=self._fail,
            table=self.table,
            send=send_if_open,
        )
        self._openings = Openings(
            endpoint=endpoint,
            table=self.table,
            dues=self._dues,
            grammars=grammars,
            limits=limits,
            clock=clock,
            tasks=self._tasks,
            owner=Owner(self._submit, self._forget, self.load, self.served.opened),
        )

    async def __aenter__(self) -> Self:
        self._tasks.start(self._sweep(), name="sweep idle sessions")
        self._compute.start(self._on_ran)
        self._endpoint.on(Open, self._openings.on_open)
        self._endpoint.on(Opened, self._openings.on_opened)
        self._endpoint.on(Refuse, self._openings.on_refuse)
        self._endpoint.on(Failure, self._on_failure)
        self._endpoint.on(Step, self._on_step)
        self._endpoint.on(Credit, self._on_credit)
        self._endpoint.on(Cancel, self._on_cancel)
        self._endpoint.on_lost(self._on_lost)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.drain()
        await self._tasks.close()
        await self._compute.stop()

    def drain(self) -> None:
        """Take no more sessions and end those that run: their clients hear at once and go elsewhere."""
        self._openings.is_draining = True
        for session in list(self.table.sessions.values()):
            self._fail(session, Draining())

    def load(self) -> Load:
        """How busy the node is now."""
        return Load(
            sessions=len(self.table.sessions),
            queued_tokens=sum(session.waiting_tokens for session in self.table.sessions.values()),
            busy=self._busy.share(self._clock.monotonic()),
            kv_tokens_free=self.table.kv_free,
            kv_tokens=self.facts.kv_tokens,
        )

    # -- steps -------------------------------------------------------------------------------------------------------

    def _on_step(self, link: Link, message: Step, body: Body) -> None:
        try:
            session = self.table.find(message.session, link.peer)
        except SessionUnknown as error:
            send_if_open(link, to_failure(error, session=message.session))
            return
        try:
            self._dues.pass_on(session, link, message, body)
        except SessionError as error:
            self._fail(session, error)

    def _take(self, session: Session, link: Link, message: Step, body: Body) -> None:
        """Accept a step that is paid for, or need not be, and have it computed."""
        epoch, now_s = session.epoch, self._clock.monotonic()
        try:
            work = self.table.accept(session, message, body, now_s)
        except SessionError as error:
            self._fail(session, error)
            return
        finally:
            if session.epoch > epoch:
                self._submit(Void(session.id, session.epoch, partial(_forget_waiting, session)))
        if work is None:
            return
        self._dues.charge(session, message)
        if message.sent_ns:
            work.wire_us = max(0, (self._clock.wall_ns() + link.clock_offset_ns - message.sent_ns) // 1000)
        if self._slow_links and any(slow is session.downstream.get("bulk") for slow in self._slow_links):
            self._submit(Hold(session.id))
        if session.matcher is not None and work.draw is not None:
            session.unmasked += 1
            self._submit(Hold(session.id))
            self._tasks.start(self._mask(session, session.matcher, work), name="follow a grammar")
        self._submit(work)

    def _on_credit(self, link: Link, message: Credit, body: Body) -> None:
        """Vouchers without a step: from the hop before, or from the client itself."""
        session = self.table.sessions.get(message.session)
        if session is None or link.peer not in (session.upstream.peer, session.open.client):
            return
        try:
            self._dues.on_credit(session, message)
        except PaymentRefused as error:
            self._fail(session, error)
            return
        if any(message.sealed[session.hop + 1 :]) and (after := session.downstream.get("decode")) is not None:
            send_if_open(after, message)

    async def _mask(self, session: Session, matcher: Matcher, work: Work) -> None:
        """Find out what may stand behind a step, while it and the steps behind it wait."""
        draw = work.draw
        assert draw is not None
        assert draw.history is not None
        answer = draw.history[session.open.sampling.prompt_tokens :]
        try:
            work.draw = dataclasses.replace(draw, masks=await matcher.masks(answer, len(draw.drafts)))
        except GrammarRefused as error:
            if self.table.sessions.get(session.id) is session:
                self._fail(session, error)
            return
        session.unmasked -= 1
        if not session.unmasked:
            self._submit(Release(session.id))

    def _submit(self, command: Command) -> None:
        """Hand commands to the compute driver once for all frames that arrived together: they may share a batch."""
        if not self._commands:
            asyncio.get_running_loop().call_soon(self._flush)
        self._commands.append(command)

    def _flush(self) -> None:
        commands, self._commands = self._commands, []
        self._compute.submit(commands)
        for command in commands:
            if isinstance(command, Work) and command.kind in TOKEN_BY_TOKEN:
                self._expect_output(command)

    def _expect_output(self, work: Work) -> None:
        """Tell the link that the output of a decode step will leave by when it probably will."""
        if (session := self.table.sessions.get(work.session)) is not None:
            (session.reply or session.downstream["decode"]).expect_send(self._decode_s)

    def _on_ran(self, batch: list[Ran]) -> None:
        """Send on what a batch gave, the one place where outputs leave the node, and then note what it took."""
        for ran in batch:
            session = self.table.sessions.get(ran.part.work.session)
            if session is None:
                continue
            session.waiting_tokens -= ran.part.piece.count
            session.touched_s = ran.ended_s
            if ran.part.work.epoch < session.epoch:
                continue
            session.ran_to(ran.part.piece.position + ran.part.piece.count, is_end=ran.part.is_end)
            if isinstance(ran.output, SessionError):
                self._fail(session, ran.output)
                continue
            try:
                if session.is_last:
                    self._send_result(session, ran)
                else:
                    self._send_step(session, ran)
            except LinkLost as lost:
                self._fail(session, HopLost(target=lost.peer, reason=lost.reason))
            except NetError as error:  # more than the receiver takes; nobody else's output may suffer for it
                receiver = session.reply or session.downstream["bulk"]
                self._fail(session, HopLost(target=receiver.peer, reason=str(error)))
        self._busy.add(batch[0].started_s, batch[0].ended_s)
        if all(ran.part.work.kind in TOKEN_BY_TOKEN for ran in batch):
            self._decode_s = batch[0].ended_s - batch[0].started_s
        self.served.tokens += batch[0].batch_tokens

    def _send_step(self, session: Session, ran: Ran) -> None:
        work, piece = ran.part.work, ran.part.piece
        start = piece.position - work.position
        # By kind, not by size: between lanes there is no order, and the last piece of a prompt may be one token.
        link = session.downstream["decode" if work.kind in TOKEN_BY_TOKEN else "bulk"]
        assert ran.output is not None
        assert not isinstance(ran.output, tuple | SessionError)
        link.send(
            Step(
                session=session.id,
                epoch=work.epoch,
                frame=work.frame,
                position=piece.position,
                count=piece.count,
                kind=work.kind,
                sample=work.sample and ran.part.is_end,
                acknowledge=work.acknowledge and ran.part.is_end,
                codec=work.codec,
                token_ids=b"" if work.ids is None else work.ids[start : start + piece.count].tobytes(),
                tip=work.tip,
                candidates=work.candidates,
                sealed=work.sealed if start == 0 else b"",
                trail=(*work.trail, _timing(ran)),
                sent_ns=self._clock.wall_ns() + link.clock_offset_ns,
            ),
            ran.output,
        )
        if link.backlog_bytes > self._limits.hold_above_bytes and not any(slow is link for slow in self._slow_links):
            self._wait_for(link)

    def _wait_for(self, link: Link) -> None:
        """Compute nothing more for a link that is slower than we are, until what was sent has left."""
        self._slow_links.append(link)
        for session in self.table.using(link):
            self._submit(Hold(session.id))
        until_s = self._clock.monotonic() + self._limits.slow_link_timeout_s
        asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look_again, link, until_s)

    def _look_again(self, link: Link, until_s: float) -> None:
        """Go on with what waits for a slow link, or give it up: who takes no frames could hold sessions for ever."""
        if link.is_open and link.backlog_bytes > self._limits.release_below_bytes:
            if self._clock.monotonic() < until_s:
                asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look_again, link, until_s)
                return
            link.close(f"it has not taken what was sent for {self._limits.slow_link_timeout_s:.0f} s")
        self._slow_links = [slow for slow in self._slow_links if slow is not link]
        for session in self.table.using(link):
            self._submit(Release(session.id))

    def _send_result(self, session: Session, ran: Ran) -> None:
        work, link = ran.part.work, session.reply
        drawn = ran.output if isinstance(ran.output, tuple) else ()
        if not drawn and not (work.acknowledge and ran.part.is_end):
            return  # a piece of prefill that asks for nothing
        assert link is not None
        link.send(
            Result(
                session=session.id,
                epoch=work.epoch,
                frame=work.frame,
                position=work.position + work.count - len(work.candidates),
                tokens=tuple(one.token for one in drawn),
                logprobs=tuple(one.logprob for one in drawn if one.logprob is not None),
                top_logprobs=tuple(tuple(TokenLogprob(*pair) for pair in one.top) for one in drawn if one.top),
                accepted=tuple(candidate.id for candidate in work.candidates[: len(drawn) - 1]),
                trail=(*work.trail, _timing(ran)),
                sent_ns=self._clock.wall_ns() + link.clock_offset_ns,
            )
        )

    # -- ending ------------------------------------------------------------------------------------------------------

    def _on_cancel(self, link: Link, message: Cancel, body: Body) -> None:
        with contextlib.suppress(SessionUnknown):
            self._forget(self.table.find(message.session, link.peer), cancel=message.reason)

    def _on_failure(self, link: Link, message: Failure, body: Body) -> None:
        """A later hop failed: pass it on, and end the session here unless it may go on."""
        session = self.table.sessions.get(message.session or b"")
        if session is None or link not in session.downstream.values():
            return
        if message.hop is None:  # from a hop that does not know the session any more
            message = msgspec.structs.replace(message, hop=session.hop + 1, peer=link.peer)
        if message.retry != "here":
            self._forget(session, cancel=None)
        send_if_open(session.upstream, message)

    def _on_lost(self, link: Link, reason: NetError) -> None:
        for session in self.table.using(link):
            why = reason.reason if isinstance(reason, LinkLost) else str(reason)
            self._fail(session, HopLost(target=link.peer, reason=why))

    def _fail(self, session: Session, error: SessionError) -> None:
        """Tell the client, through the hops before, and end the session unless it may go on."""
        failure = to_failure(error.at(session.hop, self._endpoint.peer), session=session.id)
        if error.retry != "here":
            log.info("session failed session=%s reason=%s", session.id.hex()[:8], error)
            self.served.failed += 1
            self._forget(session, cancel=error.code)
        send_if_open(session.upstream, failure)

    def _forget(self, session: Session, *, cancel: str | None) -> bool:
        """End a session here, and with a reason to `cancel` at all later hops; False if it had ended already."""
        if not self.table.remove(session):
            return False
        self._openings.stop(session)
        if cancel is not None and (link := session.downstream.get("decode")) is not None:
            send_if_open(link, Cancel(session=session.id, reason=cancel))
        for link in session.links:
            link.keep_warm(-1)
        if session.matcher is not None:
            session.matcher.close()
        self._submit(Drop(session.id, lambda: self.table.release(session)))
        return True

    async def _sweep(self) -> None:
        """End the sessions that nobody uses any more."""
        timeout_s = self._limits.idle_timeout_s
        while True:
            await asyncio.sleep(min(timeout_s, self._limits.lease_grace_s) / 4)
            now_s = self._clock.monotonic()
            for session in self.table.idle(now_s, timeout_s):
                self._fail(session, SessionUnknown())
            for session in self.table.lapsed(now_s - self._limits.lease_grace_s):
                self._fail(session, PaymentRefused("the lease of its KV is over", "LeaseOver", "lease it for longer"))


@dataclass(slots=True)
class Served:
    """What the node has done since it started."""

    sessions: int = 0
    failed: int = 0
    tokens: int = 0

    def opened(self) -> None:
        """One more session is served."""
        self.sessions += 1


class BusyShare:
    """The share of recent time spent computing, as an exponential average over `horizon_s`."""

    def __init__(self, horizon_s: float = 10.0) -> None:
        self._horizon_s = horizon_s
        self._share = 0.0
        self._until_s: float | None = None

    def add(self, started_s: float, ended_s: float) -> None:
        """Count a batch."""
        idle_share = self.share(started_s)
        kept = math.exp(-(ended_s - started_s) / self._horizon_s)
        self._share = idle_share * kept + (1.0 - kept)
        self._until_s = ended_s

    def share(self, now_s: float) -> float:
        """The share as of now, between 0 and 1."""
        if self._until_s is None:
            return 0.0
        return self._share * math.exp(-max(0.0, now_s - self._until_s) / self._horizon_s)


def _forget_waiting(session: Session, tokens: int) -> None:
    session.waiting_tokens -= tokens


def _timing(ran: Ran) -> HopTiming:
    work = ran.part.work
    return HopTiming(
        wire_us=work.wire_us,
        queue_us=int((ran.started_s - work.arrived_s) * 1e6),
        compute_us=int((ran.ended_s - ran.started_s) * 1e6),
        batch_tokens=ran.batch_tokens,
    )
