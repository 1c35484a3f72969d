"""Attention of a ragged batch over paged KV, behind transformers' two doors: cache object and attention function.

A block's modelling code hands new keys and values to `PagedKV.update`, which stores them in pages, and then calls the
attention function registered here, which reads each session's tokens back from its pages. Refuses (UnsupportedModel)
whatever it does not know how to honour, so that no family is silently computed wrong. Driven by drivers.py.
"""

from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812  the name everybody knows it by
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from swarm_model.errors import UnsupportedModel
from swarm_model.kv_pool import KVPool
from swarm_model.step import Step, Stretch

PAGED: Final = "swarm_paged"
MANY_ROWS: Final = 32  # chunks from which on the choice of the kernel matters
CACHED_SCORES: Final = 1 << 20  # values
HAS_BFLOAT16_PRODUCTS: Final = bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
# Arguments of attention functions that change nothing for causal inference over pages
HARMLESS: Final = frozenset({"dropout", "position_ids", "use_cache", "output_router_logits", "output_attentions"})


class PagedKV:
    """Stands in for transformers' cache: stores what blocks give it, lends pool and step to the attention function."""

    is_compileable: Final = False

    def __init__(self, pool: KVPool, first_block: int, family: str) -> None:
        self.pool = pool
        self.first_block: Final = first_block
        self.family: Final = family
        self.step: Step
        self._given: tuple[int, torch.Tensor, torch.Tensor] | None = None

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a block's new keys and values, `[1, kv heads, tokens, head size]`; give them back as they are."""
        block, step = layer_idx - self.first_block, self.step
        for pool, new in ((self.pool.keys[block], keys), (self.pool.values[block], values)):
            rows = new[0].transpose(0, 1)  # [tokens, kv heads, head size]
            if step.first_slot is not None:
                pool.narrow(0, step.first_slot, step.tokens).copy_(rows)
            else:
                pool.index_copy_(0, step.slots, rows)
        self._given = (layer_idx, keys, values)
        return keys, values

    def check_given(self, layer_idx: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Raise UnsupportedModel unless these are the keys and values that the pages hold."""
        given, self._given = self._given, None
        if given is None or given[0] != layer_idx or given[1] is not keys or given[2] is not values:
            raise UnsupportedModel(self.family, "its attention reads other keys and values than it gives to the cache")

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def __bool__(self) -> bool:
        return True


def paged_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend each chunk of the step to its session's tokens.

    `query` is `[1, heads, tokens, head size]`; returns `[1, tokens, heads, value size]`. The keys and values given are
    those that `PagedKV.update` has stored.
    """
    kv: PagedKV = module.paged_kv  # type: ignore[assignment]  # set when the span is loaded
    layer_idx: int = module.layer_idx  # type: ignore[assignment]
    kv.check_given(layer_idx, key, value)
    if attention_mask is not None:
        raise UnsupportedModel(kv.family, "its attention wants a mask of its own")
    if not others.keys() <= HARMLESS:
        _refuse_unknown(kv.family, others)
    block = layer_idx - kv.first_block
    keys, values = kv.pool.keys[block], kv.pool.values[block]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window or 0
    outputs = []
    for stretch in kv.step.stretches:
        rows = query if stretch.tokens == query.shape[2] else query.narrow(2, stretch.offset, stretch.tokens)
        # Only the last tokens are read: those of the chunk, and what the window of its first token reaches
        reach = min(stretch.length, stretch.tokens + window - 1) if window else stretch.length
        session_keys, session_values = _tokens_of(keys, stretch, reach), _tokens_of(values, stretch, reach)
        if stretch.tokens == 1 and softcap is None:
            outputs.append(_attend_one(rows, session_keys, session_values, scale))
            continue
        by_scores = softcap is not None or (stretch.tokens >= MANY_ROWS and _scores_are_quicker(query))
        causal = reach == stretch.tokens and not 0 < window < reach and not by_scores
        mask = None if causal else kv.step.mask(stretch.tokens, reach, window if window < reach else 0)
        if by_scores:
            outputs.append(_attend_by_scores(rows, session_keys, session_values, mask, scale, softcap))
        else:
            outputs.append(
                F.scaled_dot_product_attention(
                    rows, session_keys, session_values, mask, is_causal=causal, scale=scale, enable_gqa=True
                )
            )
    attended = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)  # [1, heads, tokens, value size]
    return attended.transpose(1, 2), None


def _tokens_of(pool: torch.Tensor, stretch: Stretch, reach: int) -> torch.Tensor:
    """Read the last `reach` tokens of a session, in place where its pages follow one another.

    Returns `[1, kv heads, reach, head size]`.
    """
    skipped = stretch.length - reach
    heads = pool.transpose(0, 1)  # [kv heads, slots, head size]
    if stretch.slots is None:
        return heads.narrow(1, stretch.first_slot + skipped, reach).unsqueeze(0)
    return heads.index_select(1, stretch.slots[skipped:]).unsqueeze(0)


def _attend_one(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
    """Attend one token, `[1, heads, 1, head size]`, to all keys; heads that share keys become rows of one head."""
    _, heads, _, size = query.shape
    kv_heads = keys.shape[1]
    grouped = query.reshape(1, kv_heads, heads // kv_heads, size)
    return F.scaled_dot_product_attention(grouped, keys, values, scale=scale).reshape(1, heads, 1, -1)


def _attend_by_scores(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attention written out, some heads at a time so that their scores stay in the processor's cache.

    With `softcap`, scores pass through softcap * tanh(scores / softcap) (Gemma 2, arXiv 2408.00118, section 2).
    Operations and their order are those of transformers' eager attention.
    """
    _, heads, rows, size = query.shape
    kv_heads, length = keys.shape[1], keys.shape[2]
    group = heads // kv_heads
    grouped = query.reshape(kv_heads, group * rows, size)
    at_once = max(1, CACHED_SCORES // (group * rows * length))
    outputs = []
    for first in range(0, kv_heads, at_once):
        some = slice(first, first + at_once)
        scores = torch.bmm(grouped[some], keys[0, some].transpose(1, 2)).mul_(scale)  # [kv heads, group * rows, length]
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        if mask is not None:
            scores.view(-1, rows, length).add_(mask)
        outputs.append(torch.bmm(torch.softmax(scores, dim=-1), values[0, some]))
    attended = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return attended.view(1, heads, rows, -1)


def _scores_are_quicker(query: torch.Tensor) -> bool:
    """torch's CPU flash attention multiplies in float32; products of bfloat16, where they exist, take 1/2 to 1/4.

    Measured for chunks of 128 to 256 tokens over 128 to 2,048 (benchmarks/span.py, first token).
    """
    return query.dtype == torch.bfloat16 and query.device.type == "cpu" and HAS_BFLOAT16_PRODUCTS


def _refuse_unknown(family: str, others: dict[str, Any]) -> None:
    for name, value in others.items():
        if name not in HARMLESS and value is not None and value is not False:
            raise UnsupportedModel(family, f"its attention takes {name}, which is not known here")


ALL_ATTENTION_FUNCTIONS.register(PAGED, paged_attention)
