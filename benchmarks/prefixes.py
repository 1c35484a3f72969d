"""What a prompt costs whose beginning the hops still have: `python benchmarks/prefixes.py [--model small]`.

Two real nodes with one thread each; prompts of 1,000 shared tokens and 20 of their own. `first` is the first session
with a prefix, `second` another one with the same prefix, in turns with ever new prefixes. Medians, lowest and highest.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from hops import plan
from models import MODELS, SEED, VOCABULARY, make_checkpoint
from swarm_client import AsyncRemoteModel
from swarm_sim.local_swarm import LocalSwarm
from swarm_sim.splits import split_evenly
from tables import show_table

SHARED_TOKENS = 1000
OWN_TOKENS = 20
AIM = 0.2


async def first_token_ms(model: AsyncRemoteModel, prefix: int, number: int) -> tuple[float, int]:
    """Return the time to the first token, and how many tokens the hops had."""
    shared = [(prefix * 7919 + place * 31) % (VOCABULARY - 10) + 3 for place in range(SHARED_TOKENS)]
    own = [(prefix * 17 + number * 13 + place) % (VOCABULARY - 10) + 3 for place in range(OWN_TOKENS)]
    generation = await model.generate([*shared, *own], max_new_tokens=2, temperature=0)
    return generation.timings.time_to_first_token_s * 1e3, generation.usage.cached_tokens


async def measure(
    checkpoint: Path, blocks: int, dtype: str, repeats: int, progress: Progress
) -> tuple[list[float], list[float]]:
    """Return the times of first and second sessions."""
    firsts, seconds = [], []
    task = progress.add_task(dtype, total=repeats)
    async with (
        LocalSwarm(plan(checkpoint, dtype, split_evenly(blocks, 2, 2.0), share_prefixes="client")) as swarm,
        AsyncRemoteModel.connect(checkpoint.name, swarm.bootstrap) as model,
    ):
        await first_token_ms(model, 0, 0)
        for repeat in range(1, repeats + 1):
            first_ms, cached = await first_token_ms(model, repeat, 1)
            assert cached == 0
            second_ms, cached = await first_token_ms(model, repeat, 2)
            assert cached > 0
            firsts.append(first_ms)
            seconds.append(second_ms)
            progress.advance(task)
    return firsts, seconds


def figures(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="small", choices=sorted(MODELS))
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 120)
    table = Table("format", "first, ms", "second, ms", "ratio", "aim", title=f"Time to first token, seed {SEED}")
    with tempfile.TemporaryDirectory() as directory, Progress(console=console, transient=True) as progress:
        checkpoint = make_checkpoint(Path(directory), asked.model)
        for dtype in ("float32", "bfloat16"):
            firsts, seconds = uvloop.run(measure(checkpoint, MODELS[asked.model][1], dtype, asked.repeats, progress))
            ratio = statistics.median(second / first for first, second in zip(firsts, seconds, strict=True))
            table.add_row(dtype, figures(firsts), figures(seconds), f"{ratio:.2f}", f"<= {AIM}")
    show_table(console, table)


if __name__ == "__main__":
    main()
