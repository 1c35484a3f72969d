"""Attention of a ragged batch over paged KV, behind transformers' two doors: cache object and attention function.

A block's modelling code hands new keys and values to `PagedKV.update`, which stores them in pages, and then calls the
attention function registered here, which reads each session's tokens back from its pages. Refuses (UnsupportedModel)
whatever it does not know how to honour, so that no family is silently computed wrong. Driven by drivers.py.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812  the name everybody knows it by
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from swarm_model.errors import UnsupportedModel
from swarm_model.kernels import Asked, Kernel
from swarm_model.kv_pool import KVPool
from swarm_model.latents import Absorbed
from swarm_model.step import Step, Stretch

PAGED: Final = "swarm_paged"
MANY_ROWS: Final = 32  # chunks from which on the choice of the kernel matters
CACHED_SCORES: Final = 1 << 20  # values
HAS_BFLOAT16_PRODUCTS: Final = bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
# Arguments of attention functions that change nothing for causal inference over pages
# (windows and chunks stand in the masks, which were read when the span was loaded: masks.py)
HARMLESS: Final = frozenset(
    {
        "dropout",
        "position_ids",
        "use_cache",
        "output_router_logits",
        "output_attentions",
        "sliding_window",
        "is_causal",
    }
)


@dataclass(frozen=True, slots=True)
class Attending:
    """How a block's attention reads its session's tokens.

    `window` counts those seen, 0 means all; with `chunk`, tokens see their own chunk of so many tokens alone; `latent`
    means that the pages hold a compressed form which the block's `expand_kv` turns into keys and values (latents.py).
    """

    window: int = 0
    chunk: int = 0
    latent: bool = False

    def reach(self, tokens: int, length: int) -> int:
        """Count the last of `length` tokens that the last `tokens` of them read, all together."""
        if self.window:
            return min(length, tokens + self.window - 1)
        if self.chunk:
            return length - (length - tokens) // self.chunk * self.chunk
        return length


@dataclass(frozen=True, slots=True)
class Alibi:
    """Linear biases (Press et al., arXiv 2108.12409): the score of a key grows with its position, head by head."""

    slopes: torch.Tensor  # [heads]; products with positions are rounded to its type
    scale: float = 1.0

    def bias(self, keys: int) -> torch.Tensor:
        """Give what is added to scores, `[heads, 1, keys]`, for a session's first `keys` tokens."""
        positions = torch.arange(keys, device=self.slopes.device)
        return (self.slopes[:, None, None] * positions).float() * self.scale


class StepCache:
    """What modelling code may ask of the cache object in a packed step."""

    is_compileable: Final = False
    step: Step

    def get_seq_length(self, layer_idx: int | None = None) -> torch.Tensor | int:
        """Give a layer's rows their positions less their places in the step: its code adds the places again.

        Without a layer it is asked for the sake of position ids or masks, which are given or read otherwise.
        """
        if layer_idx is None:
            return 0
        positions = self.step.positions[0]
        return positions - torch.arange(len(positions), device=positions.device)

    def get_mask_sizes(self, query_length: int, *_: Any) -> tuple[int, int]:
        return query_length, 0

    def get_query_offset(self, *_: Any) -> int:
        return 0

    def __bool__(self) -> bool:
        return True


