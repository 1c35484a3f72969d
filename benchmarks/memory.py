"""What a node takes: `python benchmarks/memory.py`.

Starts real nodes that serve parts of a random Llama (hidden 1024, 16 blocks, vocabulary 32,000), and reads from the
kernel what they hold once they are ready and what they held at most while loading; their DHT daemons are not counted.
`besides` is what is not weights: Python, torch, transformers (limit: 700 MB), and a KV pool of 32 MiB that may be in
memory or not. `loading` is the peak less that, in spans (limit: 2).
"""

import asyncio
import re
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from decode import make_checkpoint
from swarm_sim.local_swarm import LocalSwarm, LocalSwarmPlan
from tables import show_table

MB = 1e6
CASES = (((0, 16), "float32"), ((0, 16), "bfloat16"), ((4, 12), "float32"), ((12, 16), "bfloat16"))


def held_bytes(pid: int, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


async def measure(checkpoint: Path, span: tuple[int, int], dtype: str) -> tuple[int, int, int]:
    """Return bytes of weights, held when ready, held at most."""
    plan = LocalSwarmPlan(model=checkpoint, splits=(span,), dtype=dtype, kv_memory="32MiB")
    async with LocalSwarm(plan) as swarm:
        (node,) = swarm.nodes
        return node.facts["weight_bytes"], held_bytes(node.pid, "VmRSS"), held_bytes(node.pid, "VmHWM")


def main() -> None:
    table = Table("blocks", "format", "weights, MB", "ready, MB", "peak, MB", "besides, MB", "loading, spans")
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = make_checkpoint(Path(directory), "large")
        for span, dtype in CASES:
            weights, ready, peak = asyncio.run(measure(checkpoint, span, dtype))
            besides = ready - weights
            figures = [f"{size / MB:.0f}" for size in (weights, ready, peak, besides)]
            table.add_row(f"{span[0]}:{span[1]}", dtype, *figures, f"{(peak - besides) / weights:.2f}")
    show_table(Console(), table)


if __name__ == "__main__":
    main()
