"""What guessing ahead gains and costs: `python benchmarks/drafts.py [--repeats N] [--model demo|small|large]`.

Two real local nodes, TLS, one thread each; the same generation without drafts, with n-grams of its own text, with
drafts that are always wrong (as the policy sends them, and all of them), and, for the demo model, with its small draft
model: greedy on a text that repeats itself, and sampled, which hardly does. Each run stands between two without drafts
and is compared with both; rates and ratios are medians over the repeats with the lowest and highest. Runs whose ids are
not those of the run without drafts are named.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from models import MODELS, SEED, make_checkpoint
from swarm_client import AsyncRemoteModel, Draft, Drafter, Generation
from swarm_client.draft_policy import DraftPolicy
from swarm_sim.demo_model import demo_model_path, draft_model_path
from swarm_sim.local_swarm import LocalSwarm, LocalSwarmPlan
from tables import show_table

NEW_TOKENS = 192
GUESSES = 7
REPEATING = (
    "ROMEO:\nShe speaks: O, speak again, bright angel!\n\nJULIET:\nO Romeo, Romeo! wherefore art thou Romeo?\n\n" * 3
)
OTHER = "KING RICHARD III:\nNow is the winter of our discontent\nMade glorious summer by this sun of York;\n"
SAMPLED = {"temperature": 1.0, "seed": 1}


class Misses(Drafter):
    """Guesses that are always wrong."""

    def __init__(self, prompt_tokens: int, answer: Sequence[int], vocabulary: int) -> None:
        self._prompt_tokens, self._answer, self._vocabulary = prompt_tokens, answer, vocabulary

    def propose(self, ids: Sequence[int], max_tokens: int) -> Draft:
        done = len(ids) - self._prompt_tokens
        wrong = [(token + 1) % self._vocabulary for token in self._answer[done : done + min(max_tokens, GUESSES)]]
        return Draft(wrong, strength=4)


class AllMisses(Misses):
    """The same, sent whether they pay or not."""

    def policy(self) -> DraftPolicy:
        return SendAll()


class SendAll:
    """No calibration."""

    def ask(self, room: int) -> int:
        return room

    def keep(self, strength: int, guesses: int) -> int:
        return guesses

    def learn(self, guesses: Sequence[int], strength: int, sent: int, tokens: Sequence[int], took_s: float) -> None:
        """Nothing."""

    def start_route(self) -> None:
        """Nothing."""


@dataclass
class Row:
    """One way to guess on one text, over the repeats."""

    text: str
    drafts: str
    aim: str = ""
    rates: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    steps: int = 0
    sent: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Text:
    """What is continued, and how."""

    prompt: str | list[int]
    sampling: dict[str, Any]


async def measure(model: AsyncRemoteModel, texts: dict[str, Text], draft: Path | None, repeats: int) -> list[Row]:
    """Run every text every way."""
    rows: dict[tuple[str, str], Row] = {}

    async def run(text: str, name: str, how: Any, aim: str = "") -> tuple[Row, Generation, float]:
        asked = texts[text]
        found = await model.generate(asked.prompt, max_new_tokens=NEW_TOKENS, draft=how, **asked.sampling)
        row, rate = rows.setdefault((text, name), Row(text, name, aim)), found.timings.tokens_per_s
        assert rate is not None
        row.rates.append(rate)
        return row, found, rate

    with Progress(transient=True) as progress:
        for text in texts:
            await model.generate(texts[text].prompt, max_new_tokens=32, draft=draft, **texts[text].sampling)
            _, plain, before = await run(text, "none", None)
            answer = (plain.usage.prompt_tokens, plain.token_ids, 2 + max(plain.token_ids))
            ways: dict[str, tuple[Any, str]] = {
                "ngram": ("ngram", ">= 1.5" if text == "repeating" else ">= 0.9"),
                "always wrong": (Misses(*answer), ">= 0.9"),
                "always wrong, all sent": (AllMisses(*answer), ""),
                **({"draft model": (draft, "")} if draft is not None else {}),
            }
            for _ in progress.track(range(repeats), description=text):
                for name, (how, aim) in ways.items():
                    row, found, rate = await run(text, name, how, aim)
                    _, _, after = await run(text, "none", None)
                    row.ratios.append(rate * 2 / (before + after))
                    before = after
                    assert found.drafts is not None
                    row.steps, row.sent, row.accepted = found.drafts.steps, found.drafts.sent, found.drafts.accepted
                    if found.token_ids != plain.token_ids:
                        print(f"{text}, {name}: other ids: a near tie, or a fault")
    return list(rows.values())


async def run(
    checkpoint: Path, blocks: int, draft: Path | None, texts: dict[str, Text], asked: argparse.Namespace
) -> list[Row]:
    plan = LocalSwarmPlan(
        model=checkpoint,
        splits=((0, blocks // 2), (blocks // 2, blocks)),
        dtype=asked.dtype,
        threads=1,
        environment={"SWARM_NODE_DHT": "off"},
    )
    async with LocalSwarm(plan) as swarm, AsyncRemoteModel.connect(checkpoint.name, swarm.bootstrap) as model:
        return await measure(model, texts, draft, asked.repeats)


def show(rows: Sequence[Row], console: Console) -> None:
    table = Table(
        "text", "drafts", "tokens/s", "ratio", "aim", "steps with drafts", "sent", "right", title="Guessing ahead"
    )
    for row in rows:
        rates = f"{statistics.median(row.rates):.0f} ({min(row.rates):.0f} to {max(row.rates):.0f})"
        if row.ratios:
            ratio = f"{statistics.median(row.ratios):.2f} ({min(row.ratios):.2f} to {max(row.ratios):.2f})"
            counts = tuple(map(str, (row.steps, row.sent, row.accepted)))
        else:
            ratio, counts = "1", ("", "", "")
        table.add_row(row.text, row.drafts, rates, ratio, row.aim, *counts)
    show_table(console, table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("demo", *MODELS), default="demo")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    asked = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 140)
    console.print(
        f"{asked.model}, {asked.dtype}, seed {SEED}, {asked.repeats} repeats, {NEW_TOKENS} new tokens; Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    with tempfile.TemporaryDirectory() as directory:
        if asked.model == "demo":
            checkpoint, blocks, draft = demo_model_path(), 12, draft_model_path()
            prompts: list[str | list[int]] = [REPEATING, OTHER]
        else:
            checkpoint, blocks, draft = make_checkpoint(Path(directory), asked.model), MODELS[asked.model][1], None
            prompts = [[(place * 31) % 64 + 3 for place in range(256)], list(range(5, 69))]
        texts = {"repeating": Text(prompts[0], {"temperature": 0}), "sampled": Text(prompts[1], SAMPLED)}
        rows = uvloop.run(run(checkpoint, blocks, draft, texts, asked))
    show(rows, console)
    if asked.json:
        asked.json.write_text(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
