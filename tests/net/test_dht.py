"""The DHT with real daemons on loopback: what is published is found, forgeries are not, and no process is left.

The rule for entries is tested without daemons.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator
from hashlib import sha1
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_net.clocks import SystemClock
from swarm_net.dht import DhtConfig, HivemindDirectory
from swarm_net.dht_records import (
    EXPIRED_GRACE_S,
    INDEX_SLOTS,
    MODELS_KEY,
    acceptable,
    encode_entry,
    entries,
    expiration_s,
    index_slot,
    model_key,
)
from swarm_net.errors import BadRecord, DirectoryDown
from swarm_net.identity import Identity
from swarm_net.messages import ModelId, SignedRecord
from swarm_net.records import Record, sign

S = 1_000_000_000
NOW_NS = 1_800_000_000 * S
REVISION = "ab" * 32
ME, OTHER = Identity(bytes(32)), Identity(bytes([1] * 32))

needs_hivemind = pytest.mark.skipif(find_spec("hivemind") is None, reason="hivemind exists for Linux on x86-64 only")


def record(identity: Identity, now_ns: int, **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "sequence": 1,
        "published_ns": now_ns,
        "expires_ns": now_ns + 60 * S,
        "peer": identity.peer_id,
        "model": ModelId(name="demo", revision=REVISION),
        "num_blocks": 12,
        "start": 0,
        "end": 4,
        "dtype": "float32",
        "max_context": 64,
    }
    return Record(**{**fields, **changes})


# -- the rule --------------------------------------------------------------------------------------------------------


def entry(signed: SignedRecord, opened: Record, place: int, **changes: Any) -> tuple[Any, ...]:
    """Return an entry as hivemind shows it to validators."""
    key, subkey = entries(signed, opened)[place]
    shown: dict[str, Any] = {
        "key": sha1(key).digest(),
        "subkey": msgspec.msgpack.encode(subkey),
        "value": msgspec.msgpack.encode(encode_entry(signed)),
        "expires_s": expiration_s(opened),
    }
    return tuple({**shown, **changes}.values())


@pytest.mark.parametrize("place", [0, 1])
def test_a_record_is_accepted_in_its_own_places_alone(place: int) -> None:
    opened = record(ME, NOW_NS)
    signed = sign(opened, ME)
    assert acceptable(*entry(signed, opened, place), NOW_NS)
    theirs = sign(record(OTHER, NOW_NS), OTHER)
    wrong = [
        {"key": sha1(model_key("cd" * 32)).digest()},
        {"key": entry(signed, opened, 1 - place)[0]},
        {"subkey": msgspec.msgpack.encode(OTHER.public_key)},
        {"subkey": msgspec.msgpack.encode(None)},
        {"subkey": b""},
        {"subkey": 7},
        {"value": msgspec.msgpack.encode(encode_entry(theirs))} if place == 0 else {"value": b""},
        {"value": msgspec.msgpack.encode("text")},
        {"value": msgspec.msgpack.encode(bytes(100_000))},
        {"value": None},
        {"expires_s": expiration_s(opened) + 1},
        {"expires_s": float("inf")},
        {"expires_s": float("nan")},
        {"expires_s": None},
    ]
    for changes in wrong:
        assert not acceptable(*entry(signed, opened, place, **changes), NOW_NS), changes


def test_forged_and_untimely_records_are_not_accepted() -> None:
    opened = record(ME, NOW_NS)
    signed = sign(opened, ME)
    forged = msgspec.structs.replace(signed, signature=bytes(64))
    assert not acceptable(*entry(forged, opened, 0), NOW_NS)
    assert not acceptable(*entry(signed, opened, 0), NOW_NS - 100 * S)
    # Just expired ones pass, or an answer would be lost because one of its entries ran out on the way.
    assert acceptable(*entry(signed, opened, 0), NOW_NS + 61 * S)
    assert not acceptable(*entry(signed, opened, 0), NOW_NS + (61 + EXPIRED_GRACE_S) * S)


@settings(deadline=None)
@given(st.binary(max_size=40), st.binary(max_size=300), st.binary(max_size=300), st.floats())
def test_noise_is_not_accepted(key: bytes, subkey: bytes, value: bytes, expires_s: float) -> None:
    assert not acceptable(key, subkey, value, expires_s, NOW_NS)


@settings(deadline=None)
@given(st.text(max_size=40), st.binary(min_size=32, max_size=32))
def test_the_list_of_models_is_bounded(revision: str, key: bytes) -> None:
    assert 0 <= int.from_bytes(index_slot(revision, key), "big") < INDEX_SLOTS


def test_importing_the_module_is_light() -> None:
    code = "import sys, swarm_net.dht; print({'torch', 'hivemind', 'numpy'} & set(sys.modules))"
    assert python(code) == "set()"


def test_without_hivemind_there_is_a_typed_error(tmp_path: Path) -> None:
    code = f"""
    import asyncio, sys
    sys.modules["hivemind"] = None
    from pathlib import Path
    from swarm_net.clocks import SystemClock
    from swarm_net.dht import DhtConfig, HivemindDirectory
    from swarm_net.errors import DirectoryDown
    from swarm_net.identity import Identity
    directory = HivemindDirectory(Identity.generate(), DhtConfig(data_dir=Path({str(tmp_path)!r})), clock=SystemClock())
    try:
        asyncio.run(directory.start())
    except DirectoryDown as error:
        print(error)
    """
    assert "use other nodes' directory" in python(code)


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


# -- with daemons ----------------------------------------------------------------------------------------------------


class Swarm:
    """DHT nodes of one test, closed at its end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.members: list[HivemindDirectory] = []

    def member(
        self, identity: Identity, *initial_peers: str, client_mode: bool = False, check_s: float = 10.0
    ) -> HivemindDirectory:
        config = DhtConfig(
            check_s=check_s,
            data_dir=self.directory / identity.peer_id,
            listen=("/ip4/127.0.0.1/tcp/0",),
            initial_peers=initial_peers or (self.members[0].addresses if self.members else ()),
            client_mode=client_mode,
        )
        self.members.append(HivemindDirectory(identity, config, clock=SystemClock()))
        return self.members[-1]

    async def join(self, identity: Identity, *initial_peers: str, **options: Any) -> HivemindDirectory:
        member = self.member(identity, *initial_peers, **options)
        await member.start()
        return member

    def daemons(self) -> set[int]:
        """Return the processes that were given a key file of this test."""
        found = set()
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                with contextlib.suppress(OSError):
                    if str(self.directory).encode() in (process / "cmdline").read_bytes():
                        found.add(int(process.name))
        return found - {os.getpid()}


