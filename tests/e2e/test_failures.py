"""Nodes that die, stop or differ, and clients that vanish: typed errors at once, and nothing left behind."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from swarm_client import AsyncRemoteModel
from swarm_net.errors import NetError, NoRoute
from swarm_net.identity import Identity
from swarm_node.data_dir import RunningNode
from swarm_node.operator import ask_status
from swarm_sim.local_swarm import LocalSwarm, LocalSwarmPlan
from tests.e2e.conftest import WITHOUT_DHT, make_checkpoint
from tests.e2e.in_process import in_process_swarm

PROMPT = list(range(7, 40))


def plan(checkpoint: Path, *splits: tuple[int, int], **changes: object) -> LocalSwarmPlan:
    fields = {"dtype": "float32", "kv_memory": "8MiB", "environment": WITHOUT_DHT, **changes}
    return LocalSwarmPlan(model=checkpoint, splits=splits, **fields)


async def status(swarm: LocalSwarm, number: int) -> dict[str, object]:
    """What a node tells its operator."""
    directory = Path(f"{swarm._directory}/node-{number}")
    state = json.loads((directory / "running.json").read_text())
    return await ask_status(RunningNode(directory.name, directory, state))


async def all_free(swarm: LocalSwarm, numbers: tuple[int, ...], timeout_s: float = 20.0) -> None:
    """Wait until no session and no page of KV is left."""
    async with asyncio.timeout(timeout_s):
        for number in numbers:
            while True:
                told = await status(swarm, number)
                if told.get("sessions") == 0 and told["kv_tokens_free"] == told["kv_tokens"]:
                    break
                await asyncio.sleep(0.1)


async def test_a_hop_that_stops_mid_generation(checkpoint: Path, cache_dir: Path) -> None:
    async with (
        LocalSwarm(plan(checkpoint, (0, 3), (3, 6))) as swarm,
        AsyncRemoteModel.connect("tiny-llama", swarm.bootstrap, cache_dir=cache_dir) as model,
    ):
        stopped_s: list[float] = []

        async def generate() -> None:
            seen = 0
            async for _ in model.stream(PROMPT, max_new_tokens=400, temperature=0):
                seen += 1
                if seen == 5:
                    swarm.kill(1, signal.SIGTERM)
                    stopped_s.append(asyncio.get_running_loop().time())

        with pytest.raises(NetError) as caught:
            await generate()
        assert caught.value.remedy()
        assert asyncio.get_running_loop().time() - stopped_s[0] < 20
        await all_free(swarm, (0,))


async def test_the_generation_goes_on_over_another_node(checkpoint: Path, cache_dir: Path) -> None:
    async with (
        LocalSwarm(plan(checkpoint, (0, 3), (3, 6), (3, 6))) as swarm,
        AsyncRemoteModel.connect("tiny-llama", swarm.bootstrap, cache_dir=cache_dir) as model,
    ):
        expected = await model.generate(PROMPT, max_new_tokens=60, temperature=0)
        ids = []
        async for token in model.stream(PROMPT, max_new_tokens=60, temperature=0):
            ids.append(token.id)
            if len(ids) == 5:
                used = await in_use(swarm)
                swarm.kill(used)
        assert ids == expected.token_ids


async def in_use(swarm: LocalSwarm) -> int:
    """Which of the two nodes that serve the second half has a session."""
    for number in (1, 2):
        if (await status(swarm, number)).get("sessions"):
            return number
    raise AssertionError("neither node has the session")


async def test_a_client_that_is_killed_leaves_nothing(checkpoint: Path) -> None:
    async with LocalSwarm(plan(checkpoint, (0, 3), (3, 6))) as swarm:
        command = ["-m", "swarm_client", "generate", "--ids", "1,2,3", "--model", "tiny-llama"]
        command += ["--bootstrap", swarm.bootstrap[0], "--max-new-tokens", "500", "--temperature", "0", "--json"]
        client = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.DEVNULL)
        async with asyncio.timeout(30):
            while client.returncode is None and not (await status(swarm, 1)).get("sessions"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        if client.returncode is None:
            client.kill()
        await client.wait()
        await all_free(swarm, (0, 1))


async def test_other_weights_never_share_a_route(checkpoint: Path, tmp_path: Path, cache_dir: Path) -> None:
    other = make_checkpoint(tmp_path / "tiny-llama", seed=1)
    async with LocalSwarm(plan(checkpoint, (0, 3))) as first:
        joining = plan(other, (3, 6), arguments=("--bootstrap", first.bootstrap[0]))
        async with LocalSwarm(joining):
            for model in (str(checkpoint), str(other)):
                async with AsyncRemoteModel.connect(model, first.bootstrap, cache_dir=cache_dir) as remote:
                    with pytest.raises(NoRoute) as caught:
                        await remote.generate([1, 2, 3], max_new_tokens=2)
                    assert caught.value.missing in (((0, 3),), ((3, 6),))


async def test_number_formats_mix_where_they_must(checkpoint: Path, cache_dir: Path) -> None:
    async with LocalSwarm(plan(checkpoint, (0, 3))) as first:
        joining = plan(checkpoint, (3, 6), dtype="bfloat16", arguments=("--bootstrap", first.bootstrap[0]))
        async with (
            LocalSwarm(joining),
            AsyncRemoteModel.connect("tiny-llama", first.bootstrap, cache_dir=cache_dir) as model,
        ):
            generation = await model.generate(PROMPT, max_new_tokens=12, temperature=0)
    assert len(generation.token_ids) == 12
    assert not generation.retries


async def test_a_full_kv_pool_is_said_with_numbers(checkpoint: Path, cache_dir: Path) -> None:
    # 6 blocks x 2 x 2 heads x 16 wide x 4 bytes = 1,536 bytes a token
    small = plan(checkpoint, (0, 6), kv_memory="96KiB")
    async with (
        LocalSwarm(small) as swarm,
        AsyncRemoteModel.connect("tiny-llama", swarm.bootstrap, cache_dir=cache_dir) as model,
    ):
        with pytest.raises(NetError, match=r"64|no node|room") as caught:
            await model.generate([1, 2, 3], max_new_tokens=300)
        assert caught.value.remedy()
        assert len((await model.generate([1, 2, 3], max_new_tokens=20)).token_ids) == 20


async def test_garbage_harms_nobody(checkpoint: Path, cache_dir: Path) -> None:
    async with (
        LocalSwarm(plan(checkpoint, (0, 6))) as swarm,
        AsyncRemoteModel.connect("tiny-llama", swarm.bootstrap, cache_dir=cache_dir) as model,
    ):
        port = int(swarm.bootstrap[0].split("/")[4])
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(os.urandom(4096))
            writer.close()
        assert len((await model.generate([1, 2, 3], max_new_tokens=5)).token_ids) == 5


async def test_identities_are_kept_and_private(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("--identity", str(tmp_path / "key.pem"))
    async with LocalSwarm(plan(checkpoint, (0, 6), arguments=arguments)) as swarm:
        peer = swarm.nodes[0].peer
    assert Identity.load_or_create(tmp_path / "key.pem").peer_id == peer
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600


async def test_nodes_whose_blocks_differ_never_stand_in_one_route(checkpoint: Path, tmp_path: Path) -> None:
    """One revision, and weights that differ where no sample of the manifest's fingerprint looks."""
    async with in_process_swarm(checkpoint, (0, 4)) as swarm:
        await swarm.start(3, 6, record={"block_digests": b"altered!" * 3, "decode_tokens_per_s": 1e6})
        async with swarm.client(tmp_path) as model:
            with pytest.raises(NoRoute, match="different weights of blocks 3:4") as caught:
                await model.generate(PROMPT, max_new_tokens=2)
            assert "compare" in caught.value.remedy()
        await swarm.start(3, 6)
        async with swarm.client(tmp_path) as model:
            found = await model.generate(PROMPT, max_new_tokens=2)
    assert [hop.peer for hop in found.route] == [swarm.peers[0], swarm.peers[2]]
