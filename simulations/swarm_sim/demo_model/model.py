"""The two Llamas and what is special about training them.

Owns their shapes and the dropout; the loop is in `train.py`, which calls this.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides a Llama's number of parameters, besides its vocabulary."""

    blocks: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int


class Size(StrEnum):
    """The pair of models to train: those that the package ships, or ones of seconds to try the script."""

    DEMO = "demo"
    TINY = "tiny"


LLAMA_SHAPES = {
    Size.DEMO: Shape(blocks=12, hidden=256, intermediate=672, heads=8, kv_heads=4),
    Size.TINY: Shape(blocks=2, hidden=32, intermediate=64, heads=4, kv_heads=2),
}
DRAFT_SHAPES = {
    Size.DEMO: Shape(blocks=2, hidden=160, intermediate=448, heads=5, kv_heads=5),
    Size.TINY: Shape(blocks=1, hidden=16, intermediate=32, heads=2, kv_heads=2),
}


def new_llama(shape: Shape, vocabulary: int, end_token: int) -> LlamaForCausalLM:
    """Return an untrained Llama in float32, its head tied to its embedding; torch's global seed decides its weights."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end_token,
        pad_token_id=end_token,
    )
    return LlamaForCausalLM(config)


@contextmanager
def residual_dropout(model: LlamaForCausalLM, share: float) -> Iterator[None]:
    """Drop a share of whatever enters the residual stream, while training.

    Llama has no such dropout, so hooks add it and the saved model stays a plain Llama. Dropout inside attention, which
    Llama does have, would switch off the fused kernel: three times the time of a step on a CPU.
    """

    def drop(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return functional.dropout(output, share, module.training)

    entrances: list[nn.Module] = [model.model.embed_tokens]
    for layer in model.model.layers:
        entrances += [layer.self_attn.o_proj, layer.mlp.down_proj]
    hooks = [entrance.register_forward_hook(drop) for entrance in entrances]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
