"""A node's answers to those who look for something: records, models, a model's small files; and the door for records.

Owns the service behind the messages Lookup, Publish, Models and Fetch. What is asked of the directory is remembered for
a moment, so that a burst of clients costs the DHT one search. Searches for revisions that are not known to be served
are few at once, for each peer and in all (`search_quota.py`); one more is answered with `Busy`. Only a model's manifest
and the files that it lists are ever served, whatever name is asked for.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from swarm_net.directory import Directory
from swarm_net.endpoint import Endpoint
from swarm_net.errors import BadRecord, NetError
from swarm_net.links import Body, Clock, Link, PeerId
from swarm_net.manifest import MAX_FILE_BYTES, SERVED_FILES, open_manifest
from swarm_net.messages import (
    MAX_RECORDS,
    Fetch,
    File,
    Lookup,
    Message,
    ModelList,
    Models,
    ModelSummary,
    Publish,
    Published,
    Records,
    SignedRecord,
)
from swarm_net.records import Record, open_record
from swarm_net.search_quota import SearchQuota
from swarm_net.tasks import TaskScope

REMEMBER_S = 1.0
REMEMBER_NOTHING_S = 5.0  # that a revision has no records: asked for again and again, it costs one search in that time
MAX_REMEMBERED = 256  # revisions; the oldest is forgotten
MAX_REPLY_BYTES = 48 * 1024  # of records or summaries: a frame's header must hold them
MAX_PUBLISHES = 60  # a peer and minute
SEARCHES_AT_ONCE = 32
UNKNOWN_SEARCHES = 24  # of them; what is known to be served always finds room
UNKNOWN_SEARCHES_OF_A_PEER = 8  # as many as a client looks up for one name (`model_choice.py`)
MAX_KNOWN = 512  # revisions; the one that was longest not asked for is forgotten
FILES_AT_ONCE = 4

_RECORD_OVERHEAD_BYTES = 128  # key, signature and the names of the three
_log = logging.getLogger(__name__)

_T = TypeVar("_T")


class DiscoveryService:
    """Answers Lookup, Publish, Models and Fetch on an endpoint.

    `files` maps each revision that this node has to its manifest's bytes and its directory; it may change later.
    """

    def __init__(
        self, endpoint: Endpoint, directory: Directory, *, clock: Clock, files: Mapping[str, tuple[bytes, Path]]
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._files = files
        self._tasks = TaskScope()
        self._found: _Remembering[list[tuple[Record, SignedRecord]]] = _Remembering(
            clock, self._tasks, lambda found: REMEMBER_S if found else REMEMBER_NOTHING_S
        )
        self._served: _Remembering[list[ModelSummary]] = _Remembering(clock, self._tasks, lambda served: REMEMBER_S)
        self._known: dict[str, None] = {}  # revisions that had records lately
        self._quota = SearchQuota(of_a_peer=UNKNOWN_SEARCHES_OF_A_PEER, in_all=UNKNOWN_SEARCHES)
        self._publishes: dict[PeerId, int] = {}  # in the running minute
        self._minute = 0
        self._searching = asyncio.Semaphore(SEARCHES_AT_ONCE)
        self._reading = asyncio.Semaphore(FILES_AT_ONCE)
        endpoint.serve(Lookup, self._lookup)
        endpoint.serve(Publish, self._publish)
        endpoint.serve(Models, self._models)
        endpoint.serve(Fetch, self._fetch)

    async def close(self) -> None:
        """Stop the searches that are running; the directory belongs to its owner."""
        await self._tasks.close()

    async def _lookup(self, link: Link, message: Lookup, body: bytes) -> tuple[Message, Body]:
        found = await self._find(message.revision, link.peer)
        first, last = message.blocks or (0, 2**31)
        now_ns = self._clock.wall_ns()
        live = [
            (record, signed)
            for record, signed in found
            if record.expires_ns > now_ns and record.start < last and first < record.end
        ]
        # Another selection each time, so that who asks often or many nodes comes to know all.
        salt = f"{link.peer}/{message.request}".encode()
        return Records(request=0, records=_that_fit(live, salt)), b""

    async def _find(self, revision: str, peer: PeerId) -> list[tuple[Record, SignedRecord]]:
        """Return a revision's records. Raises Busy where too many unknown ones are being looked for."""
        if revision in self._known or revision in self._files or not self._found.is_due(revision):
            found = await self._found.get(revision, lambda: self._search(revision))
        else:
            self._quota.begin(peer)
            found = await self._found.get(revision, lambda: self._search_unknown(revision, peer))
        if found:
            self._note_known(revision)
        return found

    def _note_known(self, revision: str) -> None:
        self._known.pop(revision, None)
        while len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[revision] = None

    async def _search_unknown(self, revision: str, peer: PeerId) -> list[tuple[Record, SignedRecord]]:
        try:
            return await self._search(revision)
        finally:
            self._quota.end(peer)

    async def _search(self, revision: str) -> list[tuple[Record, SignedRecord]]:
        async with self._searching:
            answers = await self._directory.lookup(revision)
        now_ns = self._clock.wall_ns()
        found = []
        for signed in answers:
            try:
                found.append((open_record(signed, now_ns), signed))
            except BadRecord as error:
                _log.debug("record dropped reason=%s", error)
        return found

    async def _publish(self, link: Link, message: Publish, body: bytes) -> tuple[Message, Body]:
        if not self._may_publish(link.peer):
            return Published(request=0, stored=False, reason=f"more than {MAX_PUBLISHES} records a minute"), b""
        try:
            record = open_record(message.record, self._clock.wall_ns())
            await self._directory.publish(message.record)
        except BadRecord as error:
            return Published(request=0, stored=False, reason=error.reason), b""
        self._found.forget(record.model.revision)
        self._served.forget("")
        return Published(request=0), b""

    def _may_publish(self, peer: PeerId) -> bool:
        minute = int(self._clock.monotonic() // 60)
        if minute != self._minute:
            self._minute, self._publishes = minute, {}
        self._publishes[peer] = self._publishes.get(peer, 0) + 1
        return self._publishes[peer] <= MAX_PUBLISHES

    async def _models(self, link: Link, message: Models, body: bytes) -> tuple[Message, Body]:
        summaries = await self._served.get("", self._directory.models)
        for summary in reversed(summaries):  # who is told of a model looks it up next
            self._note_known(summary.model.revision)
        fitting, size = [], 0
        for summary in summaries:
            size += len(msgspec.msgpack.encode(summary))
            if size > MAX_REPLY_BYTES:
                break
            fitting.append(summary)
        return ModelList(request=0, models=tuple(fitting)), b""

    async def _fetch(self, link: Link, message: Fetch, body: bytes) -> tuple[Message, Body]:
        if message.revision not in self._files:
            return File(request=0, found=False), b""
        manifest, directory = self._files[message.revision]
        if not message.name:
            return File(request=0), manifest
        if message.name not in SERVED_FILES or message.name not in open_manifest(manifest, message.revision).files:
            return File(request=0, found=False), b""
        async with self._reading:
            content = await asyncio.to_thread(_read, directory / message.name)
        return File(request=0, found=content is not None), content or b""


def _that_fit(found: list[tuple[Record, SignedRecord]], salt: bytes) -> tuple[SignedRecord, ...]:
    """Return what a reply has room for, in an order drawn from the salt, but first what covers every block once."""
    drawn = sorted(found, key=lambda pair: sha256(salt + pair[1].key).digest())
    covered: set[int] = set()
    covering: list[SignedRecord] = []
    rest: list[SignedRecord] = []
    for record, signed in drawn:
        blocks = set(range(record.start, record.end))
        if record.state == "online" and blocks - covered:
            covering.append(signed)
            covered |= blocks
        else:
            rest.append(signed)
    fitting: list[SignedRecord] = []
    room = MAX_REPLY_BYTES
    for signed in (covering + rest)[:MAX_RECORDS]:
        room -= len(signed.body) + _RECORD_OVERHEAD_BYTES
        if room < 0:
            break
        fitting.append(signed)
    return tuple(fitting)


def _read(path: Path) -> bytes | None:
    """Return a file's content; None if it cannot be read any more or has grown beyond what is served."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        _log.warning("a model's file cannot be read file=%s reason=%s", path, error)
        return None
    return content if len(content) <= MAX_FILE_BYTES else None


# -- remembering -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Answer(Generic[_T]):
    task: asyncio.Task[_T | NetError]
    asked_s: float


class _Remembering(Generic[_T]):
    """Answers of a slow source, each shared by all who ask while it is awaited or, as `keep_s` says of it, after; a
    failure for REMEMBER_S."""

    def __init__(self, clock: Clock, tasks: TaskScope, keep_s: Callable[[_T], float]) -> None:
        self._clock = clock
        self._tasks = tasks
        self._keep_s = keep_s
        self._answers: dict[str, _Answer[_T]] = {}

    async def get(self, key: str, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Return the answer to `key`, asking for it if none is remembered; raises the NetError that asking raised."""
        if self.is_due(key):
            self.forget(key)
            while len(self._answers) >= MAX_REMEMBERED:
                self.forget(next(iter(self._answers)))
            work = self._tasks.start(_outcome(ask), name=f"ask {key[:12]}")
            self._answers[key] = _Answer(work, self._clock.monotonic())
        outcome = await asyncio.shield(self._answers[key].task)
        if isinstance(outcome, NetError):
            raise outcome
        return outcome

    def is_due(self, key: str) -> bool:
        """Whether whoever asks now has the source asked."""
        answer = self._answers.get(key)
        if answer is None or not answer.task.done():
            return answer is None
        if answer.task.cancelled():
            return True
        outcome = answer.task.result()
        keep_s = REMEMBER_S if isinstance(outcome, NetError) else self._keep_s(outcome)
        return self._clock.monotonic() - answer.asked_s >= keep_s

    def forget(self, key: str) -> None:
        """Ask anew next time."""
        self._answers.pop(key, None)


async def _outcome(ask: Callable[[], Awaitable[_T]]) -> _T | NetError:
    """Return what asking gave, be it an error: a task whose exception nobody awaited would be logged as lost."""
    try:
        return await ask()
    except NetError as error:
        return error
