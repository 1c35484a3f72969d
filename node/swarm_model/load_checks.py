"""What is tried on a freshly loaded span before it serves: does it compute what transformers computes, and how fastest?

Three runs on random inputs. (1) The model's own forward with transformers' eager attention gives a reference and shows
the shape of each block's keys and values. (2) The masks that the model asks for are compared with the windows that its
attention function is given, far beyond the few tokens of a test. (3) The same tokens in ragged chunks over paged KV
must give the reference. Then the direct way through the modules is chosen if it agrees to the bit. Called by span.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from swarm_model.attention import PAGED, PagedKV
from swarm_model.drivers import DirectForward, Driver, OwnForward
from swarm_model.errors import UnsupportedModel
from swarm_model.kv_pool import KVPool, KVShape
from swarm_model.pages import PageAllocator, SessionKey
from swarm_model.recipes import NoRecipe, learn_recipe
from swarm_model.skeleton import attention_implementation
from swarm_model.step import Step

MASK_PROBE: Final = "swarm_mask_probe"
TEST_TOKENS: Final = 12
# Steps of (session, tokens) chunks, in the end TEST_TOKENS of each of two sessions
TEST_STEPS: Final = (((0, 5),), ((1, 4), (0, 1)), ((0, 2), (1, 3)), ((0, 1), (1, 1)), ((1, 4), (0, 3)))
TOLERANCE: Final = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}  # relative to the largest value


@dataclass(frozen=True)
class LoadedSpan:
    """A pruned model with what the checks need to know of it."""

    model: Any
    blocks: Sequence[nn.Module]
    blocks_name: str
    start: int
    end: int
    num_blocks: int
    family: str
    hidden_size: int
    vocab_size: int
    max_position: int
    dtype: torch.dtype
    device: torch.device
    quantized: bool = False

    @property
    def tolerance(self) -> float:
        """How far the paged computation may be off; rounding activations to integers turns last bits into steps."""
        return max(TOLERANCE[self.dtype], TOLERANCE[torch.bfloat16]) if self.quantized else TOLERANCE[self.dtype]

    @property
    def first(self) -> bool:
        return self.start == 0

    @property
    def last(self) -> bool:
        return self.end == self.num_blocks

    def random_inputs(self, tokens: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        if self.first:
            return torch.randint(self.vocab_size, (tokens,), generator=generator).to(self.device)
        return torch.randn(tokens, self.hidden_size, generator=generator).to(self.device, self.dtype)

    def own_forward(self, cache: Any) -> OwnForward:
        return OwnForward(self.model, self.blocks, cache, first=self.first, last=self.last, family=self.family)


@dataclass(frozen=True)
class Reference:
    """What transformers' eager attention gives for random inputs, and what each block caches of a token."""

    inputs: torch.Tensor  # [tokens] or [tokens, hidden]
    output: torch.Tensor  # [tokens, hidden] or [tokens, vocabulary]
    shapes: list[KVShape]


class ShapeRecorder:
    """Stands in for the cache and notes the shape of what it is given."""

    is_compileable: Final = False

    def __init__(self) -> None:
        self.shapes: dict[int, KVShape] = {}
        self.step: Step | None = None

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.shapes[layer_idx] = KVShape(keys.shape[1], keys.shape[3], values.shape[3])
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, *_: Any) -> tuple[int, int]:
        return query_length, 0

    def get_query_offset(self, *_: Any) -> int:
        return 0


def run_reference(span: LoadedSpan) -> Reference:
    """Run random inputs through the model's own forward and eager attention, in one piece.

    Raises UnsupportedModel if a block keeps no keys and values.
    """
    recorder = ShapeRecorder()
    inputs = span.random_inputs(TEST_TOKENS, seed=1)
    allocator = PageAllocator(pages=1, page_size=TEST_TOKENS)
    table = allocator.place(SessionKey(b""), 0, TEST_TOKENS)
    step = Step([table], [TEST_TOKENS], TEST_TOKENS, span.dtype, span.device)
    with attention_implementation(span.model, "eager"):
        output = span.own_forward(recorder).run(inputs, step, torch.arange(TEST_TOKENS, device=span.device))
    missing = [number for number in range(span.start, span.end) if number not in recorder.shapes]
    if missing:
        raise UnsupportedModel(span.family, f"block {missing[0]} keeps no keys and values")
    return Reference(inputs, output, [recorder.shapes[number] for number in range(span.start, span.end)])


