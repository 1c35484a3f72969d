"""Decode of a model that caches latents (MLA): `python benchmarks/latents.py [--rounds 5]`; one process, one thread.

The attention of DeepSeek-V2-Lite (16 heads, latents of 512 numbers, rotated keys of 64) with random weights, 4 blocks,
dense, against transformers' `generate`, in turns within each round. transformers expands the whole context at every
step; what that costs grows with the context, and what it takes besides is the linears of both.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Final

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, DeepseekV2Config

from executor import VOCABULARY, generate_ms, load, sessions_of, step_ms
from tables import say, show_table

BLOCKS: Final = 4
CASES: Final = ((1, 64), (1, 1024), (8, 1024))  # batch, context


def make_checkpoint(folder: Path) -> Path:
    torch.manual_seed(0)
    config = DeepseekV2Config(
        vocab_size=VOCABULARY,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=BLOCKS,
        first_k_dense_replace=BLOCKS,
        num_attention_heads=16,
        num_key_value_heads=16,
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
    )
    path = folder / "deepseek"
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    console = Console(width=None if Console().is_terminal else 150)
    table = Table("batch", "context", "transformers", "ours", "times as fast", title="Decode over latents: ms a step")
    with tempfile.TemporaryDirectory() as folder:
        directory = make_checkpoint(Path(folder))
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
        span = load(directory)
        for batch, context in CASES:
            theirs_ms, ours_ms = [], []
            for _ in range(asked.rounds):
                theirs_ms.append(generate_ms(model, batch, context))
                with sessions_of(span, batch, context) as sessions:
                    ours_ms.append(step_ms(span, sessions, context))
            ratio = statistics.median(slow / fast for slow, fast in zip(theirs_ms, ours_ms, strict=True))
            table.add_row(
                str(batch),
                str(context),
                *(
                    f"{statistics.median(taken):.1f} [dim]({min(taken):.1f}..{max(taken):.1f})[/dim]"
                    for taken in (theirs_ms, ours_ms)
                ),
                f"{ratio:.2f}",
            )
    show_table(console, table)
    say(console, f"attention: {span.info.kernel}")


if __name__ == "__main__":
    main()