class PagedKV(StepCache):
    """Stands in for transformers' cache: stores what blocks give it, lends pool and step to the attention function."""

    def __init__(self, pool: KVPool, attending: dict[int, Attending], family: str) -> None:
        self.pool = pool
        self.attending: Final = attending  # layer index -> how it attends
        self.family: Final = family
        self.kernel: Kernel | None = None  # for all sessions at once; without one they are attended one by one
        self.asked: Final[dict[int, Asked]] = {}  # layer index -> what its attention asks
        self.absorbed: dict[int, Absorbed] = {}  # layer index -> how it attends to latents without expanding them
        self._given: tuple[int, torch.Tensor, torch.Tensor] | None = None

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a block's new keys and values, `[1, kv heads, tokens, head size]`; give them back as they are."""
        step = self.step
        for pool, new in ((self.pool.keys[layer_idx], keys), (self.pool.values[layer_idx], values)):
            rows = new[0].transpose(0, 1)  # [tokens, kv heads, head size]
            if step.first_slot is not None:
                pool.narrow(0, step.first_slot, step.tokens).copy_(rows)
            else:
                pool.index_copy_(0, step.slots, rows)
        self._given = (layer_idx, keys, values)
        return keys, values

    def check_given(self, layer_idx: int, keys: torch.Tensor, values: torch.Tensor) -> Attending:
        """Give how a block attends. Raises UnsupportedModel unless the pages hold these keys and values."""
        given, self._given = self._given, None
        attending = self.attending.get(layer_idx)
        if attending is None or given is None or given[0] != layer_idx:
            raise UnsupportedModel(self.family, "its attention reads other keys and values than it gives to the cache")
        if not attending.latent and not (given[1] is keys and given[2] is values):
            raise UnsupportedModel(self.family, "its attention reads other keys and values than it gives to the cache")
        return attending


def paged_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    alibi: Alibi | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend each chunk of the step to its session's tokens.

    `query` is `[1, heads, tokens, head size]`; returns `[1, tokens, heads, value size]`. The keys and values given are
    those that `PagedKV.update` has stored. `s_aux` `[heads]` are the scores of attention sinks.
    """
    kv: PagedKV = module.paged_kv  # type: ignore[assignment]  # set when the span is loaded
    layer_idx: int = module.layer_idx  # type: ignore[assignment]
    attending = kv.check_given(layer_idx, key, value)
    if attention_mask is not None:
        raise UnsupportedModel(kv.family, "its attention wants a mask of its own")
    if not others.keys() <= HARMLESS:
        _refuse_unknown(kv.family, others)
    keys, values = kv.pool.keys[layer_idx], kv.pool.values[layer_idx]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    absorbed = kv.absorbed.get(layer_idx)
    stretches, outputs = kv.step.stretches, []
    if (kernel := kv.kernel) is not None and (absorbed is not None or not attending.latent):
        cached = (keys, values) if absorbed is None else (kv.pool.latents[layer_idx], keys)
        if (asked := kv.asked.get(layer_idx)) is None:
            asked = kv.asked[layer_idx] = Asked(
                heads=query.shape[1],
                kv_heads=cached[0].shape[1],
                key_size=cached[0].shape[2],
                value_size=cached[1].shape[2],
                dtype=query.dtype,
                scale=scale,
                window=attending.window,
                chunk=attending.chunk,
                softcap=softcap,
                has_sinks=s_aux is not None,
                has_biases=alibi is not None,
            )
        if kernel.serves(asked) and (layout := kv.step.layout(kernel.longest_chunk)) is not None:
            rows = query[:, :, : layout.rows]
            rows = rows if absorbed is None else absorbed.query(rows)
            attended = kernel.attend(rows[0].transpose(0, 1), *cached, layout, asked, s_aux)  # [rows, heads, size]
            if absorbed is None and layout.rows == query.shape[2]:
                return attended[None].contiguous(), None
            of_rows = attended.transpose(0, 1)[None]
            outputs.append(of_rows if absorbed is None else absorbed.values(of_rows))
            stretches = stretches[len(layout.host_lengths) :]
    rule = _Rule(attending, scale, softcap, s_aux, alibi)
    for stretch in stretches:
        rows = query if stretch.tokens == query.shape[2] else query.narrow(2, stretch.offset, stretch.tokens)
        # Only the last tokens are read: those of the chunk, and what its first token reaches
        reach = attending.reach(stretch.tokens, stretch.length)
        if absorbed is not None and absorbed.pays(stretch.tokens, reach):
            read = [_tokens_of(kv.step, pool, stretch, reach) for pool in (kv.pool.latents[layer_idx], keys)]
            outputs.append(absorbed.values(_attend(kv.step, absorbed.query(rows), read[0], read[1], rule)))
            continue
        read = [_tokens_of(kv.step, pool, stretch, reach) for pool in (keys, values)]
        if attending.latent:
            read = module.expand_kv(*read)  # type: ignore[operator]
        outputs.append(_attend(kv.step, rows, read[0], read[1], rule))
    attended = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)  # [1, heads, tokens, value size]
    return attended.transpose(1, 2).contiguous(), None


@dataclass(frozen=True, slots=True)
class _Rule:
    """How a block's scores become shares."""

    attending: Attending
    scale: float
    softcap: float | None
    sinks: torch.Tensor | None
    alibi: Alibi | None

    @property
    def is_plain(self) -> bool:
        return self.softcap is None and self.sinks is None and self.alibi is None


