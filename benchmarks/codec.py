"""What the codec int8 costs and saves: its effect on logits, bytes on the wire, microseconds, in one table.

    python benchmarks/codec.py                    two to four minutes

Logits: the demo model, and a random Llama of 12 blocks that is four times as wide, read text that each drew itself
(temperature 1), once as it is and once with the activations between hops encoded and decoded as nodes do it. KL
divergence is that of the altered distribution from the exact one, in nats a token, over all positions; `top-1` is how
often the likeliest token stays the same. bfloat16 against float32, without any codec, stands beside it for comparison.
Random weights give flat distributions: hardly any divergence, and a likeliest token that is hardly ahead of the next.
Time: a token alone, and of 64 at once, medians.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from swarm_model.int8_codec import decode, encode, token_bytes
from swarm_sim.demo_model import demo_model_path
from swarm_sim.splits import split_evenly
from tables import show_table

WIDTHS = (2048, 4096, 8192)
RANDOM = LlamaConfig(
    vocab_size=8192,
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=12,
    num_attention_heads=16,
    num_key_value_heads=8,
)
TIMES = ("encode, us", "decode, us", "of 64: encode", "of 64: decode")


def demo_model(dtype: torch.dtype) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=dtype).eval()


def random_model(dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(RANDOM).to(dtype).eval()


def draw_texts(model: torch.nn.Module, texts: int, tokens: int) -> torch.Tensor:
    """Return ids [texts, tokens] that the model draws, each text from another first token."""
    first = torch.randint(2, model.config.vocab_size, (texts, 1))
    return model.generate(
        first, do_sample=True, temperature=1.0, top_k=0, min_new_tokens=tokens - 1, max_new_tokens=tokens - 1
    )


@contextmanager
def coded_between(model: torch.nn.Module, cuts: Sequence[int]) -> Iterator[None]:
    """Pass what leaves the block before each cut through the codec."""

    def through_codec(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        texts, tokens, hidden = output.shape
        data = encode(output.view(texts * tokens, hidden))
        return decode(data.flatten(), texts * tokens, hidden).view(output.shape).to(output.dtype)

    hooks = [model.model.layers[cut - 1].register_forward_hook(through_codec) for cut in cuts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def log_probabilities(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([model(row[None]).logits[0].float().log_softmax(-1) for row in ids])  # [positions, vocabulary]


def effect(exact: torch.Tensor, altered: torch.Tensor) -> tuple[str, str, str]:
    """Return mean and 99 % of the divergence, and how often the likeliest token stays."""
    divergence = (exact.exp() * (exact - altered)).sum(-1)
    same = (exact.argmax(-1) == altered.argmax(-1)).float().mean()
    return f"{divergence.mean():.6f}", f"{divergence.quantile(0.99):.6f}", f"{100 * float(same):.2f} %"


def microseconds(work: Callable[[], object], repeat: int) -> float:
    taken = []
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1e6


def times(width: int, dtype: torch.dtype, repeat: int) -> list[str]:
    """Return microseconds a token to encode and to decode, alone and of 64 at once."""
    cells = []
    for tokens in (1, 64):
        values = torch.randn(tokens, width).to(dtype)
        data = encode(values).flatten()
        works = (lambda v=values: encode(v), lambda d=data, t=tokens: decode(d, t, width))
        cells += [f"{microseconds(work, repeat) / tokens:.1f}" for work in works]
    return cells


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=150)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}"
    console.print(f"seed {options.seed}, 1 thread, {options.texts} texts of {options.tokens} tokens; {versions}")
    table = Table("model", "width", "codec", "bytes a token", "KL, mean", "KL, 99 %", "top-1", *TIMES)

    for name, load in (("demo", demo_model), ("random", random_model)):
        models = {"float32": load(torch.float32), "bfloat16": load(torch.bfloat16)}
        torch.manual_seed(options.seed)
        ids = draw_texts(models["float32"], options.texts, options.tokens)
        exact = {dtype: log_probabilities(model, ids) for dtype, model in models.items()}
        hidden, blocks = models["float32"].config.hidden_size, models["float32"].config.num_hidden_layers
        raw_cells = (str(2 * hidden), *effect(exact["float32"], exact["bfloat16"]))
        table.add_row(f"{name}, float32", str(hidden), "raw bfloat16", *raw_cells, *[""] * len(TIMES))
        for dtype, model in models.items():
            cost = times(hidden, model.dtype, options.repeat)
            for hops in (2, 4, blocks):
                cuts = [end for _, end in split_evenly(blocks, hops)][:-1]
                with coded_between(model, cuts):
                    altered = log_probabilities(model, ids)
                saved = f"{token_bytes(hidden)} for {hidden * model.dtype.itemsize}"
                cells = (saved, *effect(exact[dtype], altered), *cost)
                table.add_row(f"{name}, {dtype}", str(hidden), f"int8, {hops} hops", *cells)
                cost = [""] * len(TIMES)
    for width in WIDTHS:
        cells = (f"{token_bytes(width)} for {2 * width}", "", "", "", *times(width, torch.bfloat16, options.repeat))
        table.add_row("bfloat16", str(width), "int8", *cells)
    show_table(console, table)


if __name__ == "__main__":
    main()
