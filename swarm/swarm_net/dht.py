"""The directory behind the swarm: hivemind's Kademlia node in our own event loop, over the libp2p daemon.

Owns the DHT node's life: started, watched, rebuilt when the daemon dies or stops answering, its records published anew.
Which entries are believed is `dht_records.py`, the process `daemon.py`. Nodes publish and look up through it; never on
a session's path.

hivemind is imported when the first directory starts, in a thread: it brings torch and takes seconds. Its own `DHT`
class is not used, because it forks. Where it is not installed (its wheel is for Linux on x86-64), starting raises
DirectoryDown, and `directory.RemoteDirectory` does the work through other nodes.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from swarm_net.addresses import parse_address
from swarm_net.daemon import Daemon, DaemonConfig
from swarm_net.dht_records import (
    MODELS_KEY,
    acceptable,
    decode_entry,
    encode_entry,
    entries,
    expiration_s,
    model_key,
)
from swarm_net.directory import summarize
from swarm_net.errors import BadAddress, BadRecord, DirectoryDown
from swarm_net.identity import Identity
from swarm_net.links import Clock
from swarm_net.messages import MAX_ADDRESSES, MAX_MODELS, ModelSummary, SignedRecord
from swarm_net.records import Record, open_record
from swarm_net.tasks import TaskScope

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

BUILD_TIMEOUT_S = 30.0
LOOKUP_TIMEOUT_S = 6.0
PUBLISH_TIMEOUT_S = 20.0
ANSWER_TIMEOUT_S = 3.0  # of one peer
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.2, 10.0
LOOKUPS_AT_ONCE = 8
MAX_OWN_RECORDS = 1024  # published through this node; one more takes the place of the oldest
MAX_KNOWN_REVISIONS = 256  # whose last answer is kept; one more takes the place of the oldest
MAX_STORED_KEYS = 20_000  # for others; then those that expire first are dropped
MAX_ACCEPTED = 8192  # entries whose signature need not be checked again; one more takes the place of the oldest
JOIN_ADDRESSES_PER_PEER, MAX_JOIN_ADDRESSES = 3, 24

_Pair = tuple[Record, SignedRecord]


@dataclass(frozen=True, slots=True, kw_only=True)
class DhtConfig:
    """How a node takes part; addresses are libp2p's, `/ip4/HOST/tcp/PORT[/p2p/PEER_ID]`.

    In client mode it asks others and stores nothing for them: for nodes that nobody can dial.
    """

    data_dir: Path
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)
    announce: tuple[str, ...] = ()
    initial_peers: tuple[str, ...] = ()
    client_mode: bool = False
    check_s: float = 10.0  # between two looks at whether the daemon answers and the DHT node knows others


class HivemindDirectory:
    """A directory in the DHT. Call `start` first and `close` last; in between it repairs itself.

    While the DHT is down it answers from what it last knew, as far as that has not expired.
    """

    def __init__(
        self,
        identity: Identity,
        config: DhtConfig,
        *,
        clock: Clock,
        on_addresses: Callable[[tuple[str, ...]], None] = lambda _: None,
    ) -> None:
        """`on_addresses` hears `addresses` whenever the daemon has been started."""
        self._identity = identity
        self._on_addresses = on_addresses
        self._config = config
        self._clock = clock
        self._hivemind: _Hivemind | None = None
        self._running: _Running | None = None
        self._own: dict[bytes, _Pair] = {}  # by key, what was published here; published anew after a repair
        self._known: dict[str, dict[bytes, _Pair]] = {}  # by revision and key
        self._addresses: tuple[str, ...] = ()
        self._searching = asyncio.Semaphore(LOOKUPS_AT_ONCE)
        self._tasks = TaskScope()

    async def start(self) -> None:
        """Join the DHT, or begin a new one where there are no initial peers. Raises DirectoryDown."""
        self._hivemind = await asyncio.to_thread(_import_hivemind)
        self._running = await self._build(self._config.listen, self._config.initial_peers)
        self._tasks.start(self._supervise(), name="supervise the DHT")
        self._tasks.start(self._check(), name="check the DHT")

    async def close(self) -> None:
        """Leave the DHT; no process and no task is left."""
        await self._tasks.close()
        if (running := self._running) is not None:
            self._running = None
            await running.stop()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where other nodes' daemons can dial ours, for Welcome.libp2p; empty in client mode and before the start."""
        return () if self._config.client_mode else self._addresses

    @property
    def is_up(self) -> bool:
        return self._running is not None

    @property
    def daemon_pid(self) -> int | None:
        """The daemon's process, for status displays; None while it is being rebuilt."""
        return self._running.daemon.pid if self._running is not None else None

    # -- the directory

    async def publish(self, record: SignedRecord) -> None:
        opened = open_record(record, self._clock.wall_ns())
        self._own.pop(record.key, None)
        while len(self._own) >= MAX_OWN_RECORDS:
            del self._own[next(iter(self._own))]
        self._own[record.key] = (opened, record)
        await self._store(opened, record)

    async def lookup(self, revision: str) -> list[SignedRecord]:
        return [signed for _, signed in await self._search(revision)]

    async def models(self) -> list[ModelSummary]:
        now_ns = self._clock.wall_ns()
        try:
            listed = [record.model.revision for record, _ in _believed(await self._get(MODELS_KEY), now_ns)]
        except DirectoryDown:
            listed = []
            if not self._own and not self._known:
                raise
        listed += [record.model.revision for record, _ in self._own.values() if record.expires_ns > now_ns]
        revisions = list(dict.fromkeys([*listed, *self._known]))[:MAX_MODELS]
        found = await asyncio.gather(*(self._search_or_nothing(revision) for revision in revisions))
        return summarize(record for pairs in found for record, _ in pairs)

    async def _search_or_nothing(self, revision: str) -> list[_Pair]:
        async with self._searching:
            with contextlib.suppress(DirectoryDown):
                return await self._search(revision)
            return []

    async def _search(self, revision: str) -> list[_Pair]:
        """Return what the DHT, this node itself and its memory know of a revision; of each node the newest."""
        failure = None
        try:
            answer = await self._get(model_key(revision))
        except DirectoryDown as error:
            answer, failure = [], error
        now_ns = self._clock.wall_ns()
        known = self._known.pop(revision, {})
        new = [signed for signed in answer if signed.key not in known or known[signed.key][1] != signed]
        newest: dict[bytes, _Pair] = {}
        for record, signed in (*known.values(), *self._own.values(), *_believed(new, now_ns)):
            if record.model.revision != revision or record.expires_ns <= now_ns:
                continue
            if signed.key not in newest or newest[signed.key][0].sequence < record.sequence:
                newest[signed.key] = (record, signed)
        if newest:
            while len(self._known) >= MAX_KNOWN_REVISIONS:
                del self._known[next(iter(self._known))]
            self._known[revision] = newest
        elif failure is not None:
            raise failure
        return list(newest.values())

    # -- calls to hivemind, all of them under a timeout

    async def _get(self, key: bytes) -> list[SignedRecord]:
        found = await self._call(lambda node: node.get(key, latest=True), LOOKUP_TIMEOUT_S)
        if found is None or not isinstance(found.value, dict):
            return []
        return [decode_entry(entry.value) for entry in found.value.values()]

    async def _store(self, record: Record, signed: SignedRecord) -> None:
        places = entries(signed, record)
        keys, subkeys = [key for key, _ in places], [subkey for _, subkey in places]
        values, expirations = [encode_entry(signed)] * len(places), [expiration_s(record)] * len(places)
        stored = await self._call(
            lambda node: node.store_many(keys, values, expirations, subkeys=subkeys), PUBLISH_TIMEOUT_S
        )
        # False also says that the same entry is there already.
        if not stored.get(places[0]) and signed not in await self._get(keys[0]):
            raise DirectoryDown(reason="no node of the DHT took the record")

    async def _call(self, ask: Callable[[Any], Awaitable[Any]], timeout_s: float) -> Any:
        running = self._running
        if running is None:
            raise DirectoryDown(reason="its daemon has died and is being started anew")
        call = self._tasks.start(_outcome(ask(running.node)), name="call the DHT")
        try:
            await asyncio.wait((call, running.ended), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            call.cancel()
        if call.done():
            outcome = call.result()
            if isinstance(outcome, Exception):
                raise DirectoryDown(reason=f"{type(outcome).__name__}: {outcome}") from outcome
            return outcome
        if running.ended.done():
            raise DirectoryDown(reason="its daemon has died and is being started anew")
        raise DirectoryDown(reason=f"no answer within {timeout_s:g} s")

    # -- life and repair

    async def _build(self, listen: tuple[str, ...], initial_peers: tuple[str, ...]) -> "_Running":
        """Start a daemon and a DHT node on it. Raises DirectoryDown; a failure leaves nothing."""
        assert self._hivemind is not None
        config = DaemonConfig(
            program=self._hivemind.daemon_program,
            data_dir=self._config.data_dir,
            listen=listen,
            announce=self._config.announce,
            initial_peers=initial_peers,
            client_mode=self._config.client_mode,
        )
        running = _Running(await Daemon.start(self._identity, config))
        try:
            async with asyncio.timeout(BUILD_TIMEOUT_S):
                await running.connect(self._hivemind, config, _Validator(self._clock))
        except BaseException as error:
            await asyncio.shield(running.stop())
            if isinstance(error, Exception):
                raise self._why_not(error) from error
            raise
        self._addresses = running.addresses[:MAX_ADDRESSES]
        self._on_addresses(self.addresses)
        return running

    def _why_not(self, error: Exception) -> DirectoryDown:
        if isinstance(error, DirectoryDown):
            return error
        text = str(error) or type(error).__name__
        if "local time" in text:
            return DirectoryDown(reason="this machine's clock is more than 3 s off the swarm's: set it (NTP)")
        if "can't access this node" in text:
            return DirectoryDown(
                reason="the swarm's nodes cannot dial this one's DHT: open its port, announce its address, or use "
                "the DHT's client mode"
            )
        return DirectoryDown(reason=text)

    async def _supervise(self) -> None:
        """Rebuild the DHT node whenever its daemon has ended."""
        while True:
            assert self._running is not None
            running = self._running
            await asyncio.wait((running.ended,))
            self._running = None
            _log.warning("the libp2p daemon has ended and is started anew exit_code=%s", running.ended.result())
            await running.stop()
            self._running = await self._rebuild()
            _log.info("the DHT is back addresses=%s", self._addresses)
            self._tasks.start(self._publish_anew(), name="publish anew")

    async def _rebuild(self) -> "_Running":
        backoff_s = FIRST_BACKOFF_S
        same_ports = _with_ports(self._config.listen, self._addresses)
        while True:
            # Better alone than not at all: clients ask this node, and `_check` finds the others later. They know our
            # old port, so another one is taken last.
            for listen, peers in ((same_ports, self._peers_to_join()), (same_ports, ()), (self._config.listen, ())):
                try:
                    return await self._build(listen, peers)
                except DirectoryDown as error:
                    _log.warning("the DHT cannot be joined peers=%d reason=%s", len(peers), error.reason)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    async def _check(self) -> None:
        """End a daemon that does not answer, and join anew when all others are lost, as after a cut of the network."""
        while True:
            await asyncio.sleep(self._config.check_s)
            running, hivemind = self._running, self._hivemind
            if running is None or hivemind is None:
                continue
            if not await running.answers():
                _log.warning("the libp2p daemon does not answer and is ended pid=%s", running.daemon.pid)
                await running.daemon.stop()
            elif not running.knows_others() and (peers := self._peers_to_join()):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(BUILD_TIMEOUT_S):
                        await running.join(hivemind, peers)
                if running.knows_others():
                    await self._publish_anew()

    async def _publish_anew(self) -> None:
        now_ns = self._clock.wall_ns()
        self._own = {key: pair for key, pair in self._own.items() if pair[0].expires_ns > now_ns}
        for record, signed in list(self._own.values()):
            try:
                await self._store(record, signed)
            except DirectoryDown as error:
                _log.warning("record not published anew peer=%s reason=%s", record.peer, error.reason)

    def _peers_to_join(self) -> tuple[str, ...]:
        """Return where others' daemons are: those given first, then those that records name."""
        others: list[str] = []
        for pairs in self._known.values():
            for record, _ in pairs.values():
                if record.peer != self._identity.peer_id:
                    with contextlib.suppress(
                        BadAddress
                    ):  # one address that it cannot read keeps a daemon from starting
                        others += [str(parse_address(address)) for address in record.libp2p[:JOIN_ADDRESSES_PER_PEER]]
        return tuple(dict.fromkeys([*self._config.initial_peers, *others]))[:MAX_JOIN_ADDRESSES]


class _Running:
    """A daemon, the connection to it, and the DHT node on top."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.ended = asyncio.create_task(daemon.wait(), name="wait for the libp2p daemon's end")
        self.node: Any = None
        self._p2p: Any = None
        self.addresses: tuple[str, ...] = ()
        self._connecting: asyncio.Task[Any] | None = None

    async def connect(self, hivemind: "_Hivemind", config: DaemonConfig, validator: "_Validator") -> None:
        # Shielded: hivemind would leave what it has begun. It ends soon in any case, with the daemon at the latest.
        self._connecting = asyncio.create_task(
            _outcome(hivemind.p2p.replicate(hivemind.multiaddr(self.daemon.control)))
        )
        p2p = await asyncio.shield(self._connecting)
        if isinstance(p2p, Exception):
            raise p2p
        self._p2p = p2p
        p2p._client.control._read_task.add_done_callback(self._deaf)
        self._p2p = p2p
        self.node = await hivemind.dht_node.create(
            p2p=p2p,
            initial_peers=list(config.initial_peers),
            client_mode=config.client_mode,
            record_validator=validator,
            wait_timeout=ANSWER_TIMEOUT_S,
            # A record that is looked up must be the newest: nothing is kept but what is ours to store.
            cache_locally=False,
            cache_nearest=0,
            cache_on_store=False,
            cache_refresh_before_expiry=0,
        )
        self.node.protocol.storage.maxsize = MAX_STORED_KEYS
        if not config.client_mode:
            visible = [str(address) for address in await p2p.get_visible_maddrs()]
            self.addresses = tuple(address for address in visible if "/tcp/" in address)

    def knows_others(self) -> bool:
        """Tell whether the DHT node has anyone to ask."""
        return bool(self.node.protocol.routing_table.uid_to_peer_id)

    async def answers(self) -> bool:
        """Tell whether the daemon answers its control socket."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return not isinstance(await _outcome(self._p2p._client.identify()), Exception)
        except TimeoutError:
            return False

    def _deaf(self, reader: asyncio.Task[Any]) -> None:
        """End the daemon when hivemind has stopped reading from it: an answer to a call that was given up at the same
        moment does that, and then every later call waits in vain."""
        if not reader.cancelled() and (error := reader.exception()) is not None:
            _log.warning("the connection to the libp2p daemon broke reason=%r", error)
        self.daemon.terminate()

    async def join(self, hivemind: "_Hivemind", peers: Iterable[str]) -> None:
        """Dial these peers and make them known to the DHT node, as far as they answer."""
        for address in peers:
            await _outcome(self._join_one(hivemind, address))

    async def _join_one(self, hivemind: "_Hivemind", address: str) -> None:
        where, _, peer = address.rpartition("/p2p/")
        peer_id = hivemind.peer_id.from_base58(peer)
        await self._p2p._client.connect(peer_id, [hivemind.multiaddr(where)])
        await self.node.protocol.call_ping(peer_id)

    async def stop(self) -> None:
        """End the process and what hivemind runs in our loop."""
        if self.node is not None:
            # Not node.shutdown(): it waits for the daemon's answer, and the daemon may be gone.
            self.node.is_alive = False
        await self.daemon.stop()
        await asyncio.wait((self.ended,))
        if self._connecting is not None and not isinstance(p2p := await self._connecting, Exception):
            await p2p.shutdown()  # also of one that was connected after we had been cancelled


class _Validator:
    """What hivemind asks of a record validator: records carry their own signatures, so nothing is added or removed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._accepted: dict[bytes, None] = {}  # the same entries come from several nodes, again and again

    def validate(self, record: Any) -> bool:
        entry = (record.key, record.subkey, record.value, record.expiration_time)
        digest = sha256(repr(entry).encode()).digest()
        if digest in self._accepted:
            return True
        if not acceptable(*entry, self._clock.wall_ns()):
            return False
        while len(self._accepted) >= MAX_ACCEPTED:
            del self._accepted[next(iter(self._accepted))]
        self._accepted[digest] = None
        return True

    def sign_value(self, record: Any) -> Any:
        return record.value

    def strip_value(self, record: Any) -> Any:
        return record.value


class _Hivemind(NamedTuple):
    """What is used of hivemind 1.1."""

    p2p: Any
    dht_node: Any
    multiaddr: Any
    peer_id: Any
    daemon_program: Path


def _import_hivemind() -> _Hivemind:
    try:
        import hivemind
        from hivemind.dht.node import DHTNode
        from hivemind.p2p import P2P, PeerID
        from hivemind.utils.multiaddr import Multiaddr
    except ImportError as error:
        reason = (
            f"hivemind cannot be imported ({error}); it exists for Linux on x86-64 only: use other nodes' directory"
        )
        raise DirectoryDown(reason=reason) from error
    # It prints to stderr by a handler of its own; what it says is ours to show or not.
    logger = logging.getLogger("hivemind")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.ERROR)
    logging.addLevelName(logging.WARNING, "WARNING")  # which it calls WARN, for the whole process
    program = Path(hivemind.__file__).parent / "hivemind_cli" / "p2pd"
    return _Hivemind(P2P, DHTNode, Multiaddr, PeerID, program)


def _with_ports(listen: Iterable[str], bound: Iterable[str]) -> tuple[str, ...]:
    """Replace the port 0 by the one that was taken, so that others find the daemon where it was."""
    ports: dict[str, str] = {}
    for address in bound:
        parts = address.split("/")
        ports.setdefault(parts[1], parts[4])
    return tuple(
        f"{address.removesuffix('0')}{ports.get(address.split('/')[1], '0')}" if address.endswith("/tcp/0") else address
        for address in listen
    )


def _believed(answer: Iterable[SignedRecord], now_ns: int) -> list[_Pair]:
    pairs = []
    for signed in answer:
        with contextlib.suppress(BadRecord):
            pairs.append((open_record(signed, now_ns), signed))
    return pairs


async def _outcome(call: Awaitable[_T]) -> _T | Exception:
    """Return what a call gave, be it an error: hivemind raises what its many layers raise."""
    try:
        return await call
    except Exception as error:
        return error