def _attend(step: Step, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rule: _Rule) -> torch.Tensor:
    """Attend a chunk, `[1, heads, tokens, size]`, to the last tokens of its session, `[1, kv heads, reach, size]`.

    Returns `[1, heads, tokens, value size]`.
    """
    tokens, reach = rows.shape[2], keys.shape[2]
    if tokens == 1 and rule.is_plain:
        return _attend_one(rows, keys, values, rule.scale)
    window, chunk = rule.attending.window, rule.attending.chunk
    by_scores = not rule.is_plain or (tokens >= MANY_ROWS and _scores_are_quicker(rows))
    hides = 0 < window < reach or 0 < chunk < reach  # more than what comes later
    causal = reach == tokens and not hides and not by_scores
    mask = None
    if tokens > 1 and not causal:
        mask = step.mask(tokens, reach, window if hides else 0, chunk if hides else 0)
    if by_scores:
        bias = None if rule.alibi is None else rule.alibi.bias(reach)
        return _attend_by_scores(rows, keys, values, mask, rule.scale, rule.softcap, rule.sinks, bias)
    return F.scaled_dot_product_attention(rows, keys, values, mask, is_causal=causal, scale=rule.scale, enable_gqa=True)


def _tokens_of(step: Step, pool: torch.Tensor, stretch: Stretch, reach: int) -> torch.Tensor:
    """Read the last `reach` tokens of a session, in place where its pages follow one another.

    Returns `[1, kv heads, reach, head size]`.
    """
    skipped = stretch.length - reach
    heads = pool.transpose(0, 1)  # [kv heads, slots, head size]
    if stretch.first_slot is not None:
        return heads.narrow(1, stretch.first_slot + skipped, reach).unsqueeze(0)
    return heads.index_select(1, step.slots_of(stretch)[skipped:]).unsqueeze(0)


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
    sinks: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Attention written out, some heads at a time so that their scores stay in the processor's cache.

    With `softcap`, scores pass through softcap * tanh(scores / softcap) (Gemma 2, arXiv 2408.00118, section 2). `sinks`
    `[heads]` take part in the softmax as if each head had one more key without a value (gpt-oss, after Xiao et al.,
    arXiv 2309.17453). `bias` `[heads, 1, length]` is added to the scores. Operations and their order are those of
    transformers' eager attention.
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
        by_head = scores.view(-1, rows, length)  # [some heads, rows, length]
        if bias is not None:
            by_head.add_(bias[first * group : first * group + len(by_head)])
        if mask is not None:
            by_head.add_(mask)
        if sinks is None:
            shares = torch.softmax(scores, dim=-1)
        else:
            some_sinks = sinks[first * group : first * group + len(by_head)].to(scores.dtype)
            with_sinks = torch.cat((by_head, some_sinks[:, None, None].expand(-1, rows, 1)), dim=-1)
            shares = torch.softmax(with_sinks, dim=-1)[..., :-1].reshape(scores.shape)
        outputs.append(torch.bmm(shares, values[0, some]))
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
