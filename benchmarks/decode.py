"""Two hops against one process: `python benchmarks/decode.py [--quick] [--models small,large] [--json FILE]`.

Real node processes, TLS, one thread each, against transformers' `generate` with one thread, in turns within each
repeat; medians with the lowest and highest repeat. Random Llamas: `small` has hidden 512 and 8 blocks, `large` hidden
1024 and 16, both a vocabulary of 32,000. The blocks are split so that the hops' measured times balance, head included.
Ratios are ours over theirs for rates, and for times to first token; the last column is what we aim at.
"""

import argparse
import asyncio
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import transformers
import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import hops
from hops import NEW_TOKENS, HopTimes, generate, plan, prompt
from models import MODELS, SEED, make_checkpoint
from reference import Reference
from swarm_client import AsyncRemoteModel
from swarm_sim.local_swarm import LocalSwarm
from swarm_sim.splits import split_evenly
from tables import show_table

PROMPTS = (128, 1024)
SESSIONS = 8
TARGETS = {
    "decode": {"float32": ">= 1.0", "bfloat16": ">= 1.0"},
    "first 128": {"float32": "<= 1.1", "bfloat16": "<= 1.1"},
    "first 1024": {"float32": "<= 0.8", "bfloat16": "<= 0.8"},
    "8 sessions": {"float32": ">= 1.1", "bfloat16": ">= 0.95"},
}


@dataclass
class Row:
    """One figure of one model and number format, over the repeats."""

    model: str
    dtype: str
    figure: str
    unit: str
    local: list[float] = field(default_factory=list)
    swarm: list[float] = field(default_factory=list)
    target: str = ""

    @property
    def ratio(self) -> float:
        return statistics.median(ours / theirs for ours, theirs in zip(self.swarm, self.local, strict=True))


async def run_pair(
    name: str, checkpoint: Path, dtype: str, repeats: int, progress: Progress
) -> tuple[list[Row], HopTimes]:
    """Measure one model in one number format."""
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
            rows = await measure(name, dtype, two, reference, repeats, progress)
            return rows, await hops.measure(name, dtype, one, two, repeats, progress)


async def measure(
    name: str,
    dtype: str,
    model: AsyncRemoteModel,
    reference: Reference,
    repeats: int,
    progress: Progress,
) -> list[Row]:
    def row(figure: str, unit: str) -> Row:
        return Row(name, dtype, figure, unit, target=TARGETS[figure][dtype])

    decode, many = row("decode", "tokens/s"), row("8 sessions", "tokens/s")
    firsts = [row(f"first {tokens}", "ms") for tokens in PROMPTS]
    task = progress.add_task(f"{name} {dtype}", total=repeats)
    await model.generate([prompt(64, n) for n in range(2)], max_new_tokens=8, temperature=0)
    for repeat in range(repeats):
        for tokens, first in zip(PROMPTS, firsts, strict=True):
            first_s, rate = await asyncio.to_thread(reference.generate, 1, tokens, NEW_TOKENS)
            generation, _ = await generate(model, prompt(tokens, repeat))
            first.local.append(first_s * 1e3)
            first.swarm.append(generation.timings.time_to_first_token_s * 1e3)
            if tokens == PROMPTS[0]:
                assert generation.timings.tokens_per_s is not None
                decode.local.append(rate)
                decode.swarm.append(generation.timings.tokens_per_s)
        _, rate = await asyncio.to_thread(reference.generate, SESSIONS, PROMPTS[0], NEW_TOKENS)
        many.local.append(rate)
        many.swarm.append(await together(model, [prompt(PROMPTS[0], repeat * 10 + n) for n in range(SESSIONS)]))
        progress.advance(task)
    return [decode, *firsts, many]


async def together(model: AsyncRemoteModel, prompts: Sequence[list[int]]) -> float:
    """Return tokens a second of all sessions, from when the last has its first token until the first one ends.

    Prompts do not end together, so sessions get twice the tokens, for about as many to fall into that time.
    """
    stamps: list[list[float]] = [[] for _ in prompts]

    async def run(number: int) -> None:
        stream = model.stream(prompts[number], max_new_tokens=2 * NEW_TOKENS, temperature=0)
        stamps[number] = [time.perf_counter() async for _ in stream]

    await asyncio.gather(*(run(number) for number in range(len(prompts))))
    start = max(times[0] for times in stamps)
    end = min(times[-1] for times in stamps)
    assert start < end, "the first session ended before the last one began"
    return sum(1 for times in stamps for stamp in times if start < stamp <= end) / (end - start)


def show(rows: Sequence[Row], times: Sequence[HopTimes], console: Console) -> None:
    """Print the tables."""

    def figures(values: Sequence[float]) -> str:
        return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"

    table = Table(
        "model", "format", "figure", "transformers", "two hops", "ratio", "aim", title="Two hops, one process"
    )
    for row in rows:
        table.add_row(
            row.model,
            row.dtype,
            f"{row.figure}, {row.unit}",
            figures(row.local),
            figures(row.swarm),
            f"{row.ratio:.2f}",
            row.target,
        )
    show_table(console, table)
    show_table(console, hops.table(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="small,large")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the small model, two repeats")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    asked = parser.parse_args()
    names = ["small"] if asked.quick else asked.models.split(",")
    repeats = 2 if asked.quick else asked.repeats
    console = Console(width=None if Console().is_terminal else 140)
    console.print(
        f"seed {SEED}, {repeats} repeats, prompt 128 unless said, {NEW_TOKENS} new tokens; Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    rows: list[Row] = []
    times: list[HopTimes] = []
    with tempfile.TemporaryDirectory() as directory, Progress(console=console, transient=True) as progress:
        for name in names:
            checkpoint = make_checkpoint(Path(directory), name)
            for dtype in asked.dtypes.split(","):
                new_rows, hop_times = uvloop.run(run_pair(name, checkpoint, dtype, repeats, progress))
                rows += new_rows
                times.append(hop_times)
    show(rows, times, console)
    if asked.json:
        asked.json.write_text(
            json.dumps({"rows": [asdict(row) for row in rows], "hops": [asdict(time) for time in times]})
        )


if __name__ == "__main__":
    main()
