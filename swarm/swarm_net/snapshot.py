"""What a client knows of a model's nodes: records from several nodes, checked, merged and kept fresh.

Owns the view from which routes are chosen, the model's manifest, and the way to its files. Needs no DHT: any node
answers a lookup, and because records are signed it may hide some but not invent any, so several are asked. What fails
to answer is kept out for a while. Used by the client; the choice of a route is `routing.py`.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from swarm_net.addresses import parse_address
from swarm_net.endpoint import Endpoint
from swarm_net.errors import (
    BadAddress,
    BadManifest,
    BadRecord,
    NetError,
    PeerUnreachable,
)
from swarm_net.links import Body, Clock, Link, PeerId
from swarm_net.manifest import Manifest, open_manifest, verify_file
from swarm_net.messages import Fetch, Lane, Lookup, ModelId, Models, ModelSummary, SignedRecord
from swarm_net.model_choice import Choice, candidates, choose
from swarm_net.records import Record, open_record
from swarm_net.routing import Randomness
from swarm_net.session_errors import SessionError
from swarm_net.tasks import TaskScope

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

MAX_KEPT_RECORDS = 4096
ASKED_AT_ONCE = 3  # nodes, in each refresh
LIAR_EXCLUDED_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotTimes:
    """How long is waited for whom."""

    dial_s: float = 5.0
    request_s: float = 5.0
    fetch_s: float = 60.0
    stragglers_s: float = 0.3  # what the others have once one has answered
    refresh_s: float = 10.0  # give or take 30 %
    exclude_s: float = 15.0  # a node that did not answer


@dataclass(frozen=True, slots=True)
class _Kept:
    record: Record
    signature: bytes


@dataclass(frozen=True, slots=True)
class _Source:
    """A node that can be asked."""

    peer: PeerId
    addresses: tuple[str, ...]


class Snapshot:
    """The nodes of one model, as seen by a client.

    `model` is a name, `name@revision` or a revision, which may be cut short. Call `connect` first and `close` last.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        clock: Clock,
        bootstrap: Sequence[str],
        model: str,
        rng: Randomness,
        times: SnapshotTimes | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._bootstrap = tuple(dict.fromkeys(bootstrap))
        self._wanted = model
        self._rng = rng
        self._times = times or SnapshotTimes()
        self._model: ModelId | None = None
        self._manifest: Manifest | None = None
        self._kept: dict[bytes, _Kept] = {}  # by the key of the node
        self._excluded_until_s: dict[PeerId, float] = {}
        self._tasks = TaskScope()
        self.unreachable: dict[str, NetError] = {}  # bootstrap addresses that did not work, and why

    async def connect(self) -> None:
        """Find the model and its nodes, and keep them fresh from now on.

        Raises PeerUnreachable if no bootstrap address works (where there is only one, what is wrong with it),
        NoSuchModel, AmbiguousModel, BadManifest.
        """
        links = await self._dial_bootstrap()
        choice = await self._choose(candidates(self._wanted, await self._ask_all(links, self._ask_models)), links)
        model = self._model = choice.model
        if choice.others:
            _log.warning("%s", choice.notice())
        for records in await self._ask_all(links, lambda link: self._ask_records(link, model.revision)):
            self._merge(records)
        data = await self._fetch("", lambda data: open_manifest(bytes(data), model.revision))
        self._manifest = open_manifest(data, model.revision)
        self._kept = {key: kept for key, kept in self._kept.items() if self._fits(kept.record)}
        self._tasks.start(self._keep_fresh(), name=f"snapshot {model}")

    async def close(self) -> None:
        """Stop refreshing; the endpoint belongs to its owner."""
        await self._tasks.close()

    @property
    def model(self) -> ModelId:
        """The model that was found; known once `connect` has returned."""
        assert self._model is not None
        return self._model

    @property
    def manifest(self) -> Manifest:
        """The model's manifest, checked; known once `connect` has returned."""
        assert self._manifest is not None
        return self._manifest

    def records(self) -> list[Record]:
        """Return the records that count now, without those of excluded nodes."""
        now_ns, now_s = self._clock.wall_ns(), self._clock.monotonic()
        self._kept = {key: kept for key, kept in self._kept.items() if kept.record.expires_ns > now_ns}
        self._excluded_until_s = {peer: end_s for peer, end_s in self._excluded_until_s.items() if end_s > now_s}
        return [kept.record for kept in self._kept.values() if kept.record.peer not in self._excluded_until_s]

    def rtt_s(self) -> dict[PeerId, float]:
        """Return the measured round trips to nodes that we have dialed."""
        links = [self._endpoint.get(PeerId(kept.record.peer)) for kept in self._kept.values()]
        return {link.peer: link.rtt_s for link in links if link is not None and link.dialed}

    def exclude(self, peer: PeerId, seconds: float) -> None:
        """Keep a node out of `records` for a while."""
        end_s = self._clock.monotonic() + seconds
        self._excluded_until_s[peer] = max(end_s, self._excluded_until_s.get(peer, end_s))

    async def refresh(self) -> None:
        """Ask some nodes now, for one who cannot wait for the next round; never raises for nodes that are gone."""
        answers = await self._gather([self._refresh_from(source) for source in self._to_ask()])
        for records in answers.values():
            if not isinstance(records, NetError):
                self._merge(records)

    async def fetch_file(self, name: str) -> bytes:
        """Return one of the files that the manifest lists, checked. Raises BadManifest if no node gives it."""
        if name not in self.manifest.files:
            raise BadManifest(model=str(self.model), reason=f"it has no file {name!a}")
        return await self._fetch(name, lambda data: verify_file(self.manifest, name, data))

    # -- asking

    async def _dial_bootstrap(self) -> list[Link]:
        outcomes = await self._gather([self._endpoint.dial(address, self._times.dial_s) for address in self._bootstrap])
        links = []
        for place, outcome in outcomes.items():
            if isinstance(outcome, NetError):
                self.unreachable[self._bootstrap[place]] = outcome
                _log.info("bootstrap address does not work address=%s reason=%s", self._bootstrap[place], outcome)
            else:
                links.append(outcome)
        if not links and len(outcomes) == 1:
            raise next(iter(self.unreachable.values()))
        if not links:
            reasons = "; ".join(str(error) for error in self.unreachable.values())
            raise PeerUnreachable(peer="", addresses=self._bootstrap, reason=reasons or "no bootstrap address is given")
        return links

    async def _ask_models(self, link: Link) -> tuple[ModelSummary, ...]:
        reply, _ = await self._endpoint.request(link, Models(request=0), timeout_s=self._times.request_s)
        return reply.models

    async def _choose(self, models: list[ModelId], links: list[Link]) -> Choice:
        """Return which of several models is meant, for which the records of each are looked up."""
        if len(models) == 1:
            return Choice(models[0])
        found = await asyncio.gather(*(self._records_of(model.revision, links) for model in models))
        return choose(dict(zip(models, found, strict=True)))

    async def _records_of(self, revision: str, links: list[Link]) -> list[Record]:
        """Return the records of a revision that count; none, if nobody answers."""
        now_ns, records = self._clock.wall_ns(), []
        answers = await self._gather([self._ask_records(link, revision) for link in links])
        told = {signed for answer in answers.values() if not isinstance(answer, NetError) for signed in answer}
        for signed in told:
            with suppress(BadRecord):
                records.append(open_record(signed, now_ns))
        return records

    async def _ask_records(self, link: Link, revision: str) -> tuple[SignedRecord, ...]:
        question = Lookup(request=0, revision=revision)
        reply, _ = await self._endpoint.request(link, question, timeout_s=self._times.request_s)
        return reply.records

    async def _refresh_from(self, source: _Source) -> tuple[SignedRecord, ...]:
        try:
            link = await self._endpoint.link(source.peer, source.addresses, timeout_s=self._times.dial_s)
            return await self._ask_records(link, self.model.revision)
        except SessionError:
            raise  # it answers, though not this: no reason to keep sessions away from it
        except NetError:
            self.exclude(source.peer, self._times.exclude_s)
            raise

    async def _ask_all(self, links: list[Link], question: Callable[[Link], Coroutine[Any, Any, _T]]) -> list[_T]:
        """Return the answers of those who answer in time; raises the error of one if nobody does."""
        outcomes = await self._gather([question(link) for link in links])
        answers = [outcome for outcome in outcomes.values() if not isinstance(outcome, NetError)]
        if not answers:
            raise next(outcome for outcome in outcomes.values() if isinstance(outcome, NetError))
        return answers

    async def _gather(self, questions: Sequence[Coroutine[Any, Any, _T]]) -> dict[int, _T | NetError]:
        """Return outcomes by the place of their questions: all, or those that come soon after the first good one."""
        scope = TaskScope()
        tasks = [scope.start(_outcome(question), name="ask") for question in questions]
        try:
            waiting = set(tasks)
            while waiting and not any(task.done() and not isinstance(task.result(), NetError) for task in tasks):
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if waiting:
                await asyncio.wait(waiting, timeout=self._times.stragglers_s)
            return {place: task.result() for place, task in enumerate(tasks) if task.done()}
        finally:
            await scope.close()

    async def _fetch(self, name: str, check: Callable[[Body], object]) -> bytes:
        """Return a file that passes `check`, from the first node that has it; who sends another one is kept out."""
        reasons = []
        lane: Lane = "bulk" if name else "decode"  # the manifest is small, and that lane is open already
        for source in self._sources():
            try:
                link = await self._endpoint.link(source.peer, source.addresses, lane=lane, timeout_s=self._times.dial_s)
                question = Fetch(request=0, revision=self.model.revision, name=name)
                reply, body = await self._endpoint.request(link, question, timeout_s=self._times.fetch_s)
                if reply.found:
                    check(body)
                    return bytes(body)
            except NetError as error:
                if isinstance(error, BadManifest):
                    self.exclude(source.peer, LIAR_EXCLUDED_S)
                reasons.append(f"{source.peer}: {error}")
        told = "; ".join(reasons) or "none of its nodes has it"
        raise BadManifest(model=str(self.model), reason=f"{name or 'its manifest'} cannot be fetched: {told}")

    # -- whom to ask

    def _sources(self) -> list[_Source]:
        """Return everyone who can be asked: who is not excluded and linked first, else in an order drawn by lot."""
        addresses: dict[PeerId, tuple[str, ...]] = {}
        for text in self._bootstrap:
            with suppress(BadAddress):
                peer = parse_address(text).peer
                addresses[peer] = (*addresses.get(peer, ()), text)
        for kept in self._kept.values():
            peer = PeerId(kept.record.peer)
            addresses[peer] = (*addresses.get(peer, ()), *kept.record.addresses)
        now_s = self._clock.monotonic()

        def order(source: _Source) -> tuple[bool, bool, float]:
            excluded = self._excluded_until_s.get(source.peer, now_s) > now_s
            return excluded, self._endpoint.get(source.peer) is None, self._rng.random()

        return sorted((_Source(peer, several) for peer, several in addresses.items()), key=order)

    def _to_ask(self) -> list[_Source]:
        """Return those who are easy to ask and one by lot: a client that asks only its friends can be kept blind."""
        sources = self._sources()
        easy, others = sources[: ASKED_AT_ONCE - 1], sources[ASKED_AT_ONCE - 1 :]
        return easy + ([others[int(self._rng.random() * len(others))]] if others else [])

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(self._times.refresh_s * (0.7 + 0.6 * self._rng.random()))
            await self.refresh()

    # -- what they say

    def _merge(self, records: Iterable[SignedRecord]) -> None:
        now_ns = self._clock.wall_ns()
        for signed in records:
            known = self._kept.get(signed.key)
            if known is not None and known.signature == signed.signature:
                continue
            try:
                record = open_record(signed, now_ns)
            except BadRecord as error:
                _log.debug("record dropped reason=%s", error)
                continue
            if known is None and len(self._kept) >= MAX_KEPT_RECORDS:
                continue
            if self._fits(record) and (known is None or known.record.sequence < record.sequence):
                self._kept[signed.key] = _Kept(record, signed.signature)

    def _fits(self, record: Record) -> bool:
        if self._manifest is not None and record.num_blocks != self._manifest.num_blocks:
            return False
        return record.model.revision == self.model.revision


async def _outcome(question: Coroutine[Any, Any, _T]) -> _T | NetError:
    """Return what a question gave, be it an error."""
    try:
        return await question
    except NetError as error:
        return error
