"""What the codec int8 costs and saves: its effect on the demo model's logits, bytes on the wire, microseconds.

    python benchmarks/codec.py                    about a minute

Logits: the demo model reads text that it drew itself (temperature 1), once as it is and once with the activations
between hops encoded and decoded as nodes do it. KL divergence is that of the altered distribution from the exact one,
in nats a token, over all positions; `top-1` is how often the likeliest token stays the same. bfloat16 against float32,
without any codec, stands beside it for comparison. Time: one token and 64 at once, medians.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from swarm_model.int8_codec import decode, encode, token_bytes
from swarm_sim.demo_model import demo_model_path
from swarm_sim.splits import split_evenly
from tables import show_table

WIDTHS = (256, 2048, 4096, 8192)


def load(dtype: torch.dtype) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=dtype).eval()


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


def add_effect(table: Table, label: str, per_token: str, exact: torch.Tensor, altered: torch.Tensor) -> None:
    divergence = (exact.exp() * (exact - altered)).sum(-1)
    same = (exact.argmax(-1) == altered.argmax(-1)).float().mean()
    table.add_row(
        label, per_token, f"{divergence.mean():.6f}", f"{divergence.quantile(0.99):.6f}", f"{100 * float(same):.2f} %"
    )


def microseconds(work: Callable[[], object], repeat: int) -> float:
    taken = []
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1e6


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    console = Console(width=130)
    console.print(f"seed {options.seed}, 1 thread; torch {torch.__version__}, {platform.machine()}")

    models = {"float32": load(torch.float32), "bfloat16": load(torch.bfloat16)}
    ids = draw_texts(models["float32"], options.texts, options.tokens)
    exact = {name: log_probabilities(model, ids) for name, model in models.items()}
    hidden, blocks = models["float32"].config.hidden_size, models["float32"].config.num_hidden_layers
    effect = Table(
        "demo model", "bytes a token and hop", "KL, mean", "KL, 99 %", "top-1", title=f"{ids.numel()} tokens"
    )
    add_effect(effect, "bfloat16 against float32, raw", str(2 * hidden), exact["float32"], exact["bfloat16"])
    for name, model in models.items():
        for hops in (2, 4, blocks):
            cuts = [end for _, end in split_evenly(blocks, hops)][:-1]
            with coded_between(model, cuts):
                altered = log_probabilities(model, ids)
            raw_bytes = hidden * model.dtype.itemsize
            saved = f"{token_bytes(hidden)} for {raw_bytes}"
            add_effect(effect, f"{name}, int8 between {hops} hops", saved, exact[name], altered)
    show_table(console, effect)

    cost = Table(
        "width", "raw bfloat16, bytes", "int8, bytes", "share", "encode, us", "decode, us", "of 64: encode", "decode"
    )
    for width in WIDTHS:
        cells = []
        for tokens in (1, 64):
            values = torch.randn(tokens, width).to(torch.bfloat16)
            data = encode(values).flatten()
            works = (lambda v=values: encode(v), lambda d=data, t=tokens, w=width: decode(d, t, w))
            cells += [f"{microseconds(work, options.repeat) / tokens:.1f}" for work in works]
        share = f"{100 * token_bytes(width) / (2 * width):.1f} %"
        cost.add_row(str(width), str(2 * width), str(token_bytes(width)), share, *cells)
    show_table(console, cost)


if __name__ == "__main__":
    main()
