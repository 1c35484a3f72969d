"""Node processes of a local swarm: their start, and that none is left behind, whatever happens."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from swarm_sim.errors import NodeDown
from swarm_sim.local_swarm import LocalSwarm, LocalSwarmPlan

# Stands in for `swarm-node start`: tells what it was started with; what else it does, FAKE_NODE says.
FAKE_NODE = """
import json, os, signal, subprocess, sys, time
arguments = sys.argv[1:]
value = lambda name: arguments[arguments.index(name) + 1]
start, end = map(int, value("--blocks").split(":"))
what, child = os.environ.get("FAKE_NODE", ""), 0
if what == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid
tell = lambda kind, **fields: print(json.dumps({"event": kind, **fields}), flush=True)
tell("progress", title="loading", done_bytes=1, total_bytes=4)
if what == "fails" and start:
    print("a line on standard error", file=sys.stderr)
    tell("error", error="bad_blocks", message="these blocks are wrong", remedy="take others")
    sys.exit(1)
if what == "slow":
    time.sleep(600)
print("not an event", flush=True)
tell("ready", peer_id=f"peer {start}", blocks=[start, end], arguments=arguments, child=child,
     bootstrap=[f"/ip4/127.0.0.1/tcp/{os.getpid()}/p2p/peer{start}"])
time.sleep(600)
"""


@pytest.fixture
def fake(tmp_path: Path) -> tuple[str, ...]:
    program = tmp_path / "fake_node.py"
    program.write_text(FAKE_NODE)
    return (sys.executable, str(program))


def plan(fake: tuple[str, ...], what: str = "", **options: float) -> LocalSwarmPlan:
    return LocalSwarmPlan(
        model=Path("/models/some"),
        splits=((0, 4), (4, 8), (8, 12)),
        dtype="float32",
        arguments=("--dht", "off"),
        environment={"FAKE_NODE": what},
        program=fake,
        **options,  # type: ignore[arg-type]
    )


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


def gone(pids: list[int], within_s: float = 20.0) -> bool:
    deadline_s = time.monotonic() + within_s
    while any(exists(pid) for pid in pids):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


async def until(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - what is waited for is a process
            await asyncio.sleep(0.01)


async def test_the_first_node_is_the_bootstrap_of_the_others(fake: tuple[str, ...]) -> None:
    async with LocalSwarm(plan(fake)) as swarm:
        pids = swarm.pids
        assert [node.state for node in swarm.nodes] == ["ready"] * 3
        assert [node.peer for node in swarm.nodes] == ["peer 0", "peer 4", "peer 8"]
        assert len(swarm.bootstrap) == 3
        first, *others = (node.facts["arguments"] for node in swarm.nodes)
        assert "--bootstrap" not in first
        for arguments in others:
            assert arguments[arguments.index("--bootstrap") + 1] == swarm.bootstrap[0]
        assert first[:8] == ["start", "--json", "--model", "/models/some", "--blocks", "0:4", "--listen", "127.0.0.1:0"]
        assert first[-2:] == ["--dht", "off"]
        directories = {node.facts["arguments"][9] for node in swarm.nodes}
        assert len(directories) == 3
        assert all(node.last_lines == ("not an event",) for node in swarm.nodes)
    assert gone(pids)
    assert [node.state for node in swarm.nodes] == ["stopped"] * 3
    assert not any(Path(directory).parent.exists() for directory in directories)


async def test_a_node_that_fails_to_start_takes_the_others_with_it_and_is_quoted(fake: tuple[str, ...]) -> None:
    swarm = LocalSwarm(plan(fake, "fails"))
    with pytest.raises(NodeDown) as raised:
        async with swarm:
            pytest.fail("not all nodes are ready")
    assert raised.value.node in (1, 2)
    assert "a line on standard error" in str(raised.value)
    assert "these blocks are wrong" in str(raised.value)
    assert "ended with code 1" in str(raised.value)
    assert gone(swarm.pids)


async def test_a_node_that_never_gets_ready_is_given_up(fake: tuple[str, ...]) -> None:
    swarm = LocalSwarm(plan(fake, "slow", ready_timeout_s=0.5))
    with pytest.raises(NodeDown, match="was not ready within"):
        async with swarm:
            pytest.fail("not all nodes are ready")
    assert gone([swarm.nodes[0].pid])


async def test_a_node_that_ignores_sigterm_is_killed_with_all_that_it_started(fake: tuple[str, ...]) -> None:
    async with LocalSwarm(plan(fake, "stubborn", stop_timeout_s=0.2)) as swarm:
        pids = swarm.pids + [node.facts["child"] for node in swarm.nodes]
        assert all(exists(pid) for pid in pids)
    assert gone(pids)


async def test_a_killed_node_is_seen_and_the_rest_still_stops(fake: tuple[str, ...]) -> None:
    async with LocalSwarm(plan(fake)) as swarm:
        swarm.kill(1)
        assert await swarm.nodes[1].exited() == -signal.SIGKILL
        await until(lambda: swarm.nodes[1].state == "failed")
        assert len(swarm.bootstrap) == 2
        pids = swarm.pids
    assert gone(pids)


async def test_cancelling_the_start_leaves_nothing(fake: tuple[str, ...]) -> None:
    swarm = LocalSwarm(plan(fake, "slow"))

    async def start() -> None:
        async with swarm:
            pytest.fail("not all nodes are ready")

    task = asyncio.create_task(start())
    await until(lambda: swarm.nodes[0].is_running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone([swarm.nodes[0].pid])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of a parent's death")
async def test_nodes_end_with_a_parent_that_is_killed(fake: tuple[str, ...], tmp_path: Path) -> None:
    parent = f"""
import asyncio
from pathlib import Path
from swarm_sim.local_swarm import LocalSwarm, LocalSwarmPlan

async def main():
    async with LocalSwarm(LocalSwarmPlan(Path("/models/some"), ((0, 1), (1, 2)), program={fake!r})) as swarm:
        print(*swarm.pids, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", parent),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},  # it cannot remove its directory
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in (await process.stdout.readline()).split()]
    assert len(pids) == 2
    process.kill()
    await process.wait()
    assert gone(pids)
