"""Tiny random checkpoints of each family that must be exact, made where and when a test wants them."""

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from swarm_model.acceleration import Acceleration
from swarm_model.checkpoint import Checkpoint
from swarm_model.sizing import QuantizationName
from swarm_model.span import Span

BLOCKS = 6
VOCABULARY = 96
LONGEST = 256
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LONGEST,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 7, "head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 16, "tie_word_embeddings": True},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
# Multiplies embeddings and logits outside its modules, so that spans must go through the model's own forward
INLINE = {
    "granite": {
        "embedding_multiplier": 6.0,
        "residual_multiplier": 0.4,
        "logits_scaling": 3.0,
        "attention_multiplier": 0.2,
    }
}
# Keep a running state of each session beside KV pages, or nothing else
RUNNING = {
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention", "conv", "conv"]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "chunk_size": 8},
}
CPU = torch.device("cpu")


def make_checkpoint(family: str, directory: Path, *, seed: int = 1, **changes: Any) -> Path:
    """Save a random model of a family in several shards; weights are large enough that every token matters."""
    torch.manual_seed(seed)
    if "text_config" in changes:
        changes = {**changes, "text_config": {**COMMON, **changes["text_config"]}, "tie_word_embeddings": False}
    else:
        changes = {**COMMON, **(FAMILIES | INLINE | RUNNING).get(family, {}), **changes}
    config = CONFIG_MAPPING[family](**changes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.5 if "embed" in name else 0.12)
            else:
                parameter.add_(torch.randn_like(parameter) * (0.1 if "norm" in name else 0.3))
    model.save_pretrained(directory, max_shard_size="60KB")
    return directory


@cache
def load_reference(directory: Path, dtype: torch.dtype, attention: str = "eager") -> Any:
    """Load the whole model with transformers."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation=attention).eval()


def load_transformers(directory: Path) -> Any:
    """Load the whole model as transformers does if nothing is asked for but float32."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def load_spans(
    directory: Path,
    cuts: list[int],
    *,
    dtype: torch.dtype = torch.float32,
    kv_bytes: int = 4 << 20,
    page_size: int = 4,
    quantize: QuantizationName = "none",
    acceleration: Acceleration | None = None,
) -> list[Span]:
    """Load the spans between neighbouring cuts."""
    checkpoint = Checkpoint.open(directory)
    return [
        Span.load(
            checkpoint,
            start,
            end,
            device=CPU,
            dtype=dtype,
            kv_bytes=kv_bytes,
            page_size=page_size,
            quantize=quantize,
            acceleration=acceleration,
        )
        for start, end in pairwise(cuts)
    ]
