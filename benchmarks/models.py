"""The random Llamas that `decode.py` and `hops.py` measure with."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SEED = 0
VOCABULARY = 32_000
MODELS = {"small": (512, 8, 1408), "large": (1024, 16, 2816)}  # hidden, blocks, intermediate


def make_checkpoint(directory: Path, name: str) -> Path:
    """Save a random Llama in bfloat16."""
    hidden, blocks, intermediate = MODELS[name]
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=blocks,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    path = directory / f"llama-{name}"
    model.save_pretrained(path)
    return path
