"""Attention classes of transformers that compute scores themselves, led through its attention interface instead.

One small function a class, and a table from class to function: the only place where families are named. An adapter acts
only while an attention function of ours is set; otherwise the class's own code runs. That both give the same numbers is
for load_checks.py to find, which also calls `adapt`.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor
from transformers.models.falcon.modeling_falcon import FalconAttention, apply_rotary_pos_emb
from transformers.models.gptj.modeling_gptj import GPTJAttention

from swarm_model.attention import PAGED, Alibi
from swarm_model.masks import MASK_PROBE

OURS: Final = (PAGED, MASK_PROBE)


def adapt(model: Any, device: torch.device) -> None:
    """Give the attention modules of a model on `device` their adapter, where they need one."""
    for module in model.modules():
        if (adapter := ADAPTERS.get(type(module))) is not None:
            adapter(module, model.config, device)


def _attend(module: Any, config: Any, *states: torch.Tensor | None, **options: Any) -> torch.Tensor:
    """Call the attention function of the interface; returns `[1, tokens, heads, head size]`."""
    attended: torch.Tensor
    attended, _ = ALL_ATTENTION_FUNCTIONS[config._attn_implementation](module, *states, **options)
    return attended


def _slopes(heads: int, device: torch.device) -> torch.Tensor:
    """Give the linear bias of each head for one token, `[heads]`."""
    biases: torch.Tensor = build_alibi_tensor(torch.ones(1, 2, device=device), heads, torch.float32)  # [heads, 1, 2]
    return biases[:, 0, 1]


def _adapt_bloom(attention: Any, config: Any, device: torch.device) -> None:
    own = attention.forward
    alibi = Alibi(_slopes(attention.num_heads, device))

    def forward(
        hidden_states: torch.Tensor, residual: torch.Tensor, *args: Any, layer_past: Any = None, **kwargs: Any
    ) -> Any:
        if config._attn_implementation not in OURS:
            return own(hidden_states, residual, *args, layer_past=layer_past, **kwargs)
        query, key, value = attention._reshape(attention.query_key_value(hidden_states))
        key, value = layer_past.update(key, value, attention.layer_idx)
        mask, scale = kwargs["attention_mask"], attention.inv_norm_factor
        attended = _attend(attention, config, query, key, value, mask, scaling=scale, alibi=alibi)
        return residual + attention.dense(attended.reshape(hidden_states.shape)), None

    attention.forward = forward


def _adapt_falcon(attention: Any, config: Any, device: torch.device) -> None:
    own = attention.forward
    slopes = _slopes(attention.num_heads, device)
    linear_bias = Alibi(slopes.bfloat16(), attention.inv_norm_factor)  # transformers rounds Falcon's in any dtype

    def forward(
        hidden_states: torch.Tensor, layer_past: Any = None, alibi: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        if config._attn_implementation not in OURS:
            return own(hidden_states, layer_past=layer_past, alibi=alibi, **kwargs)
        heads = attention._split_heads(attention.query_key_value(hidden_states))
        query, key, value = (states.transpose(1, 2) for states in heads)  # [1, heads, tokens, head size]
        if alibi is None:
            query, key = apply_rotary_pos_emb(query, key, *kwargs["position_embeddings"])
        key, value = (states[:, :: states.shape[1] // attention.num_kv_heads] for states in (key, value))  # no copies
        key, value = layer_past.update(key, value, attention.layer_idx)
        mask, scale = kwargs["attention_mask"], attention.inv_norm_factor
        bias = None if alibi is None else linear_bias
        attended = _attend(attention, config, query, key, value, mask, scaling=scale, alibi=bias)
        return attention.dense(attended.reshape(hidden_states.shape)), None

    attention.forward = forward


def _adapt_gptj(attention: Any, config: Any, _: torch.device) -> None:
    own = attention._attn

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any = None) -> Any:
        if config._attn_implementation not in OURS:
            return own(query, key, value, mask)
        scale = 1.0 / attention.scale_attn
        return _attend(attention, config, query, key, value, mask, scaling=scale).transpose(1, 2), None

    attention._attn = attend


ADAPTERS: Final[dict[type, Callable[[Any, Any, torch.device], None]]] = {
    BloomAttention: _adapt_bloom,
    FalconAttention: _adapt_falcon,
    GPTJAttention: _adapt_gptj,
}
