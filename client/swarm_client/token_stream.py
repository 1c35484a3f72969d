"""One generation from its first route to its last token, over as many routes as that takes.

Owns the loop: choose a route, open a session, feed what is known, hand out tokens, and after a failure do what
`failover.py` says. Its only durable state is the token ids: a new route computes them anew and, since tokens are drawn
by seed and position, continues as the old one would have. Made by `model.py`.

It runs in its consumer's own task. A consumer that is cancelled, closes the stream or drops it ends the session.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self

import msgspec

from swarm_client.codec_choice import Codec, choose_codec
from swarm_client.connection import Connection, Needs
from swarm_client.continuation import Continuation
from swarm_client.drafting import Drafting
from swarm_client.errors import BadResult, ModelClosed, code
from swarm_client.failover import MAX_ATTEMPTS, MAX_RETRY_WAIT_S, judge, wait_before_retry_s
from swarm_client.live_session import LiveSession
from swarm_client.parameters import Parameters
from swarm_client.payment import SessionPayment
from swarm_client.results import Generation, HopReceipt, Receipt, Retry, RouteHop, Token, Usage
from swarm_client.session import Answer, Session
from swarm_client.timings import StepTimes
from swarm_client.wallet import RequestBudget
from swarm_net.errors import NetError, NoRoute
from swarm_net.prefixes import PREFIX_CHUNK_TOKENS, prefix_digests
from swarm_net.routing import Route
from swarm_net.session_errors import Draining, HopLost, HopUnreachable, SessionError

log = logging.getLogger(__name__)

OVERRATED_AVOID_S = 300.0


class TokenStream:
    """Tokens of one generation as they come: an async iterator, and a context manager that ends it.

    `generation` is the whole once the last token was taken; None before.
    """

    def __init__(
        self, connection: Connection, continuation: Continuation, parameters: Parameters, drafting: Drafting | None
    ) -> None:
        # The run does not know the stream: a stream that nobody holds any more is collected, and its session ends.
        self._run = _Run(connection, continuation, parameters, drafting)
        self._tokens = self._run.tokens()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Token:
        return await anext(self._tokens)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def share_prompt(self, other: "TokenStream") -> None:
        """Open where the other one of the same prompt did, once it has been computed there: hops keep it."""
        self._run.other = other._run

    async def aclose(self) -> None:
        """End the session, if it has not ended; returns at once."""
        await self._tokens.aclose()

    @property
    def generation(self) -> Generation | None:
        return self._run.generation


class _Run:
    """What a generation knows while it goes on."""

    def __init__(
        self, connection: Connection, continuation: Continuation, parameters: Parameters, drafting: Drafting | None
    ) -> None:
        self.generation: Generation | None = None
        self.other: _Run | None = None  # with the same prompt
        self.route: Route | None = None
        self.has_begun = asyncio.Event()  # the prompt has been computed, or never will be
        self._drafting = drafting
        self._connection = connection
        self._continuation = continuation
        self._parameters = parameters
        limit = connection.manifest.max_position or continuation.prompt_tokens + parameters.max_new_tokens
        self._needs = Needs(
            max_tokens=min(limit, continuation.prompt_tokens + parameters.max_new_tokens),
            codec=parameters.codec,
            grammar=bool(parameters.sampling.grammar),
            max_price=parameters.max_price,
            pays=connection.wallet is not None,
        )
        self._sampling = parameters.sampling
        if self._sampling.counts_answer:
            self._sampling = msgspec.structs.replace(self._sampling, prompt_tokens=continuation.prompt_tokens)
        self._retries: list[Retry] = []
        self._receipts: list[HopReceipt] = []
        self._budget = RequestBudget(parameters.budget)
        self._times = StepTimes(connection.clock.monotonic())
        self._session: LiveSession | None = None
        self._is_prefill = True
        self._codec: Codec = "raw"
        self._cached_tokens = 0

    async def tokens(self) -> AsyncGenerator[Token, None]:
        """Yield the tokens; once."""
        drafting = self._drafting
        try:
            if drafting is not None:
                await drafting.prepare()
            self._times = StepTimes(self._connection.clock.monotonic())
            shown, failures = 0, 0
            route = await self._first_route()
            while True:
                self.route = route
                session = self._session = self._new_session(route, *await self._payment(route))
                before = len(self._continuation.tokens)
                failure: SessionError | BadResult | None = None
                try:
                    await self._open(session)
                    while True:
                        while shown < len(self._continuation.tokens):
                            shown += 1
                            yield self._continuation.tokens[shown - 1]
                        if self._continuation.finish_reason is not None:
                            return
                        await session.progress()
                except (SessionError, BadResult) as error:
                    failure = error
                finally:
                    session.close("failed" if failure else "cancelled")
                    self._avoid_overrated(session)
                    if failure is not None:
                        self._receipts += session.receipts
                assert failure is not None
                failures = 1 if len(self._continuation.tokens) > before else failures + 1
                route = await self._another_route(failure, route, failures, session.retry_after_s)
        finally:
            self.has_begun.set()
            if drafting is not None:
                drafting.close()

    def _avoid_overrated(self, session: LiveSession) -> None:
        """Go on with a hop whose rating cannot be true, at the price that was agreed, but begin nothing new with it."""
        if session.overrated:
            log.warning("more time charged than there was peers=%s", ",".join(session.overrated))
            self._connection.avoided.add(session.overrated, self._connection.clock.monotonic(), OVERRATED_AVOID_S)

    async def _first_route(self) -> Route:
        if self.other is not None and self._continuation.prompt_tokens > PREFIX_CHUNK_TOKENS:
            await self.other.has_begun.wait()
            if self.other.route is not None:
                return self.other.route
        return await self._connection.choose_first(self._needs)

    # -- one session

    async def _payment(self, route: Route) -> tuple[bytes, SessionPayment | None]:
        """Return a new session's id, and how it is paid. Raises LedgerError."""
        connection = self._connection
        name = connection.entropy(16)
        if connection.wallet is None:
            return name, None
        payment = await connection.wallet.pay(
            route,
            session=name,
            prompt_tokens=len(self._continuation.known_ids),
            new_tokens=self._continuation.room,
            max_tokens=self._needs.max_tokens,
            logprobs=self._parameters.sampling.logprobs,
            budget=self._budget,
            is_replay=bool(self._retries),
        )
        return name, payment

    def _new_session(self, route: Route, name: bytes, payment: SessionPayment | None) -> LiveSession:
        connection, sampling = self._connection, self._parameters.sampling
        return LiveSession(
            session=Session(
                session=name,
                hops=len(route.hops),
                last_peer=route.hops[-1].peer,
                vocabulary=connection.manifest.vocab_size,
                logprobs=sampling.logprobs,
                top_logprobs=sampling.top_logprobs,
            ),
            route=route,
            endpoint=connection.endpoint,
            dispatcher=connection.dispatcher,
            clock=connection.clock,
            patience=connection.patience,
            on_answer=self._on_answer,
            payment=payment,
        )

    async def _open(self, session: LiveSession) -> None:
        classes, known = session.route.numeric_classes, self._continuation.known_ids
        connection = self._connection
        self._codec = choose_codec(
            self._parameters.codec,
            session.route,
            hidden_size=connection.manifest.hidden_size,
            prompt_tokens=len(known),
        )
        # Where the last hop counts the answer, it has to be told all of it.
        named = known[: self._continuation.prompt_tokens] if self._sampling.counts_answer else known
        await session.open(
            max_tokens=self._needs.max_tokens,
            sampling=self._sampling,
            codec=self._codec,
            numeric_class=next(iter(classes)) if len(classes) == 1 else "",
            prefix=prefix_digests(named, revision=connection.model.revision, salt=connection.cache_salt),
        )
        if not self._retries:
            self._cached_tokens = session.cached_tokens
        self._is_prefill = True
        self._times.start_route()
        if self._drafting is not None:
            self._drafting.start_route()
        session.prefill(known[session.cached_tokens :])

    def _on_answer(self, answer: Answer, return_wire_us: int) -> None:
        """Take the next tokens, from within their arrival, and go on or end."""
        session, continuation = self._session, self._continuation
        assert session is not None
        before = len(continuation.tokens)
        self.has_begun.set()
        for drawn in answer.drawn:
            continuation.push(drawn.token, drawn.logprob, drawn.top_logprobs)
            if continuation.finish_reason is not None:
                break
        now_s, tokens = self._connection.clock.monotonic(), len(continuation.tokens) - before
        took_s = self._times.add(now_s, answer.trail, return_wire_us, is_prefill=self._is_prefill, tokens=tokens)
        if self._drafting is not None and not self._is_prefill:
            self._drafting.learn([drawn.token for drawn in answer.drawn], len(answer.drawn) - 1, took_s)
        self._is_prefill = False
        if continuation.finish_reason is not None:
            session.close("done")
            self._receipts += session.receipts
            self.generation = self._finished(session.route)
        elif self._drafting is None or not _can_rewind(session.route):
            session.feed(continuation.known_ids[-1:])
        else:
            last = continuation.known_ids[-1:]
            self._drafting.guess(
                continuation.known_ids, continuation.room - 1, lambda drafts: session.feed(last, drafts)
            )

    # -- the next route

    async def _another_route(
        self, error: SessionError | BadResult, route: Route, failures: int, retry_after_s: float
    ) -> Route:
        """Return the route to go on with; raises the error if there is none, or none that could help."""
        connection = self._connection
        if connection.is_closed:
            raise ModelClosed from error
        verdict = judge(error, route.peers)
        if not verdict.retry:
            raise error
        connection.avoided.add(verdict.blamed, connection.clock.monotonic(), verdict.avoid_s)
        done = len(self._continuation.tokens)
        self._retries.append(Retry(tuple(route.peers), done, code(error), str(error)))
        log.warning("route given up session=%s tokens=%d reason=%s", self._session_name(), done, error)

        avoided = connection.avoided.at(connection.clock.monotonic())
        if failures >= MAX_ATTEMPTS:
            raise self._explained(error, avoided)
        if found := self._choose(avoided.union(verdict.suspected), route):
            return found
        # Not all of them can be replaced at once; perhaps the one that failed can.
        for suspect in connection.rng.sample(verdict.suspected, len(verdict.suspected)):
            if found := self._choose(avoided | {suspect}, route):
                return found
        if not verdict.may_return and not retry_after_s:
            raise self._explained(error, avoided)
        await asyncio.sleep(max(wait_before_retry_s(failures), min(retry_after_s, MAX_RETRY_WAIT_S)))
        await self._refresh()
        avoided = connection.avoided.at(connection.clock.monotonic())
        if found := self._choose(avoided, route) or self._choose(frozenset(), route):
            return found
        raise self._explained(error, avoided)

    def _explained(self, error: SessionError | BadResult, avoided: frozenset[str]) -> Exception:
        """Return what a caller has to know: which blocks nobody serves any more, where a peer went; else the error."""
        if isinstance(error, HopLost | HopUnreachable | Draining):
            try:
                self._connection.choose(self._needs, exclude=avoided, prefer_numeric_class=None)
            except NoRoute as nowhere:
                nowhere.__cause__ = error
                return nowhere
        return error

    def _choose(self, exclude: frozenset[str], before: Route) -> Route | None:
        classes = before.numeric_classes
        try:
            return self._connection.choose(
                self._needs,
                exclude=exclude,
                prefer_numeric_class=next(iter(classes)) if len(classes) == 1 else None,
            )
        except NoRoute:
            return None

    async def _refresh(self) -> None:
        try:
            await self._connection.snapshot.refresh()
        except NetError as error:
            log.warning("snapshot not refreshed reason=%s", error)

    def _session_name(self) -> str:
        return self._session.id.hex()[:8] if self._session is not None else ""

    # -- the end

    def _finished(self, route: Route) -> Generation:
        continuation, sampling = self._continuation, self._parameters.sampling
        tokens = continuation.tokens
        assert continuation.finish_reason is not None
        return Generation(
            text=continuation.text,
            token_ids=[token.id for token in tokens],
            finish_reason=continuation.finish_reason,
            usage=Usage(continuation.prompt_tokens, len(tokens), self._cached_tokens),
            seed=self._parameters.seed,
            model=self._connection.model.name,
            revision=self._connection.model.revision,
            codec=self._codec,
            route=tuple(RouteHop(hop.peer, hop.start, hop.end) for hop in route.hops),
            retries=tuple(self._retries),
            timings=self._times.summary(route.peers),
            logprobs=[token.logprob or 0.0 for token in tokens] if sampling.logprobs else None,
            top_logprobs=[token.top_logprobs for token in tokens] if sampling.top_logprobs else None,
            drafts=self._drafting.counts if self._drafting is not None else None,
            receipt=Receipt(tuple(self._receipts)),
        )


def _can_rewind(route: Route) -> bool:
    """Whether every hop can forget a guess that was wrong."""
    return all(hop.record.rewind != "none" for hop in route.hops)
