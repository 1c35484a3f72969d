"""What a session has to pay before its next step is computed, and what happens while it has not.

Owns the way of a voucher from a message to the cashier, and the steps that wait for one: the client is asked, straight
and through the hops before (one of which may have kept the voucher), and after a while the session ends. Where work is
free (`cashier` None) it only strips from each message what was for this hop. Called by `node.py`.
"""

import asyncio
from collections.abc import Callable

import msgspec

from swarm_ledger.errors import BadSection
from swarm_ledger.sections import first_of
from swarm_net.links import Body, Link, PeerId
from swarm_net.messages import Credit, Message, Step
from swarm_net.session_errors import BadStep, PaymentDue, PaymentRefused, SessionError, to_failure
from swarm_net.tasks import TaskScope
from swarm_node.cashier import Cashier
from swarm_node.sessions import LEAST_STEP_BYTES, Session, SessionTable


class Dues:
    """The payments of one node's sessions."""

    def __init__(
        self,
        cashier: Cashier | None,
        *,
        own: PeerId,
        tasks: TaskScope,
        timeout_s: float,
        take: Callable[[Session, Link, Step, Body], None],
        fail: Callable[[Session, SessionError], None],
        table: SessionTable,
        send: Callable[[Link, Message], None],
    ) -> None:
        self._cashier = cashier
        self._own = own
        self._tasks = tasks
        self._timeout_s = timeout_s
        self._take = take
        self._fail = fail
        self._table = table
        self._send = send

    async def admit(self, session: Session) -> None:
        """Find out, while later hops are reached, who pays for a session. Raises PaymentRefused."""
        if self._cashier is not None:
            session.paid = await self._cashier.admit(session.open)

    def grant(self, session: Session) -> tuple[int, bytes]:
        """Return for how long KV is leased, and what the client is told, sealed."""
        if self._cashier is None or session.paid is None:
            return 0, b""
        return session.paid.lease_s, self._cashier.grant(session.paid)

    def pass_on(self, session: Session, link: Link, step: Step, body: Body) -> None:
        """Take a step if it is paid for, or need not be; else it waits. Raises PaymentRefused, BadStep."""
        own = b""
        if step.sealed:
            try:
                own, rest = first_of(step.sealed)
            except BadSection as error:
                raise BadStep(reason=str(error)) from error
            step = msgspec.structs.replace(step, sealed=rest)
        cashier, paid = self._cashier, session.paid
        if cashier is None or paid is None:
            self._take(session, link, step, body)
            return
        if own:
            cashier.collect(paid, own)
            self._retry(session, cashier)
        if not paid.has_begun:
            cashier.begin(paid, step.position)
        if not session.unpaid:
            try:
                cashier.check(paid, step)
            except PaymentDue as due:
                self._tasks.start(self._wait(session, cashier, due), name="wait for a payment")
            else:
                self._take(session, link, step, body)
                return
        if self._is_open(session):
            self._hold(session, step, bytes(body))

    def charge(self, session: Session, step: Step) -> None:
        """Count a step that was accepted."""
        if self._cashier is not None and session.paid is not None:
            self._cashier.charge(session.paid, step)

    def on_credit(self, session: Session, message: Credit) -> None:
        """Take a voucher that came without a step. Raises PaymentRefused."""
        if self._cashier is None or session.paid is None or session.hop >= len(message.sealed):
            return
        if sealed := message.sealed[session.hop]:
            self._cashier.collect(session.paid, sealed)
            self._retry(session, self._cashier)

    def _is_open(self, session: Session) -> bool:
        return self._table.sessions.get(session.id) is session

    def _hold(self, session: Session, step: Step, body: bytes) -> None:
        """Keep a step until it is paid for. Raises PaymentRefused where too much waits already."""
        session.unpaid_bytes += max(len(body), LEAST_STEP_BYTES)
        if session.unpaid_bytes > self._table.most_unpaid_bytes(session):
            raise PaymentRefused("more waits for its payment than the session was opened for", "Unpaid", "pay first")
        session.unpaid.append((step, body))

    async def _wait(self, session: Session, cashier: Cashier, due: PaymentDue) -> None:
        """See whether a channel holds more by now, ask the client, and end the session if nothing comes."""
        assert session.paid is not None
        first = session.unpaid[0] if session.unpaid else None
        await cashier.look_again(session.paid)
        self._retry(session, cashier)
        if not self._still_waits(session, first):
            return
        failure = to_failure(due.at(session.hop, self._own), session=session.id)
        for link in {id(link): link for link in (session.upstream, session.reply) if link is not None}.values():
            self._send(link, failure)
        await asyncio.sleep(self._timeout_s)
        if self._still_waits(session, first):  # and not another one that began to wait meanwhile
            self._fail(session, PaymentRefused(due.text(), "Unpaid", due.remedy()))

    def _still_waits(self, session: Session, first: tuple[Step, bytes] | None) -> bool:
        return bool(session.unpaid) and session.unpaid[0] is first and self._is_open(session)

    def _retry(self, session: Session, cashier: Cashier) -> None:
        """Take the steps that are paid for by now, in their order."""
        assert session.paid is not None
        while session.unpaid and self._is_open(session):
            step, body = session.unpaid[0]
            try:
                cashier.check(session.paid, step)
            except PaymentDue:
                return
            session.unpaid.popleft()
            session.unpaid_bytes -= max(len(body), LEAST_STEP_BYTES)
            self._take(session, session.upstream, step, body)