@pytest.fixture
async def swarm(tmp_path: Path) -> AsyncIterator[Swarm]:
    made = Swarm(tmp_path)
    yield made
    for member in made.members:
        await member.close()
    assert made.daemons() == set()


async def eventually(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@needs_hivemind
async def test_what_one_publishes_all_find(swarm: Swarm) -> None:
    one, two = await swarm.join(ME), await swarm.join(OTHER)
    behind = await swarm.join(third := Identity.generate(), client_mode=True)
    assert all(address.endswith(ME.peer_id) for address in one.addresses)
    assert behind.addresses == ()
    published = []
    for member, identity in ((one, ME), (two, OTHER), (behind, third)):
        published.append(sign(record(identity, time.time_ns()), identity))
        await member.publish(published[-1])
    for member in swarm.members:
        assert {signed.key for signed in await member.lookup(REVISION)} == {signed.key for signed in published}
        assert [(each.model.revision, each.nodes) for each in await member.models()] == [(REVISION, 3)]
        assert await member.lookup("cd" * 32) == []
    newer = sign(record(OTHER, time.time_ns(), sequence=2, end=8), OTHER)
    await one.publish(newer)  # for a peer that cannot do it itself
    await one.publish(newer)  # and again: it is there already
    for member in swarm.members:
        assert newer in await member.lookup(REVISION)
    key = swarm.directory / ME.peer_id / "libp2p.key"
    assert key.stat().st_mode & 0o777 == 0o600


@needs_hivemind
async def test_what_breaks_the_rule_is_neither_stored_nor_believed(swarm: Swarm) -> None:
    honest = await swarm.join(ME)
    with pytest.raises(BadRecord):
        await honest.publish(sign(record(OTHER, time.time_ns() - 100 * S), OTHER))

    from hivemind.dht.node import DHTNode
    from hivemind.p2p import P2P

    options = {"auto_nat": False, "nat_port_map": False}
    p2p = await P2P.create(initial_peers=list(honest.addresses), **options)
    try:
        evil = await DHTNode.create(p2p=p2p, initial_peers=list(honest.addresses))  # it accepts anything
        opened = record(OTHER, time.time_ns())
        signed = sign(opened, OTHER)
        forged = encode_entry(msgspec.structs.replace(signed, signature=bytes(64)))
        old = record(OTHER, time.time_ns() - 61 * S)
        soon = time.time() + 60
        attempts: list[tuple[bytes, Any, bytes | None, float]] = [
            (model_key(REVISION), forged, signed.key, expiration_s(opened)),
            (model_key(REVISION), encode_entry(signed), ME.public_key, expiration_s(opened)),
            (model_key(REVISION), encode_entry(signed), signed.key, soon + 3600),
            (model_key(REVISION), encode_entry(signed), None, expiration_s(opened)),
            (model_key(REVISION), encode_entry(sign(old, OTHER)), signed.key, expiration_s(old)),
            (model_key("cd" * 32), encode_entry(signed), signed.key, expiration_s(opened)),
            (MODELS_KEY, b"junk", b"junk", soon),
            (b"anything", b"junk", b"junk", soon),
        ]
        for key, value, subkey, expires_s in attempts:
            assert not await evil.store(key, value, expires_s, subkey=subkey, exclude_self=True)
        # It keeps one itself, so that it comes with its answers.
        await evil.store(model_key(REVISION), forged, expiration_s(opened), subkey=signed.key)
        assert await honest.lookup(REVISION) == []
        assert await honest.models() == []
        assert await evil.store(
            model_key(REVISION), encode_entry(signed), expiration_s(opened), subkey=signed.key, exclude_self=True
        )
        assert await honest.lookup(REVISION) == [signed]
        await evil.shutdown()
    finally:
        await p2p.shutdown()


@needs_hivemind
async def test_a_killed_daemon_is_noticed_and_everything_rebuilt(swarm: Swarm) -> None:
    one, two = await swarm.join(ME), await swarm.join(OTHER)
    mine = sign(record(ME, time.time_ns(), libp2p=one.addresses), ME)
    theirs = sign(record(OTHER, time.time_ns(), libp2p=two.addresses), OTHER)
    await one.publish(mine)
    await two.publish(theirs)
    for member in (one, two):
        assert len(await member.lookup(REVISION)) == 2
    for member in (one, two):
        before, pid = member.addresses, member.daemon_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not member.is_up)  # noqa: B023
        assert len(await member.lookup(REVISION)) == 2  # what it knew last
        with pytest.raises(DirectoryDown):
            await member.lookup("cd" * 32)
        await eventually(lambda: member.is_up)  # noqa: B023
        assert member.addresses == before
    newer = sign(record(ME, time.time_ns(), sequence=2), ME)
    await one.publish(newer)
    found = await two.lookup(REVISION)
    assert newer in found
    assert theirs in found


