"""One session on one route, alive: dials, opens, sends steps, waits for results, cancels.

Owns the links of a session and its deadlines; what is said stands in `session.py`. The next step leaves from within the
handler of the result before it, so that no task has to wake up between a token's arrival and the next step. Nothing
holds a fast route back when the caller reads slowly: what piles up is bounded by the tokens that were asked for.

    open()      dial both ends, send Open, wait for Opened
    prefill(ids)  send what is known: in one step, or piece by piece where hops are paid for each
    feed(ids)   send a step; its answer goes to `on_answer`, which feeds the next one or closes the session
    progress()  wait until an answer came, or raise what ended the session
    close()     tell the hops, give the links back; at once, also after an error

Made by `token_stream.py`, which decides what follows an error.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from swarm_client.deadlines import Patience, opening_deadline_s, result_deadline_s
from swarm_client.dispatch import Dispatcher
from swarm_client.errors import BadResult, first_of
from swarm_client.payment import LEASE_S, PIECES_IN_FLIGHT, SessionPayment
from swarm_client.results import HopReceipt
from swarm_client.session import Answer, Session
from swarm_ledger.errors import LedgerError
from swarm_ledger.metering import Work
from swarm_net.endpoint import Endpoint
from swarm_net.errors import LinkLost, NetError
from swarm_net.links import Clock, Link
from swarm_net.messages import Cancel, Credit, Failure, HopSpec, Open, Opened, Refuse, Result, SamplingSpec
from swarm_net.prefixes import PREFIX_CHUNK_TOKENS
from swarm_net.routing import Route
from swarm_net.session_errors import (
    HopLost,
    HopSilent,
    HopUnreachable,
    PaymentDue,
    PaymentRefused,
    SessionError,
    from_failure,
)

OnAnswer = Callable[[Answer, int], None]  # with the way back in microseconds


class LiveSession:
    """A session from its opening to its end; everything but `open` and `progress` is immediate."""

    def __init__(
        self,
        *,
        session: Session,
        route: Route,
        endpoint: Endpoint,
        dispatcher: Dispatcher,
        clock: Clock,
        patience: Patience,
        on_answer: OnAnswer,
        payment: SessionPayment | None = None,
    ) -> None:
        self.id = session.id
        self.route = route
        self.retry_after_s = 0.0  # what the node that refused asks for
        self._session = session
        self._endpoint = endpoint
        self._dispatcher = dispatcher
        self._clock = clock
        self._patience = patience
        self._on_answer = on_answer
        self._payment = payment
        self._asked_again: set[tuple[int | None, str]] = set()  # which hop, when it had earned how much
        self._paying: set[asyncio.Task[None]] = set()
        self._prompt: Sequence[int] = ()  # what is left of it to send
        self.receipts: tuple[HopReceipt, ...] = ()  # once it is closed
        self.overrated: tuple[str, ...] = ()  # peers, once it is closed
        self._loop = asyncio.get_running_loop()
        self._first: Link | None = None
        self._last: Link | None = None
        self._opened = False
        self._prefix_tokens = 0
        self.cached_tokens = 0  # of the prompt, that every hop has
        self._was_sent = False  # from then on hops may hold something for us
        self._closed = False
        self._error: SessionError | BadResult | LedgerError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._due_s: float | None = None  # when the answer that is waited for is late
        self._waited_from_s = 0.0
        self._last_deadline_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # -- opening

    async def open(
        self, *, max_tokens: int, sampling: SamplingSpec, codec: str, numeric_class: str, prefix: tuple[bytes, ...]
    ) -> None:
        """Return when every hop is ready; `cached_tokens` is then where to begin. Raises SessionError."""
        self._dispatcher.add(self)
        await self._dial_ends()
        assert self._first is not None
        deadline_s = opening_deadline_s(len(self.route.hops), self._patience)
        hops = tuple(
            HopSpec(
                peer=hop.peer,
                start=hop.start,
                end=hop.end,
                addresses=hop.record.addresses,
                dtype=hop.record.dtype,
                sealed=self._payment.opening(place) if self._payment is not None else b"",
            )
            for place, hop in enumerate(self.route.hops)
        )
        opening = Open(
            session=self.id,
            client=self._endpoint.peer,
            model=self.route.model,
            hops=hops,
            max_tokens=max_tokens,
            sampling=sampling,
            wanted=("tokens", "logprobs") if sampling.logprobs else ("tokens",),
            codec=codec,
            numeric_class=numeric_class,
            prefix=prefix,
            must=sampling.critical,
            deadline_ms=int(deadline_s * 1000),
            lease_s=LEASE_S if self._payment is not None else 0,
        )
        self._prefix_tokens = len(prefix) * PREFIX_CHUNK_TOKENS
        self._was_sent = True
        try:
            self._first.send(opening)
        except NetError as error:
            raise _not_sent(self._first, error) from error
        # A hop that gives up at its own deadline still has to tell us.
        self._expect_within(deadline_s + self._patience.dial_timeout_s)
        while not self._opened:
            await self.progress()

    async def _dial_ends(self) -> None:
        """Dial both ends at once: the last hop answers on the link that we dialed to it."""
        hops = self.route.hops
        try:
            async with asyncio.TaskGroup() as tasks:
                first = tasks.create_task(self._dial(0))
                last = tasks.create_task(self._dial(len(hops) - 1)) if len(hops) > 1 else first
        except* SessionError as errors:
            raise first_of(errors) from None
        self._first, self._last = first.result(), last.result()
        self._first.keep_warm(1)
        self._last.keep_warm(1)

    async def _dial(self, place: int) -> Link:
        hop = self.route.hops[place]
        try:
            return await self._endpoint.link(
                hop.peer, hop.record.addresses, lane="decode", timeout_s=self._patience.dial_timeout_s
            )
        except NetError as error:
            unreachable = HopUnreachable(target=hop.peer, reason=str(error))
            raise unreachable.at(place, hop.peer) from error

    # -- steps

    def prefill(self, token_ids: Sequence[int]) -> None:
        """Send what is known so far; an error comes out of `progress`."""
        self._prompt = token_ids
        for _ in range(PIECES_IN_FLIGHT):
            self._send_piece()

    def _send_piece(self) -> None:
        """Send the next piece of the prompt, if there is one."""
        tokens = len(self._prompt)
        if not tokens:
            return
        kind: Work = "prefill"
        if self._payment is not None:
            kind, tokens = self._payment.prefill, self._payment.piece(self._session.tail, tokens)
        piece, self._prompt = self._prompt[:tokens], self._prompt[tokens:]
        self._send(piece, (), kind, draw=not self._prompt)

    def feed(self, token_ids: Sequence[int], drafts: Sequence[int] = ()) -> None:
        """Send a step for this token, and guesses behind it; an error comes out of `progress`."""
        self._send(token_ids, drafts, "decode", draw=True)

    def _send(self, token_ids: Sequence[int], drafts: Sequence[int], kind: Work, *, draw: bool) -> None:
        if self._closed or self._error is not None:
            return  # somebody thought about guesses for so long
        link = self._first
        assert link is not None
        sealed, draws = b"", 1 + len(drafts) if draw else 0
        if self._payment is not None:
            try:
                work: Work = "verify" if drafts else kind
                sealed = self._payment.send(work, self._session.tail, len(token_ids) + len(drafts), draws)
            except LedgerError as error:
                self._fail(error)
                return
        sent_ns = self._clock.wall_ns() + link.clock_offset_ns
        waited_from_s = self._waited_from_s
        self._last_deadline_s = result_deadline_s(self.route.hops, len(token_ids) + len(drafts), self._patience)
        self._expect_within(self._last_deadline_s)
        try:
            link.send(*self._session.step(token_ids, sent_ns, drafts, kind=kind, draw=draw, sealed=sealed))
        except NetError as error:
            self._fail(_not_sent(link, error))
        if kind == "decode":
            link.expect_send(self._waited_from_s - waited_from_s)  # as long as the last token took

    async def progress(self) -> None:
        """Return after the next message that moves the session. Raises SessionError, BadResult."""
        if self._error is None:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._error is not None:
            raise self._error

    def close(self, reason: str) -> None:
        """End the session at every hop; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._dispatcher.remove(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._first is not None and self._was_sent:
            with contextlib.suppress(NetError, LedgerError):
                if self._payment is not None and (credit := self._payment.credit(self.id)) is not None:
                    self._first.send(credit)
            with contextlib.suppress(NetError):
                self._first.send(Cancel(session=self.id, reason=reason))
        for link in (self._first, self._last):
            if link is not None:
                link.keep_warm(-1)
        for paying in self._paying:
            paying.cancel()
        if self._payment is not None:
            self.receipts, self.overrated = self._payment.close(), self._payment.overrated

    # -- called by the dispatcher

    def on_opened(self, link: Link, message: Opened) -> None:
        if link is self._first and not self._opened:
            self._opened = True
            self._due_s = None
            # The least of what the hops have; a hop that exaggerates will miss what comes before the first step.
            cached = min((grant.cached_tokens for grant in message.grants), default=0)
            self.cached_tokens = min(cached, self._prefix_tokens) if len(message.grants) == len(self.route.hops) else 0
            self._session.start_at(self.cached_tokens)
            if self._payment is not None:
                try:
                    self._payment.granted(message.grants, self.cached_tokens)
                except (BadResult, LedgerError) as error:
                    self._fail(error)
            self._wake()

    def on_refuse(self, link: Link, message: Refuse) -> None:
        if link is self._first:
            self.retry_after_s = message.retry_after_ms / 1000
            self._fail(from_failure(message.failure).at(0, link.peer))

    def on_failure(self, link: Link, message: Failure) -> None:
        if link is not self._first:
            return
        error = from_failure(message).at(0, link.peer)
        if isinstance(error, PaymentDue) and self._payment is not None and not self._closed:
            self._pay_again(error)
        else:
            self._fail(error)

    def _pay_again(self, due: PaymentDue) -> None:
        """A voucher did not arrive: send it straight to the hop that asks, past whoever has kept it."""
        assert self._payment is not None
        asked = (due.hop, due.earned)
        if due.hop is None or not 0 <= due.hop < len(self.route.hops) or asked in self._asked_again:
            self._fail(PaymentRefused(due.text(), "Unpaid", due.remedy()).at(due.hop or 0, due.peer))
            return
        self._asked_again.add(asked)
        try:
            credit = self._payment.answer(self.id, due.hop, due.needed)
        except LedgerError as error:
            self._fail(error)
            return
        if credit is not None:
            task = self._loop.create_task(self._send_to(due.hop, credit))
            self._paying.add(task)
            task.add_done_callback(self._paying.discard)

    async def _send_to(self, place: int, credit: Credit) -> None:
        try:
            (await self._dial(place)).send(credit)
        except (SessionError, NetError):
            self._fail(PaymentRefused("a voucher could not be brought to the hop", "Unreachable", "try another route"))

    def on_lost(self, link: Link, reason: NetError) -> None:
        if link is self._first or link is self._last:
            self._fail(HopLost(target=link.peer, reason=str(reason)))

    def on_result(self, link: Link, message: Result) -> None:
        # Another link to the same peer will do; anybody else could only have guessed the session's id.
        if self._last is None or link.peer != self._last.peer or self._error is not None:
            return
        try:
            answer = self._session.accept(message)
        except BadResult as error:
            self._fail(error)
            return
        if answer is None:
            return
        if self._payment is not None:
            self._payment.answered()
        if not answer.drawn:
            self._expect_within(self._last_deadline_s)
            self._send_piece()
            return
        offset_ns = link.clock_offset_ns
        # The clocks' offset is known to a fraction of a round trip: a short way may seem to take less than nothing.
        way_ns = self._clock.wall_ns() + offset_ns - answer.sent_ns if answer.sent_ns else 0
        return_wire_us = max(0, way_ns // 1000)
        self._due_s = None  # until the next step
        self._on_answer(answer, return_wire_us)
        self._wake()

    # -- deadlines

    def _expect_within(self, deadline_s: float) -> None:
        """Set when the next answer is late; one timer serves many steps, and looks at the clock when it fires."""
        now_s = self._loop.time()
        self._waited_from_s = now_s
        self._due_s = now_s + deadline_s
        if self._timer is not None and self._timer.when() <= self._due_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._due_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._due_s is None or self._error is not None:
            return
        now_s = self._loop.time()
        if now_s >= self._due_s:
            self._fail(HopSilent(waited_ms=round((now_s - self._waited_from_s) * 1000)))
        else:
            self._timer = self._loop.call_at(self._due_s, self._look)

    def _fail(self, error: SessionError | BadResult | LedgerError) -> None:
        if self._error is None:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _not_sent(link: Link, error: NetError) -> HopLost:
    """Say that a link is gone, or that its other end takes no frame of this size: as good as gone."""
    return HopLost(target=link.peer, reason=error.reason if isinstance(error, LinkLost) else str(error))
