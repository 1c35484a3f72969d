"""How far each format of `--quantize` takes a model from its bfloat16 self: part of `executor.py`.

Texts are drawn from the model itself in float32, so that they are what it would meet. KL is the mean over tokens of the
Kullback-Leibler divergence of the format's distribution of the next token from bfloat16's, in nats; top-1 is how often
both would say the same greedily. The row of float32 shows what bfloat16 itself changes. Random models say little about
trained ones: their distributions are almost flat, so that the smallest change turns their first choice.
"""

from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from swarm_model.checkpoint import Checkpoint
from swarm_model.errors import FormatUnavailable
from swarm_model.loading import weight_bytes
from swarm_model.quantization import format_for
from swarm_model.quantized_loading import load_quantized
from swarm_model.sizing import QuantizationName
from swarm_model.skeleton import study
from swarm_sim.demo_model import demo_model_path
from tables import show_table

TEXTS: Final = 8
TOKENS: Final = 192
PROMPT: Final = 4
RANDOM: Final[dict[str, dict[str, int]]] = {  # small models of three families: biases, softcaps and windows, experts
    "qwen2": {},
    "gemma2": {"head_dim": 64},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
SHAPE: Final = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "initializer_range": 0.04,
}
FORMATS: Final[tuple[QuantizationName, ...]] = ("int8", "int4", "nf4", "fp8")
CPU: Final = torch.device("cpu")


def show_errors(console: Console, folder: Path, seed: int) -> None:
    """Measure every format that is to be had here on the demo model and on random ones; say why others are not."""
    table = Table("model", "format", "KL from bf16, nats", "KL, 99 % below", "top-1 as bf16", "weights, MB")
    table.title = f"What quantizing changes: {TEXTS} texts of {TOKENS} tokens that the model drew"
    models = {"demo": demo_model_path()}
    for family, more in RANDOM.items():
        torch.manual_seed(seed)
        config = CONFIG_MAPPING[family](**SHAPE, **more)
        models[f"random {family}"] = folder / f"random-{family}"
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(models[f"random {family}"])
    for label, directory in models.items():
        refusals = _add_rows(table, label, directory, seed)
    show_table(console, table)
    for refusal in refusals:
        console.print(f"not here: {refusal}")


def _add_rows(table: Table, label: str, directory: Path, seed: int) -> list[FormatUnavailable]:
    """Add a model's rows; give the formats that were refused."""
    exact = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    torch.manual_seed(seed)
    start = torch.randint(exact.config.vocab_size, (TEXTS, PROMPT))
    with torch.inference_mode():
        texts = exact.generate(start, do_sample=True, max_length=TOKENS, eos_token_id=None, pad_token_id=0, top_k=0)
    half = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
    wanted = _log_probabilities(half, texts)
    table.add_row(label, "bfloat16", "", "", "", f"{weight_bytes(half) / 1e6:.1f}")
    _add_row(table, "float32", exact, texts, wanted)
    checkpoint = Checkpoint.open(directory)
    whole: dict[str, Any] = {"start": 0, "end": checkpoint.num_blocks, "dtype": torch.bfloat16}
    refusals = []
    for name in FORMATS:
        try:
            wanted_format = format_for(name, checkpoint, CPU)
        except FormatUnavailable as refusal:
            refusals.append(refusal)
            continue
        assert wanted_format is not None
        model = load_quantized(checkpoint, study(checkpoint), **whole, wanted=wanted_format, on_bytes=lambda _: None)
        _add_row(table, name, model, texts, wanted)
    table.add_section()
    return refusals


def _add_row(table: Table, name: str, model: Any, texts: torch.Tensor, wanted: torch.Tensor) -> None:
    found = _log_probabilities(model, texts)
    divergence = (wanted.exp() * (wanted - found)).sum(-1).flatten()  # [tokens]
    same = (wanted.argmax(-1) == found.argmax(-1)).float().mean()
    size = f"{weight_bytes(model) / 1e6:.1f}"
    table.add_row("", name, f"{divergence.mean():.5f}", f"{divergence.quantile(0.99):.5f}", f"{same:.1%}", size)


def _log_probabilities(model: Any, texts: torch.Tensor) -> torch.Tensor:
    """Give a model's opinion of each next token: `[texts, tokens, vocabulary]`."""
    with torch.inference_mode():
        return torch.log_softmax(model(texts).logits.float(), dim=-1)
