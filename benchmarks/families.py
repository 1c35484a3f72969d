"""Decode of models that are no plain Llama: `python benchmarks/families.py [--rounds 5]`; one process, one thread.

`latents`: the attention of DeepSeek-V2-Lite (MLA: 16 heads, latents of 512 numbers, rotated keys of 64) in 4 dense
blocks; transformers expands the whole context at every step. `experts`: 4 blocks of a small Mixtral, 2 of 8 experts for
each token. Random weights, bfloat16, against transformers' `generate`, in turns within each round.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import AutoModelForCausalLM, DeepseekV2Config, MixtralConfig

from executor import VOCABULARY, generate_ms, load, sessions_of, step_ms
from tables import show_table

BLOCKS: Final = 4
COMMON: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 16,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": None,
}
MODELS: Final = {
    "latents": DeepseekV2Config(
        **COMMON,
        hidden_size=2048,
        intermediate_size=5632,
        first_k_dense_replace=BLOCKS,
        num_key_value_heads=16,
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
    ),
    "experts": MixtralConfig(
        **COMMON,
        hidden_size=1024,
        intermediate_size=2048,
        num_key_value_heads=4,
        num_local_experts=8,
        num_experts_per_tok=2,
    ),
}
CASES: Final = {"latents": ((1, 64), (1, 1024), (8, 1024)), "experts": ((1, 64), (8, 64), (32, 64))}  # batch, context


def spread(taken_ms: Sequence[float]) -> str:
    return f"{statistics.median(taken_ms):.1f} [dim]({min(taken_ms):.1f}..{max(taken_ms):.1f})[/dim]"


def times(above: Sequence[float], below: Sequence[float]) -> str:
    """How many times as fast the second is, the median over the rounds."""
    return f"{statistics.median(slow / fast for slow, fast in zip(above, below, strict=True)):.2f}"


def measure(name: str, folder: Path, rounds: int, table: Table, progress: Progress) -> None:
    """Add a model's rows."""
    torch.manual_seed(0)
    directory = folder / name
    AutoModelForCausalLM.from_config(MODELS[name], dtype=torch.bfloat16).save_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
    bf16, int8 = load(directory), load(directory, "int8")
    task = progress.add_task(name, total=rounds * len(CASES[name]))
    for batch, context in CASES[name]:
        theirs_ms, bf16_ms, int8_ms = [], [], []
        for _ in range(rounds):
            theirs_ms.append(generate_ms(model, batch, context))
            for span, taken_ms in ((bf16, bf16_ms), (int8, int8_ms)):
                with sessions_of(span, batch, context) as sessions:
                    taken_ms.append(step_ms(span, sessions, context))
            progress.advance(task)
        table.add_row(
            name,
            str(batch),
            str(context),
            *(spread(taken_ms) for taken_ms in (theirs_ms, bf16_ms, int8_ms)),
            times(theirs_ms, bf16_ms),
            times(bf16_ms, int8_ms),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    console = Console(width=None if Console().is_terminal else 150)
    table = Table("model", "batch", "context", "transformers", "bf16", "int8", "bf16 / transformers", "int8 / bf16")
    table.title = "Decode: ms a step, and how many times as fast"
    with tempfile.TemporaryDirectory() as folder, Progress(console=console, transient=True) as progress:
        for name in MODELS:
            measure(name, Path(folder), asked.rounds, table, progress)
    show_table(console, table)


if __name__ == "__main__":
    main()
