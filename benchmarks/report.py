"""Writes docs/performance.md: runs the benchmarks, one after the other, and puts their tables where they belong.

    python benchmarks/report.py                      everything that runs on a processor: about an hour, two quiet cores
    python benchmarks/report.py decode hops          these sections alone; the others stay as they were measured
    python benchmarks/report.py --list               the sections

A section says when and beside what load it was measured. What a table means, and what it does not show, is text in this
file; figures come from the scripts alone.
"""

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
from rich.console import Console

from tables import FILE_VARIABLE

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "performance.md"


@dataclass(frozen=True)
class Section:
    """A script and what to say about its tables."""

    name: str
    title: str
    text: str
    command: tuple[str, ...]


SECTIONS = (
    Section(
        "decode",
        "Two hops against one process",
        """Real node processes over TLS against transformers' `generate`. Random Llamas: `small` has hidden 512 and 8
blocks, `large` hidden 1024 and 16, both a vocabulary of 32,000. Two hops beat one process because the
span runs its matrices packed for oneDNN, attention reads pages instead of growing tensors, and the
wrappers around the blocks are left out; prefill is cut into chunks that both hops work on at once. Two
hops keep both cores busy and one process only one, so whatever else runs hurts the two hops more. Eight
sessions are counted while all eight get tokens.""",
        ("decode.py",),
    ),
    Section(
        "hops",
        "What a hop adds",
        """The same model on one node and on two. `one hop` is everything a decode step takes besides its compute,
client and way back counted in; `a hop adds` is how much more that is with two, `each` half of it with
two. The aim is 0.6 ms. Where it goes: a hop streams its weights through every cache and then runs the
sending code once, cold; measured alone with warm caches the same code takes a tenth of a millisecond. A
heartbeat 1.5 ms before a result is due wakes the way to the next hop.""",
        ("hops.py",),
    ),
    Section(
        "executor",
        "The executor alone",
        """One process, one thread, a Llama of 0.7 B (hidden 2048). KL is in nats a token against bfloat16; random
models have almost flat distributions, where the smallest change turns the first choice: the demo model
says more. int8 runs by a kernel of our own where a C++ compiler and AVX-512 VNNI are there, as they were
here; without (`SWARM_NATIVE_KERNELS=off`) oneDNN's gave 1.5 to 1.7 times bf16 on this machine. nf4 is the
library bitsandbytes'; fp8 is for GPUs, and widened at every step on a CPU. What the kernel for attention
gains stands in the table of pages.""",
        ("executor.py", "--rounds", "5"),
    ),
    Section(
        "families",
        "Latents and experts",
        """One thread, bfloat16, random weights. `latents`: DeepSeek-V2-Lite's attention (MLA) in 4 dense blocks;
transformers expands the keys and values of the whole context at every step, ours attends to the latents as they
are. `experts`: 4 blocks of a small Mixtral, 2 of 8 experts for each token; ours keeps each expert's matrices packed
for oneDNN.""",
        ("families.py",),
    ),
    Section(
        "costs",
        "What a forward costs besides, in more rounds",
        """The table of fixed costs once more: it is the difference of two small times, which a noisy machine moves.
The aim is at most 100 us a block at batch 1 for the rest: masks, tables, wrappers.""",
        ("executor.py", "--only", "costs", "--rounds", "15"),
    ),
    Section(
        "drafts",
        "Guessing ahead",
        """Two local nodes and the demo model: where nothing is far away, a step saved is compute saved, not a round
trip. Aims: 1.5 times on text that repeats itself, and at most 10 % lost where every guess is wrong.""",
        ("drafts.py",),
    ),
    Section(
        "prefixes",
        "A prompt whose beginning the hops still have",
        "1,000 shared tokens and 20 of its own; the aim is a time to the first token of 0.2 times the first one's.",
        ("prefixes.py",),
    ),
    Section(
        "beside_prefill",
        "Tokens beside a long prompt",
        """One session decodes while the prompt of another, 4,000 tokens, is computed. The aim is less than twice the
mean time between tokens; the prompt pays for it. Both nodes share two cores with the client and with each other's
event loops, which idle where one session decodes alone.""",
        ("beside_prefill.py",),
    ),
    Section(
        "codec",
        "Activations in int8",
        """What `--codec int8` does to logits, over text that each model drew itself: KL divergence in nats a token
from the same model without the codec; the first row of each is what bfloat16 does to float32. Random weights
give flat distributions: hardly any divergence, and a likeliest token that is hardly ahead of the next. Times
are microseconds a token.""",
        ("codec.py",),
    ),
    Section(
        "grammars",
        "Answers under a grammar",
        """What a step on the last hop waits for before it is computed: its mask, asked of the session's own process.
The first opening of a vocabulary starts the server, with its imports; later ones compile. The vocabularies are
the demo model's, padded: a real one of that size takes longer to compile for.""",
        ("grammars.py",),
    ),
    Section(
        "links",
        "A link",
        "Round trips in microseconds, streams in MB/s, two processes on the loopback.",
        ("links.py", "--rounds", "3"),
    ),
    Section(
        "ledger",
        "Paying for tokens",
        """The same swarm with prices and without, in turns, and what the code on the token's way takes alone. Aims:
0.97 times the tokens/s; 60 us a hop on the client, 80 us on a node, with a voucher at every step.""",
        ("ledger.py",),
    ),
    Section(
        "gas",
        "Transactions on a chain",
        "What each transaction of the contract takes, against the aims; `docs/payments.md` says when a node redeems.",
        ("gas.py",),
    ),
    Section(
        "memory",
        "What a node holds",
        """The DHT's daemon, a process of its own, is not counted; KV has 32 MiB. `besides` is what is not weights, KV
included (limit 700 MB), `loading` the peak less that, in spans (limit 2). KV memory is handed out by the
system as it is first written, in pages of 2 MB where it has such: a node takes what its sessions use, up
to `--kv-memory`.""",
        ("memory.py",),
    ),
    Section(
        "gpu",
        "An accelerator",
        """Exactness and speed on one card, with recorded decode steps and without; `--quantize` does the same for
int8, int4, nf4 and fp8.""",
        ("gpu.py",),
    ),
)


def machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"model name\s*: (.+)", cpuinfo.read_text())):
        model = found[1]
    cores = psutil.cpu_count()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return f"{model}, {cores} cores, Python {platform.python_version()}, {packages}"


def run(section: Section) -> str:
    """Run a section's script; returns its tables with when and where they were measured."""
    with tempfile.TemporaryDirectory() as folder:
        tables = Path(folder) / "tables.md"
        before = os.getloadavg()[0]
        environment = {**os.environ, FILE_VARIABLE: str(tables)}
        subprocess.run([sys.executable, HERE / section.command[0], *section.command[1:]], env=environment, check=True)
        today = datetime.datetime.now(datetime.UTC).date()
        return f"{tables.read_text()}Measured {today}, load {before:.1f} before it: {machine()}.\n"


def measured(document: str) -> dict[str, str]:
    """Read the sections that stand in a document."""
    found = re.findall(r"<!-- (\w+) -->\n(.*?)<!-- end -->", document, re.DOTALL)
    return dict(found)


def written(tables: dict[str, str]) -> str:
    """Write the document."""
    parts = [
        "# Performance\n",
        """Written by `python benchmarks/report.py`: figures come from the scripts alone. Both sides of a ratio run in
turns within each repeat; figures are medians with the lowest and the highest. The machine is noisy: trust ratios.
""",
    ]
    for section in SECTIONS:
        text = tables.get(section.name, "Not run.\n")
        command = " ".join(section.command)
        parts.append(
            f"## {section.title}: `benchmarks/{command}`\n\n{textwrap.fill(' '.join(section.text.split()), 120)}\n"
        )
        parts.append(f"<!-- {section.name} -->\n{text}<!-- end -->\n")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [section.name for section in SECTIONS]
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(names)}; default: all but gpu")
    parser.add_argument("--list", action="store_true")
    asked = parser.parse_args()
    if asked.list:
        print("\n".join(names))
        return
    if unknown := set(asked.sections) - set(names):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    tables = measured(DOCUMENT.read_text()) if DOCUMENT.exists() else {}
    console = Console()
    for section in SECTIONS:
        if section.name in (asked.sections or [name for name in names if name != "gpu"]):
            console.rule(section.title)
            tables[section.name] = run(section)
            DOCUMENT.write_text(written(tables))
    DOCUMENT.write_text(written(tables))


if __name__ == "__main__":
    main()