@needs_hivemind
async def test_a_daemon_that_hangs_is_replaced(swarm: Swarm) -> None:
    one = await swarm.join(ME, check_s=0.1)
    two = await swarm.join(OTHER)
    await one.publish(mine := sign(record(ME, time.time_ns(), libp2p=one.addresses), ME))
    hung = one.daemon_pid
    assert hung is not None
    os.kill(hung, signal.SIGSTOP)
    await eventually(lambda: one.daemon_pid not in (hung, None))
    assert mine in await one.lookup(REVISION)
    assert mine in await two.lookup(REVISION)


@needs_hivemind
async def test_nodes_that_lost_each_other_find_each_other_again(swarm: Swarm) -> None:
    one = await swarm.join(ME, check_s=0.1)
    two = await swarm.join(OTHER, check_s=0.1)
    # What makes no sense to a daemon must not keep it from starting.
    hostile = Identity.generate()
    broken = (f"/nonsense/p2p/{hostile.peer_id}",)
    for member, identity, libp2p in ((one, ME, one.addresses), (two, OTHER, two.addresses), (one, hostile, broken)):
        await member.publish(sign(record(identity, time.time_ns(), libp2p=libp2p), identity))
    for member in (one, two):
        assert len(await member.lookup(REVISION)) == 3
    pids = [member.daemon_pid for member in (one, two)]
    for pid in pids:
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not one.is_up and not two.is_up)
    await eventually(lambda: one.is_up and two.is_up)
    late = Identity.generate()
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(DirectoryDown):
                await one.publish(signed := sign(record(late, time.time_ns()), late))
                if signed in await two.lookup(REVISION):
                    break
            await asyncio.sleep(0.1)