def check_masks(span: LoadedSpan) -> None:
    """Raise UnsupportedModel unless each block's mask is causal, with the window that its attention is given."""
    seen: dict[int, tuple[Any, int | None]] = {}

    def probe_attention(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
    ) -> Any:
        seen[module.layer_idx] = (mask, kwargs.get("sliding_window"))
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None

    def probe_mask(*_: Any, mask_function: Callable[..., torch.Tensor], **__: Any) -> MaskShape:
        return MaskShape.of(mask_function, span.max_position)

    ALL_ATTENTION_FUNCTIONS.register(MASK_PROBE, probe_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(MASK_PROBE, probe_mask)
    allocator = PageAllocator(pages=1, page_size=2)
    step = Step([allocator.place(SessionKey(b""), 0, 2)], [2], 2, span.dtype, span.device)
    with attention_implementation(span.model, MASK_PROBE):
        rows = torch.arange(2, device=span.device)
        span.own_forward(ShapeRecorder()).run(span.random_inputs(2, seed=2), step, rows)
    for number in range(span.start, span.end):
        mask, window = seen.get(number, (None, None))
        if not isinstance(mask, MaskShape):
            raise UnsupportedModel(span.family, f"block {number} attends without a causal mask")
        given = 0 if window is None or window >= span.max_position else window
        if not mask.causal or mask.window != given:
            raise UnsupportedModel(span.family, f"block {number} masks tokens in a way that is not known here")


@dataclass(frozen=True)
class MaskShape:
    """What a mask lets the last positions attend to; `window` 0 means everything before."""

    causal: bool
    window: int

    @classmethod
    def of(cls, mask_function: Callable[..., torch.Tensor], longest: int) -> "MaskShape":
        zero, columns = torch.zeros((), dtype=torch.long), torch.arange(longest)
        windows = []
        for row in (longest - 1, longest - 2):
            allowed = mask_function(zero, zero, torch.tensor(row), columns).expand(longest)
            window = int(allowed.sum())
            expected = (columns <= row) & (columns > row - window)
            if not bool((allowed == expected).all()):
                return cls(causal=False, window=0)
            windows.append(0 if window == row + 1 else window)
        return cls(causal=windows[0] == windows[1], window=windows[0])


def choose_driver(span: LoadedSpan, reference: Reference) -> tuple[Driver, PagedKV]:
    """Check the paged computation against the reference, and give the quickest driver that agrees, and its cache.

    Raises UnsupportedModel. The cache's pool is a small one of the checks' own: replace it before serving.
    """
    pool = KVPool(reference.shapes, pages=2 * TEST_TOKENS, page_size=4, dtype=span.dtype, device=span.device)
    cache = PagedKV(pool, span.start, span.family)
    for block in span.blocks:
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.paged_kv = cache  # type: ignore[assignment]  # where paged_attention finds it
    for module in span.model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = PAGED
    own = span.own_forward(cache)
    paged = _run_chunks(own, pool, span, reference.inputs)
    scale = float(reference.output.abs().max())
    error = max(float((output - reference.output).abs().max()) for output in paged)
    if not error <= span.tolerance * scale:
        reason = f"over paged KV it is off by {error / scale:.1e}, the tolerance is {span.tolerance:.0e}"
        raise UnsupportedModel(span.family, reason)
    allocator = PageAllocator(pages=6, page_size=4)
    step = Step([allocator.place(SessionKey(b""), 0, 3)], [3], 4, span.dtype, span.device)
    try:
        recipe = learn_recipe(own, span.blocks, span.blocks_name, cache, span.random_inputs(3, seed=3), step)
    except NoRecipe:
        return own, cache
    direct = DirectForward(recipe, cache, first=span.first, last=span.last)
    inputs = span.random_inputs(TEST_TOKENS, seed=4)
    outputs = zip(_run_chunks(direct, pool, span, inputs), _run_chunks(own, pool, span, inputs), strict=True)
    return (direct if all(torch.equal(ours, theirs) for ours, theirs in outputs) else own), cache


def _run_chunks(driver: Driver, pool: KVPool, span: LoadedSpan, inputs: torch.Tensor) -> list[torch.Tensor]:
    """Send the same inputs as two interleaved sessions in ragged chunks; give each session's outputs in order."""
    allocator = PageAllocator(pages=len(pool.keys[0]) // pool.page_size, page_size=pool.page_size)
    keys = (SessionKey(b"first"), SessionKey(b"second"))
    outputs: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for chunks in TEST_STEPS:
        tables, parts = [], []
        for session, tokens in chunks:
            past = allocator.tokens(keys[session])
            tables.append(allocator.place(keys[session], past, tokens))
            parts.append(inputs[past : past + tokens])
        counts = [tokens for _, tokens in chunks]
        step = Step(tables, counts, pool.page_size, span.dtype, span.device)
        output = driver.run(torch.cat(parts), step, torch.arange(step.tokens, device=span.device))
        for (session, _), rows in zip(chunks, torch.split(output, counts), strict=True):
            outputs[session].append(rows)
    return [torch.cat(rows) for rows in outputs]
