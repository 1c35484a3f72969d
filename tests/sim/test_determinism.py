"""Random programs of tasks run alike: twice in one process, and in processes whose hashes differ.

Run as a program, prints the trace hashes of the seeds in its arguments.
"""

import asyncio
import io
import os
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_sim.trace import Trace
from swarm_sim.virtual_loop import run, running_loop

ACTORS = 12
STEPS = 30


class Chaos:
    """Tasks that do to each other whatever a shared random source says: one event out of order changes all after it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.queue: asyncio.Queue[int] = asyncio.Queue(maxsize=3)
        self.lock = asyncio.Lock()
        self.tasks: set[asyncio.Task[None]] = set()
        self.events = [asyncio.Event() for _ in range(4)]

    async def main(self) -> None:
        for _ in range(ACTORS):
            self.spawn()
        while self.tasks:
            done, _ = await asyncio.wait(self.tasks, timeout=20, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                self.tasks.discard(task)
            if not done:
                for task in self.tasks:  # whoever waits for nobody
                    task.cancel()

    def spawn(self) -> None:
        self.tasks.add(asyncio.get_running_loop().create_task(self.actor()))

    async def actor(self) -> None:
        for _ in range(self.random.randrange(STEPS)):
            try:
                async with asyncio.timeout(self.random.choice((0.1, 1.0, 5.0))):
                    await self.act()
            except TimeoutError:
                running_loop().trace.note(running_loop().time(), "timeout")

    async def act(self) -> None:
        rng = self.random
        match rng.randrange(9):
            case 0:
                await asyncio.sleep(rng.choice((0.0, 0.5, rng.random())))
            case 1:
                await self.queue.put(rng.randrange(100))
            case 2:
                running_loop().trace.note(running_loop().time(), "got", await self.queue.get())
            case 3:
                async with self.lock:
                    await asyncio.sleep(rng.random())
            case 4:
                await rng.choice(self.events).wait()
            case 5:
                event = rng.choice(self.events)
                event.clear() if event.is_set() else event.set()
            case 6:
                if len(self.tasks) < 2 * ACTORS:
                    self.spawn()
            case 7:
                list(self.tasks)[rng.randrange(len(self.tasks))].cancel()
            case 8:
                await asyncio.gather(*(asyncio.sleep(rng.random()) for _ in range(3)))


async def chaos(seed: int) -> None:
    await Chaos(seed).main()


def trace_of(seed: int, log: io.StringIO | None = None) -> str:
    trace = Trace(log)
    run(chaos(seed), trace=trace)
    return trace.hexdigest()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32))
def test_a_program_runs_twice_alike(seed: int) -> None:
    first, second = io.StringIO(), io.StringIO()
    hashes = trace_of(seed, first), trace_of(seed, second)
    assert first.getvalue() == second.getvalue()
    assert hashes[0] == hashes[1]


def test_other_programs_have_other_hashes() -> None:
    assert len({trace_of(seed) for seed in range(30)}) == 30


@pytest.mark.parametrize("hash_seed", ["1", "2", "random"])
def test_a_process_with_other_hashes_runs_alike(hash_seed: str) -> None:
    seeds = [str(seed) for seed in range(25)]
    output = subprocess.run(
        [sys.executable, __file__, *seeds],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert output.stdout.split() == [trace_of(int(seed)) for seed in seeds]


def test_the_log_holds_nothing_that_differs_between_processes() -> None:
    log = io.StringIO()
    trace_of(5, log)
    assert "0x" not in log.getvalue()
    assert "Task-" not in log.getvalue()
    assert log.getvalue().count("\n") > 100


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(trace_of(int(argument)))
