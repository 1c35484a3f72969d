"""How much memory a span takes, before any weight is read: for choosing a span, and for refusing one with numbers.

Works from the configuration and the tensor headers alone. Weights are counted by name (a block's tensors carry its
number), so these are estimates; what was really loaded stands in SpanInfo. Called by the node before loading, and by
span.py. Imports no torch.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from swarm_model.checkpoint import Checkpoint
from swarm_model.errors import KVPoolTooSmall, NotEnoughMemory, SpanOutsideModel
from swarm_model.tensor_files import TensorInfo

DtypeName = Literal["float32", "bfloat16", "float16"]
FLOATS: Final = ("F64", "F32", "BF16", "F16")
BESIDE_WEIGHTS: Final = re.compile(r"(scales?|scale_inv|zero_point|shape)$")  # of expanded weights, dropped with them
QuantizationName = Literal["none", "int8", "int4", "nf4", "fp8"]
DTYPE_BYTES: Final[dict[str, int]] = {"float32": 4, "bfloat16": 2, "float16": 2}
INT8_BYTES: Final = 1.01  # of a weight, with its share of a scale, fp8's too; the head is int8 in any format
GROUP: Final = 64  # weights of 4 bits that share a scale, in int4 also an offset
SCALES_BYTES: Final = 4  # of a group
READ_AT_ONCE_BYTES: Final = 1 << 26  # of blocks that are held unquantized while a span is loaded
EXPERTS: Final = re.compile(r"\.experts?\.")  # of a mixture, one by one or fused
COUNTED_PAGES: Final = 1 << 20  # at most, where pages take no memory but their bookkeeping
EXPECTED_TOKENS: Final = 1024  # of a session, where memory is divided between states and pages
BLOCK_NUMBER: Final = re.compile(r"\.(\d+)\.")
EMBEDDING: Final = re.compile(r"(^|\.)(embed_tokens|wte|wpe|word_embeddings|embed_in|tok_embeddings)\.")


@dataclass(frozen=True, slots=True)
class WeightSizes:
    """Bytes of weights: of each block, and of what the first and the last span hold besides.

    `loading` is what loading holds at once on top of that, because it is not quantized yet.
    """

    blocks: tuple[int, ...]
    first_edge: int
    last_edge: int
    loading: int = 0

    def span(self, start: int, end: int) -> int:
        """Sum the bytes of blocks `start` to `end` with the edges that they need. Raises SpanOutsideModel."""
        if not 0 <= start < end <= len(self.blocks):
            raise SpanOutsideModel((start, end), len(self.blocks))
        first = self.first_edge if start == 0 else 0
        last = self.last_edge if end == len(self.blocks) else 0
        return sum(self.blocks[start:end]) + first + last


def weight_sizes(
    checkpoint: Checkpoint,
    dtype: DtypeName,
    quantization: QuantizationName = "none",
    *,
    expanded: bool = False,
    experts: bool = True,
) -> WeightSizes:
    """Estimate what a checkpoint's weights take once they are loaded in `dtype` and quantized.

    Those of a checkpoint that is quantized already count as they are stored, if they are not `expanded`; `experts` says
    whether those of a mixture are quantized, too.
    """
    plain = DTYPE_BYTES[dtype]
    head = 1.0 if quantization == "none" else INT8_BYTES / plain
    matrix = (0.5 + SCALES_BYTES / GROUP) / plain if quantization in ("int4", "nf4") else head
    bits = bits_of(checkpoint.quantization) if expanded else 0
    blocks, whole_blocks = [0] * checkpoint.num_blocks, [0] * checkpoint.num_blocks
    embedding = tied_head = others = 0
    has_head = False
    for name, tensor in checkpoint.tensors.items():
        size = loaded_bytes(tensor, dtype, bits)
        is_matrix = len(tensor.shape) == 2
        number = BLOCK_NUMBER.search(name)
        if number is not None and int(number[1]) < len(blocks):
            of_experts = bool(EXPERTS.search(name))
            quantized = (experts and len(tensor.shape) >= 2) if of_experts else is_matrix
            blocks[int(number[1])] += int(size * matrix) if quantized else size
            whole_blocks[int(number[1])] += size
        elif EMBEDDING.search(name):
            embedding += size
            tied_head += int(size * head)
        else:
            others += int(size * head) if is_matrix else size
            has_head = has_head or is_matrix
    loading = 0 if quantization == "none" else min(max(READ_AT_ONCE_BYTES, *whole_blocks), sum(whole_blocks))
    return WeightSizes(tuple(blocks), embedding, others if has_head else others + tied_head, loading)


def blocks_at_once(checkpoint: Checkpoint, dtype: DtypeName, *, expanded: bool) -> int:
    """Say how many blocks are read at once where they are quantized before the next ones are."""
    return max(1, READ_AT_ONCE_BYTES // max(weight_sizes(checkpoint, dtype, expanded=expanded).blocks))


def loaded_bytes(tensor: TensorInfo, dtype: DtypeName, expanded_bits: int) -> int:
    """Estimate what a tensor takes in memory; `expanded_bits` of it become one value of `dtype`, 0: it stays packed."""
    stored = tensor.end - tensor.start
    if tensor.dtype in FLOATS:
        return tensor.elements * DTYPE_BYTES[dtype]
    if expanded_bits == 0:
        return stored
    return 0 if BESIDE_WEIGHTS.search(tensor.name) else stored * 8 // expanded_bits * DTYPE_BYTES[dtype]


def bits_of(quantization: Mapping[str, Any] | None) -> int:
    """Say how many bits a quantized weight has, 8 where the configuration does not tell."""
    quantization = quantization or {}
    if str(quantization.get("quant_method")) == "mxfp4":
        return 4
    for group in dict(quantization.get("config_groups") or {}).values():
        return int((group.get("weights") or {}).get("num_bits") or 8)
    return 8


def kv_bytes_per_token(checkpoint: Checkpoint, start: int, end: int, dtype: DtypeName) -> int:
    """Estimate what blocks `start` to `end` keep of one token."""
    config: Any = checkpoint.config.get_text_config()
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    if heads == 0:
        return 0  # a model without attention
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return (end - start) * 2 * kv_heads * head_size * DTYPE_BYTES[dtype]


@dataclass(frozen=True, slots=True)
class Room:
    """How many tokens, and how many sessions' states, the KV memory of a span holds."""

    pages: int
    sessions: int | None  # None where a session takes pages alone

    @classmethod
    def of(cls, kv_bytes: int, bytes_per_token: int, state_bytes: int, *, page_size: int, max_position: int) -> "Room":
        """Divide KV memory between pages and states, for sessions of EXPECTED_TOKENS. Raises KVPoolTooSmall."""
        page_bytes = bytes_per_token * page_size
        if page_bytes == state_bytes == 0:
            return cls(max(-(-max_position // page_size), COUNTED_PAGES), None)
        if state_bytes == 0:
            if kv_bytes < page_bytes:
                raise KVPoolTooSmall(kv_bytes, page_bytes)
            return cls(kv_bytes // page_bytes, None)
        expected_pages = -(-min(EXPECTED_TOKENS, max_position) // page_size)
        sessions = max(1, kv_bytes // (state_bytes + expected_pages * page_bytes))
        left = kv_bytes - sessions * state_bytes
        if left < page_bytes:
            raise KVPoolTooSmall(kv_bytes, state_bytes + page_bytes)
        if page_bytes == 0:  # pages then only count tokens
            longest = -(-max_position // page_size)
            return cls(min(sessions * longest, max(longest, COUNTED_PAGES)), sessions)
        return cls(left // page_bytes, sessions)


def widest_span(sizes: WeightSizes, start: int, available_bytes: int) -> tuple[int, int] | None:
    """Give the widest span from `start` whose weights fit into `available_bytes`, or None if not one block does."""
    ends = [end for end in range(start + 1, len(sizes.blocks) + 1) if sizes.span(start, end) <= available_bytes]
    return (start, max(ends)) if ends else None


def require_memory(
    checkpoint: Checkpoint,
    start: int,
    end: int,
    dtype: DtypeName,
    quantization: QuantizationName = "none",
    *,
    kv_bytes: int,
    available_bytes: int,
    expanded: bool = False,
    experts: bool = True,
) -> None:
    """Raise NotEnoughMemory, naming a span that fits, unless blocks `start` to `end` and their KV pool do."""
    sizes = weight_sizes(checkpoint, dtype, quantization, expanded=expanded, experts=experts)
    needed = sizes.span(start, end) + sizes.loading + kv_bytes
    if needed > available_bytes:
        fits = widest_span(sizes, start, available_bytes - sizes.loading - kv_bytes)
        raise NotEnoughMemory((start, end), needed, available_bytes, fits)