@needs_hivemind
async def test_nothing_is_left_of_a_start_that_is_given_up(swarm: Swarm) -> None:
    await swarm.join(ME)
    for patience_s in (0.0, 0.05, 0.1, 0.2, 0.3, 0.5):
        member = swarm.member(OTHER)
        starting = asyncio.create_task(member.start())
        await asyncio.sleep(patience_s)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await member.close()
        assert len(swarm.daemons()) == 1


@needs_hivemind
async def test_bootstrap_peers_that_are_dead_are_a_typed_error(swarm: Swarm) -> None:
    with pytest.raises(DirectoryDown, match="bootstrap"):
        await swarm.join(ME, f"/ip4/127.0.0.1/tcp/1/p2p/{OTHER.peer_id}")
    assert swarm.daemons() == set()


CHILD = """
import asyncio, sys, time
ahead_s = float(sys.argv[2])
if ahead_s:
    true_time = time.time
    time.time = lambda: true_time() + ahead_s  # before hivemind takes it
from pathlib import Path
from swarm_net.clocks import SystemClock
from swarm_net.dht import DhtConfig, HivemindDirectory
from swarm_net.errors import DirectoryDown
from swarm_net.identity import Identity

async def main():
    config = DhtConfig(
        data_dir=Path(sys.argv[1]), listen=("/ip4/127.0.0.1/tcp/0",), initial_peers=tuple(sys.argv[3:])
    )
    directory = HivemindDirectory(Identity.generate(), config, clock=SystemClock())
    try:
        await directory.start()
        print("ready", flush=True)
        await asyncio.sleep(3600)
    except DirectoryDown as error:
        print(error, flush=True)

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def child(directory: Path, ahead_s: float, *initial_peers: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a node in a process of its own, with a folder for what it cannot clean up when it is killed."""
    arguments = (str(directory / "child"), str(ahead_s), *initial_peers)
    with tempfile.TemporaryDirectory() as temporary:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            CHILD,
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "TMPDIR": temporary},
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@needs_hivemind
async def test_a_wrong_clock_is_told(swarm: Swarm) -> None:
    member = await swarm.join(ME)
    async with child(swarm.directory, 20.0, *member.addresses) as joiner:
        said, _ = await joiner.communicate()
    assert b"set it (NTP)" in said


@needs_hivemind
async def test_the_daemon_dies_with_a_killed_parent(swarm: Swarm) -> None:
    async with child(swarm.directory, 0.0) as parent:
        assert parent.stdout is not None
        assert await parent.stdout.readline() == b"ready\n"
        assert len(swarm.daemons()) == 2
        parent.kill()
        await parent.wait()
        await eventually(lambda: not swarm.daemons())
