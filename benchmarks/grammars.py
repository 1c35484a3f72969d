"""What keeping an answer to a grammar costs on the last hop: opening a session, and the mask of each token.

    python benchmarks/grammars.py                 half a minute; needs the package xgrammar

The demo model's tokenizer, its vocabulary also padded to the size of larger ones: the bytes of a mask grow with it. The
answer is drawn from what is allowed. `first` counts the start of the server too, `again` is a grammar that is kept.
What is measured is what a step waits for: the question to the session's process and its answer, on the event loop.
"""

import argparse
import platform
import statistics
import time
from importlib.metadata import version

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from swarm_net.messages import Grammar, GrammarKind, encode_grammar
from swarm_node.grammars import GrammarProcesses
from swarm_sim.demo_model import demo_model_path
from tables import show_table

STOP = 0
SIZES = (2048, 32_000, 128_000)
GRAMMARS: dict[GrammarKind, str] = {
    "json_schema": '{"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}}',
    "regex": "([a-z ]+[.,] )*",
    "ebnf": 'root ::= item ("," item)*\nitem ::= [a-z]+ | "(" root ")"',
}


async def measure(table: Table, size: int, tokens: int, rng: np.random.Generator) -> None:
    async with GrammarProcesses(demo_model_path() / "tokenizer.json", size, (STOP,)) as processes:
        for kind, text in GRAMMARS.items():
            grammar, opened_ms = encode_grammar(Grammar(kind=kind, text=text)), []
            for _ in range(2):
                started_s = time.perf_counter()
                matcher = await processes.matcher(grammar)
                opened_ms.append((time.perf_counter() - started_s) * 1000)
            answer, masks_us = np.empty(0, np.int32), []
            for _ in range(tokens):
                started_s = time.perf_counter()
                (row,) = await matcher.masks(answer, 0)
                masks_us.append((time.perf_counter() - started_s) * 1e6)
                allowed = np.flatnonzero(np.unpackbits(np.frombuffer(row, np.uint8), bitorder="little"))
                going_on = allowed[allowed != STOP]
                answer = np.append(answer, np.int32(rng.choice(going_on) if len(going_on) else STOP))
            p50, p95 = statistics.median(masks_us), statistics.quantiles(masks_us, n=20)[-1]
            table.add_row(f"{size:,}", kind, *(f"{ms:.0f}" for ms in opened_ms), f"{p50:.0f}", f"{p95:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console = Console(width=110)
    console.print(f"seed {options.seed}; xgrammar {version('xgrammar')}, {platform.machine()}")
    table = Table("vocabulary", "grammar", "open, first, ms", "again, ms", "mask, p50 us", "p95 us")
    rng = np.random.default_rng(options.seed)
    for size in SIZES:
        uvloop.run(measure(table, size, options.tokens, rng))
    show_table(console, table)


if __name__ == "__main__":
    main()
