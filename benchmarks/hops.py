"""What a hop adds to a decode step: `python benchmarks/hops.py [--models small,large] [--dtypes float32,bfloat16]`.

The same random Llama on one node and on two, real processes, TLS, one thread each, in turns within each repeat. What is
not compute, client and way back counted in, is everything a step takes less what its hops computed, step by step, the
median over the steps. `one hop` is that with one node, `a hop adds` how much more it is with two; `each` is half of it
with two. Also used by `decode.py`.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import hop_costs
from models import MODELS, VOCABULARY, make_checkpoint
from reference import Reference
from swarm_client import AsyncRemoteModel
from swarm_client.results import Generation
from swarm_sim.local_swarm import LocalSwarm, LocalSwarmPlan
from swarm_sim.splits import split_evenly
from tables import show_table

PROMPT_TOKENS = 128
NEW_TOKENS = 64
AIM_MS = 0.6


@dataclass
class HopTimes:
    """Where the time of a decode step goes, medians over the repeats in milliseconds."""

    model: str
    dtype: str
    interval: float  # of two hops
    compute: float  # of both
    one_hop: float
    adds: float
    adds_range: tuple[float, float]
    each: float
    queue: float  # from a step's arrival until its batch starts, the hand-over to the thread included
    wire: float  # from sending to arrival, the way back to the client counted in
    hand_over: float
    serialization: float
    tls: float
    kernel: float


def plan(
    checkpoint: Path, dtype: str, splits: Sequence[tuple[int, int]], *, share_prefixes: str = "off"
) -> LocalSwarmPlan:
    """Nodes with one thread each, without the DHT's daemon; without reuse of prefixes, every prompt is computed."""
    return LocalSwarmPlan(
        model=checkpoint,
        splits=tuple(splits),
        dtype=dtype,
        threads=1,
        kv_memory="1GiB",
        environment={"SWARM_NODE_DHT": "off", "SWARM_NODE_SHARE_PREFIXES": share_prefixes},
    )


def prompt(tokens: int, number: int) -> list[int]:
    """Ids that no other number shares."""
    return [(number * 7919 + place * 31) % (VOCABULARY - 10) + 3 for place in range(tokens)]


async def generate(model: AsyncRemoteModel, ids: list[int]) -> tuple[Generation, list[float]]:
    """Return a generation and the seconds between its tokens."""
    stream = model.stream(ids, max_new_tokens=NEW_TOKENS, temperature=0)
    stamps = [time.perf_counter() async for _ in stream]
    assert stream.generation is not None
    return stream.generation, [later - earlier for earlier, later in pairwise(stamps)]


async def measure(
    name: str, dtype: str, one: AsyncRemoteModel, two: AsyncRemoteModel, repeats: int, progress: Progress
) -> HopTimes:
    """Measure one model in one number format, given it on one node and on two."""
    task = progress.add_task(f"{name} {dtype}: a hop", total=repeats)
    intervals, computes, ones, others, queues, wires = [], [], [], [], [], []
    for warmed in (one, two):
        await generate(warmed, prompt(PROMPT_TOKENS, 0))
    for repeat in range(repeats):
        whole, _ = await generate(one, prompt(PROMPT_TOKENS, repeat))
        ones.append(whole.timings.overhead_ms or 0.0)
        split, gaps_s = await generate(two, prompt(PROMPT_TOKENS, repeat))
        hops = split.timings.hops
        others.append(split.timings.overhead_ms or 0.0)
        intervals.append(statistics.median(gaps_s) * 1e3)
        computes.append(sum(hop.compute_ms for hop in hops))
        queues.append(statistics.mean(hop.queue_ms for hop in hops))
        wires.append((sum(hop.wire_ms for hop in hops) + (split.timings.return_wire_ms or 0.0)) / len(hops))
        progress.advance(task)
    hidden = MODELS[name][0]
    costs = await asyncio.to_thread(hop_costs.measure, hidden * (4 if dtype == "float32" else 2))
    adds = [other - with_one for other, with_one in zip(others, ones, strict=True)]
    return HopTimes(
        model=name,
        dtype=dtype,
        interval=statistics.median(intervals),
        compute=statistics.median(computes),
        one_hop=statistics.median(ones),
        adds=statistics.median(adds),
        adds_range=(min(adds), max(adds)),
        each=statistics.median(others) / 2,
        queue=statistics.median(queues),
        wire=statistics.median(wires),
        **{part: micros / 1e3 for part, micros in asdict(costs).items()},
    )


def table(hops: Sequence[HopTimes]) -> Table:
    """Lay out the times."""
    shown = Table(title=f"A decode step of two hops, ms; from `one hop` on: of one (aim: a hop adds <= {AIM_MS})")
    for column in ("model", "format", "interval", "compute", "one hop", "a hop adds", "each", "queue", "wire"):
        shown.add_column(column)
    for column in ("hand-over", "serialization", "TLS", "kernel"):
        shown.add_column(column)
    for hop in hops:
        shown.add_row(
            hop.model,
            hop.dtype,
            f"{hop.interval:.2f}",
            f"{hop.compute:.2f}",
            f"{hop.one_hop:.3f}",
            f"{hop.adds:.3f} ({hop.adds_range[0]:.2f} to {hop.adds_range[1]:.2f})",
            *(
                f"{value:.3f}"
                for value in (hop.each, hop.queue, hop.wire, hop.hand_over, hop.serialization, hop.tls, hop.kernel)
            ),
        )
    return shown


async def run(name: str, checkpoint: Path, dtype: str, repeats: int, progress: Progress) -> HopTimes:
    """Start both swarms and measure."""
    blocks = MODELS[name][1]
    with Reference(checkpoint, dtype) as reference:
        weights = reference.ask({"weigh": True})
    splits = split_evenly(blocks, 2, weights["head_s"] / weights["block_s"])
    async with (
        LocalSwarm(plan(checkpoint, dtype, [(0, blocks)])) as one_node,
        LocalSwarm(plan(checkpoint, dtype, splits)) as two_nodes,
        AsyncRemoteModel.connect(checkpoint.name, one_node.bootstrap) as one,
        AsyncRemoteModel.connect(checkpoint.name, two_nodes.bootstrap) as two,
    ):
        return await measure(name, dtype, one, two, repeats, progress)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="small,large")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 160)
    times: list[HopTimes] = []
    with tempfile.TemporaryDirectory() as directory, Progress(console=console, transient=True) as progress:
        for name in asked.models.split(","):
            checkpoint = make_checkpoint(Path(directory), name)
            times += [
                uvloop.run(run(name, checkpoint, dtype, asked.repeats, progress)) for dtype in asked.dtypes.split(",")
            ]
    show_table(console, table(times))


if __name__ == "__main__":
    main()
