"""How fast tokens come beside a long prompt: `python benchmarks/beside_prefill.py [--model large] [--repeats 3]`.

Two real nodes with one thread each. One session decodes; its tokens' intervals with nobody else, and while another
session's prompt of 4,000 tokens is computed, in turns. `prompt` is that prompt's time to its first token, alone and
beside the decoding session. Means over all tokens, since prefill runs in pieces that hold up some of them, with the
95th percentile; the prompt's times are medians.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from hops import plan, prompt
from models import MODELS, SEED, make_checkpoint
from swarm_client import AsyncRemoteModel
from swarm_sim.local_swarm import LocalSwarm
from swarm_sim.splits import split_evenly
from tables import show_table

PROMPT_TOKENS = 4000
AIM = 2.0


async def prefill_s(model: AsyncRemoteModel, number: int) -> float:
    """Return how long a long prompt takes to its first token."""
    generation = await model.generate(prompt(PROMPT_TOKENS, number), max_new_tokens=1, temperature=0)
    return generation.timings.time_to_first_token_s


async def intervals_s(model: AsyncRemoteModel, number: int, beside: bool) -> tuple[list[float], float]:
    """Decode until the other session's prompt is done, or as long alone; return the intervals and its time."""
    stamps: list[float] = []
    stream = model.stream(prompt(16, number), max_new_tokens=2000, temperature=0)
    other: asyncio.Task[float] | None = None
    async with stream:
        async for _ in stream:
            stamps.append(time.perf_counter())
            if len(stamps) == 16 and beside:
                other = asyncio.create_task(prefill_s(model, number))
            if (other is not None and other.done()) or (not beside and len(stamps) == 80):
                break
    return [later - earlier for earlier, later in pairwise(stamps[16:])], other.result() if other is not None else 0.0


async def run(checkpoint: Path, blocks: int, dtype: str, repeats: int, progress: Progress) -> list[list[float]]:
    """Return intervals alone and beside, and the prompt's times alone and beside."""
    task = progress.add_task(dtype, total=repeats)
    alone: list[float] = []
    beside: list[float] = []
    prompt_alone, prompt_beside = [], []
    async with (
        LocalSwarm(plan(checkpoint, dtype, split_evenly(blocks, 2, 2.0))) as swarm,
        AsyncRemoteModel.connect(checkpoint.name, swarm.bootstrap) as model,
    ):
        for repeat in range(repeats):
            prompt_alone.append(await prefill_s(model, 100 + repeat))
            alone += (await intervals_s(model, 2 * repeat, beside=False))[0]
            measured, took_s = await intervals_s(model, 2 * repeat + 1, beside=True)
            beside += measured
            prompt_beside.append(took_s)
            progress.advance(task)
    return [alone, beside, prompt_alone, prompt_beside]


def figures(values: list[float]) -> str:
    percentile = statistics.quantiles(values, n=20)[18]
    return f"{statistics.fmean(values) * 1e3:.1f} ({percentile * 1e3:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="large", choices=sorted(MODELS))
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 140)
    columns = ("format", "alone, ms (p95)", "beside a prompt, ms (p95)", "ratio", "aim", "prompt alone, s", "beside, s")
    table = Table(*columns, title=f"Interval between tokens, {asked.model}, seed {SEED}")
    with tempfile.TemporaryDirectory() as directory, Progress(console=console, transient=True) as progress:
        checkpoint = make_checkpoint(Path(directory), asked.model)
        for dtype in asked.dtypes.split(","):
            blocks = MODELS[asked.model][1]
            alone, beside, *prompts = uvloop.run(run(checkpoint, blocks, dtype, asked.repeats, progress))
            ratio = statistics.fmean(beside) / statistics.fmean(alone)
            times = [f"{statistics.median(each):.1f}" for each in prompts]
            table.add_row(dtype, figures(alone), figures(beside), f"{ratio:.2f}", f"< {AIM:g}", *times)
    show_table(console, table)


if __name__ == "__main__":
    main()
