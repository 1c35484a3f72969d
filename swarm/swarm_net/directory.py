"""Where records are published and looked up: one interface, whatever stands behind it.

Owns the interface and the two implementations without a DHT: MemoryDirectory (a store that tests and simulated nodes
share) and RemoteDirectory (through other nodes, for a peer that cannot run the DHT). The DHT is `dht.py`; nodes answer
others from their directory by `discovery.py`.

A directory takes only records that count when they come (`records.open_record`). What it returns is still opened by
who asked: a remote one may be lying, and time passes.
"""

from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from swarm_net.endpoint import Endpoint
from swarm_net.errors import BadRecord, DirectoryDown, NetError
from swarm_net.identity import peer_id_of
from swarm_net.links import Clock, Link
from swarm_net.messages import (
    MAX_MODELS,
    Lookup,
    ModelId,
    Models,
    ModelSummary,
    Publish,
    SignedRecord,
)
from swarm_net.records import Record, missing_blocks, open_record

_Reply = TypeVar("_Reply")


class Directory(Protocol):
    """Publishes and finds records. Every call is bounded in time."""

    async def publish(self, record: SignedRecord) -> None:
        """Store a record until it expires. Raises BadRecord, DirectoryDown."""

    async def lookup(self, revision: str) -> list[SignedRecord]:
        """Return records of a model revision, perhaps not all. Raises DirectoryDown."""

    async def models(self) -> list[ModelSummary]:
        """Return what is served, perhaps not all. Raises DirectoryDown."""

    async def close(self) -> None:
        """Free everything that the directory holds."""


def summarize(records: Iterable[Record]) -> list[ModelSummary]:
    """Return what these records serve: a summary for each revision and name, those of most nodes first.

    A node counts for the name that it gives: no other name gains by it.
    """
    by_revision: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_revision[record.model.revision].append(record)
    summaries = []
    for revision, members in by_revision.items():
        num_blocks = Counter(record.num_blocks for record in members).most_common(1)[0][0]
        online = [record for record in members if record.num_blocks == num_blocks and record.state == "online"]
        missing = missing_blocks(online, num_blocks)
        replicas = [sum(record.start <= block < record.end for record in online) for block in range(num_blocks)]
        summaries += [
            ModelSummary(
                model=ModelId(name=name, revision=revision),
                blocks=num_blocks,
                nodes=nodes,
                replicas=min(replicas),
                missing=missing[:64],
            )
            for name, nodes in sorted(Counter(record.model.name for record in members).items())
        ]
    summaries.sort(key=lambda summary: (-summary.nodes, summary.model.name, summary.model.revision))
    return summaries[:MAX_MODELS]


# -- in memory -------------------------------------------------------------------------------------------------------


class MemoryStore:
    """Records in memory, checked as the DHT checks them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._records: dict[tuple[str, bytes], tuple[Record, SignedRecord]] = {}

    def put(self, signed: SignedRecord) -> None:
        """Keep a record unless a newer one of its node is there. Raises BadRecord."""
        record = open_record(signed, self._clock.wall_ns())
        place = (record.model.revision, signed.key)
        known = self._records.get(place)
        if known is None or known[0].sequence < record.sequence:
            self._records[place] = (record, signed)

    def live(self) -> list[tuple[Record, SignedRecord]]:
        """Return the records that have not expired; forgets the others."""
        now_ns = self._clock.wall_ns()
        self._records = {place: pair for place, pair in self._records.items() if pair[0].expires_ns > now_ns}
        return list(self._records.values())


class MemoryDirectory:
    """One node's view of a shared MemoryStore."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def publish(self, record: SignedRecord) -> None:
        self._store.put(record)

    async def lookup(self, revision: str) -> list[SignedRecord]:
        return [signed for record, signed in self._store.live() if record.model.revision == revision]

    async def models(self) -> list[ModelSummary]:
        return summarize(record for record, _ in self._store.live())

    async def close(self) -> None:
        """Nothing to free: the store is shared."""


# -- through other nodes ---------------------------------------------------------------------------------------------


class RemoteDirectory:
    """The directory of whichever of some nodes answers first, asked in turn, the last good one first."""

    def __init__(self, endpoint: Endpoint, addresses: Sequence[str], *, timeout_s: float = 5.0) -> None:
        self._endpoint = endpoint
        self._addresses = list(addresses)
        self._timeout_s = timeout_s

    async def publish(self, record: SignedRecord) -> None:
        message = Publish(request=0, record=record)
        reply, _ = await self._ask(lambda link: self._endpoint.request(link, message, timeout_s=self._timeout_s))
        if not reply.stored:
            raise BadRecord(peer=peer_id_of(record.key), reason=reply.reason)

    async def lookup(self, revision: str) -> list[SignedRecord]:
        message = Lookup(request=0, revision=revision)
        reply, _ = await self._ask(lambda link: self._endpoint.request(link, message, timeout_s=self._timeout_s))
        return list(reply.records)

    async def models(self) -> list[ModelSummary]:
        message = Models(request=0)
        reply, _ = await self._ask(lambda link: self._endpoint.request(link, message, timeout_s=self._timeout_s))
        return list(reply.models)

    async def close(self) -> None:
        """Nothing to free: the endpoint belongs to its owner."""

    async def _ask(self, question: Callable[[Link], Awaitable[_Reply]]) -> _Reply:
        reasons = []
        for address in list(self._addresses):
            try:
                reply = await question(await self._endpoint.dial(address, self._timeout_s))
            except NetError as error:
                reasons.append(str(error))
            else:
                self._addresses.remove(address)
                self._addresses.insert(0, address)
                return reply
        raise DirectoryDown(reason="; ".join(reasons) or "no node to ask is known")
