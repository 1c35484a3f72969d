"""Many generations, many of them cut off: nothing hangs, and nothing is left behind."""

import asyncio
import os
import random
import sys
from pathlib import Path

import pytest

from swarm_client import AsyncRemoteModel
from swarm_sim.local_swarm import LocalSwarm
from tests.e2e.conftest import VOCABULARY
from tests.e2e.test_failures import all_free, plan


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.parametrize(
    ("generations", "at_once"), [(30, 8), pytest.param(200, 16, marks=(pytest.mark.slow, pytest.mark.timeout(900)))]
)
async def test_generations_cut_off_at_random(checkpoint: Path, cache_dir: Path, generations: int, at_once: int) -> None:
    rng = random.Random(generations)
    turns = asyncio.Semaphore(at_once)
    ended = {"finished": 0, "left": 0, "killed": 0}
    async with LocalSwarm(plan(checkpoint, (0, 3), (3, 6))) as swarm:
        before = [descriptors(pid) for pid in swarm.pids]
        async with AsyncRemoteModel.connect("tiny-llama", swarm.bootstrap, cache_dir=cache_dir) as model:

            async def finish_or_leave(prompt: list[int], stop_after: int) -> None:
                seen = 0
                async with model.stream(prompt, max_new_tokens=20, temperature=1.0, seed=1) as tokens:
                    async for _ in tokens:
                        seen += 1
                        if seen == stop_after:
                            ended["left"] += 1
                            return
                ended["finished"] += 1

            async def be_killed(after_s: float) -> None:
                command = ["generate", "--ids", "1,2,3", "--model", "tiny-llama", "--bootstrap", swarm.bootstrap[0]]
                client = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "swarm_client", *command, "--max-new-tokens", "400"),
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,
                )
                await asyncio.sleep(after_s)
                if client.returncode is None:
                    client.kill()
                await client.wait()
                ended["killed"] += 1

            async def one(number: int) -> None:
                async with turns:
                    if number % 5 == 4:
                        await be_killed(rng.uniform(0.2, 3.0))
                    else:
                        prompt = [rng.randrange(VOCABULARY) for _ in range(rng.choice((1, 9, 60, 300)))]
                        await finish_or_leave(prompt, rng.choice((1, 3, 10, 99)))

            async with asyncio.timeout(800):
                await asyncio.gather(*(one(number) for number in range(generations)))
        assert sum(ended.values()) == generations
        assert min(ended.values()) > 0
        await all_free(swarm, (0, 1))
        async with asyncio.timeout(30):
            while any(descriptors(pid) > was + 2 for pid, was in zip(swarm.pids, before, strict=True)):  # noqa: ASYNC110
                await asyncio.sleep(0.2)  # links of killed clients are noticed one by one
        assert [children(pid) for pid in swarm.pids] == [[], []]
