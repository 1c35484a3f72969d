"""What is tried on a freshly loaded span before it serves: how does it give what transformers gives, and how fastest?

All on random inputs. (1) The model's own forward with the attention that transformers takes by default, and no cache,
gives a reference; weights and reference are finite. (2) Nothing but hidden states passes from block to block, so that
the model may be cut there. (3) A watched run shows what each block keeps of a session. (4) `choose_service` then takes
the best way of serving that gives the reference for ragged chunks of two interleaved sessions: attention over KV pages,
with recurrent mixers looped if there are any; else transformers' own cache, session by session; else none, and says why
in an error. Masks are verified far beyond the few tokens of a test: masks.py. Called by span.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import torch
from torch import nn

from swarm_model.adapters import adapt
from swarm_model.attention import PAGED, PagedKV
from swarm_model.drivers import DirectForward, Driver, OwnForward, PackedForward, Part, SessionForward
from swarm_model.errors import UnsupportedModel
from swarm_model.experts import expert_counts
from swarm_model.kv_pool import KVPool
from swarm_model.latents import absorb_all
from swarm_model.loading import check_finite
from swarm_model.masks import MASK_PROBE, MaskProbe
from swarm_model.pages import PageAllocator, SessionKey
from swarm_model.recipes import NoRecipe, learn_recipe
from swarm_model.recurrent import MixerLoop
from swarm_model.session_cache import CacheLayout, SessionCache, WatchedCache
from swarm_model.session_states import SessionStates
from swarm_model.siblings import LinearUse, watch_linears
from swarm_model.skeleton import attention_implementation, foreign_code
from swarm_model.step import Step
from swarm_model.transfers import Transfers

Mode = Literal["paged", "recurrent", "session"]

PAGE_SIZE: Final = 4  # tokens, of the tests' own small pools
TEST_TOKENS: Final = 12
TEST_PAGES: Final = 2 * TEST_TOKENS
Steps = tuple[tuple[tuple[int, int, int], ...], ...]
# Steps of (session, position, tokens) chunks, in the end TEST_TOKENS of each of two sessions; one goes back twice
TEST_STEPS: Final[Steps] = (
    ((0, 0, 5),),
    ((1, 0, 4), (0, 5, 1)),
    ((0, 6, 2), (1, 4, 4)),
    ((0, 8, 1), (1, 6, 3)),
    ((1, 7, 5), (0, 9, 3)),
)
TOLERANCE: Final = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}  # relative to the largest value
# Rounding activations to 8 bits makes more of every small difference: a random Llama of 16 blocks was off by 8.4e-2
QUANTIZED_TOLERANCE: Final = 0.2
MORE_TRIALS: Final = (4, 5)  # seeds


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
    source: str  # where the weights came from
    hidden_size: int
    vocab_size: int
    max_position: int
    dtype: torch.dtype
    device: torch.device
    tuples: bool  # whether blocks return their hidden states in a tuple
    attention: str  # the implementation that transformers takes by default
    quantized: bool = False

    @property
    def tolerance(self) -> float:
        """How far serving may be off the reference; rounding activations to integers turns last bits into steps."""
        return QUANTIZED_TOLERANCE if self.quantized else TOLERANCE[self.dtype]

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

    def own_forward(self) -> OwnForward:
        return OwnForward(
            self.model, self.blocks, first=self.first, last=self.last, family=self.family, tuples=self.tuples
        )

    def session_cache(self) -> SessionCache:
        return SessionCache(self.model.config, self.start, self.end)

    def refuse(self, reason: str) -> UnsupportedModel:
        return UnsupportedModel(self.family, reason)

    def agrees(self, output: torch.Tensor, reference: torch.Tensor) -> bool:
        return self.error(output, reference) <= self.tolerance

    def error(self, output: torch.Tensor, reference: torch.Tensor) -> float:
        """How far an output is off, relative to the reference's largest value."""
        return float(self.row_errors(output, reference).max())

    def row_errors(self, output: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """How far each row is off, relative to the reference's largest value: `[rows]`."""
        return (output.float() - reference.float()).abs().amax(1) / reference.float().abs().max()


@dataclass(frozen=True)
class Trial:
    """What plain transformers gives for random inputs, in one piece and without a cache."""

    inputs: torch.Tensor  # [tokens] or [tokens, hidden]
    output: torch.Tensor  # [tokens, hidden] or [tokens, vocabulary]


@dataclass(frozen=True)
class Reference:
    """What a span's outputs are compared with.

    Where a router finds two experts as good, the last bit of a row decides, and that row comes out as another one. So
    models with experts have several trials, and each row has to be right in one: what is computed wrong, is so in all.
    """

    trials: tuple[Trial, ...]
    linears: LinearUse

    @property
    def inputs(self) -> torch.Tensor:
        return self.trials[0].inputs

    def compare(
        self, span: LoadedSpan, run: Callable[[torch.Tensor], list[torch.Tensor]]
    ) -> tuple[list[torch.Tensor], float]:
        """Run the trials until all rows have been right; give the first one's outputs and how far the worst row is off.

        `run` gives the outputs of all sessions that were made of the inputs.
        """
        outputs = run(self.inputs)
        errors = _worst_rows(span, outputs, self.trials[0])
        for trial in self.trials[1:]:
            if float(errors.max()) <= span.tolerance:
                break
            errors = torch.minimum(errors, _worst_rows(span, run(trial.inputs), trial))
        return outputs, float(errors.max())


def _worst_rows(span: LoadedSpan, outputs: Sequence[torch.Tensor], trial: Trial) -> torch.Tensor:
    return torch.stack([span.row_errors(output, trial.output) for output in outputs]).amax(0)


@dataclass(frozen=True)
class Service:
    """The way in which a span is served."""

    mode: Mode
    driver: Driver
    layout: CacheLayout
    pages: PagedKV | None  # its pool is a small one of the checks' own: make room before serving
    new_cache: Callable[[], SessionCache] | None  # for what sessions keep outside the pages

    @property
    def rewinds(self) -> bool:
        """Whether a session can be cut back to any position."""
        return self.new_cache is None or self.layout.can_be_cut


def run_reference(span: LoadedSpan) -> Reference:
    """Run random inputs through the model's own forward and attention, in one piece.

    Raises CheckpointBroken if weights are not finite, UnsupportedModel if the span cannot be run or cut out at all.
    """
    check_finite(span.model, span.source)
    inputs = span.random_inputs(TEST_TOKENS, seed=1)
    own, rows = span.own_forward(), torch.arange(TEST_TOKENS, device=span.device)
    positions = rows[None]
    with attention_implementation(span.model, span.attention):
        with watch_linears(span.model) as linears:
            output = own.run(inputs, positions, None, rows)
        if not bool(torch.isfinite(output).all()):
            reason = f"its numbers leave the range of {str(span.dtype).removeprefix('torch.')}: choose another --dtype"
            raise span.refuse(reason)
        if not span.first:
            other = own.run(inputs, positions, None, rows, before=span.random_inputs(TEST_TOKENS, seed=2))
            if not torch.equal(other, output):
                raise span.refuse("its blocks take more from the embeddings than the hidden states")
        hidden = inputs
        for number in range(len(span.blocks)):
            hidden = own.run(hidden, positions, None, rows, Part(number, number + 1))
        if not span.agrees(hidden, output):
            raise span.refuse("more than hidden states passes from block to block")
        trials = [Trial(inputs, output)]
        if expert_counts(span.model.config.get_text_config()):
            others = [span.random_inputs(TEST_TOKENS, seed=seed) for seed in MORE_TRIALS]
            trials += [Trial(other, own.run(other, positions, None, rows)) for other in others]
    return Reference(tuple(trials), linears)


def watch_cache(span: LoadedSpan, reference: Reference) -> CacheLayout:
    """See what each block keeps of a session, in a run with transformers' own cache."""
    cache = WatchedCache(span.model.config, span.start, span.end, span.blocks)
    own, rows = span.own_forward(), torch.arange(TEST_TOKENS, device=span.device)
    positions = rows[None]
    with attention_implementation(span.model, span.attention), cache.watch():
        own.run(reference.inputs, positions, cache, rows)
        once_bytes = cache.size_bytes
        own.run(reference.inputs, positions + TEST_TOKENS, cache, rows)
    per_token = (cache.size_bytes - once_bytes) // TEST_TOKENS
    states = once_bytes - per_token * TEST_TOKENS
    return CacheLayout(frozenset(cache.keeping), cache.mixers, per_token, states, cache.can_be_cut)


def choose_service(span: LoadedSpan, reference: Reference, layout: CacheLayout) -> Service:
    """Take the best way of serving that gives the reference. Raises UnsupportedModel with what failed in each."""
    try:
        with foreign_code(span.family):
            return _try_pages(span, reference, layout)
    except UnsupportedModel as refusal:
        from_pages = refusal.reason
    try:
        with foreign_code(span.family):
            return _try_sessions(span, reference, layout)
    except UnsupportedModel as refusal:
        reason = f"over KV pages: {from_pages}; with transformers' own cache: {refusal.reason}"
        raise span.refuse(reason) from refusal


def _try_pages(span: LoadedSpan, reference: Reference, layout: CacheLayout) -> Service:
    adapt(span.model, span.device)
    loop = MixerLoop(layout.mixers)
    own = span.own_forward()
    probe = _probe_masks(span, own, layout)
    per_token = sum(shape.bytes_per_token(span.dtype) for shape in probe.shapes.values())
    layout = replace(layout, bytes_per_token=per_token)
    pool = KVPool(probe.shapes, pages=TEST_PAGES, page_size=PAGE_SIZE, dtype=span.dtype, device=span.device)
    cache = PagedKV(pool, probe.attending, span.family)
    for block in span.blocks:
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.paged_kv = cache  # type: ignore[assignment]  # where paged_attention finds it
    for module in span.model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = PAGED
    new_cache = span.session_cache if layout.mixers else None
    packed = PackedForward(own, cache)
    try:
        outputs = _agreeing(span, packed, reference, new_cache)
    except UnsupportedModel:
        if not layout.mixers:
            raise
        loop.by_token = True
        outputs = _agreeing(span, packed, reference, new_cache)
    outputs = _absorb_latents(span, packed, reference, cache, new_cache) or outputs
    driver = _try_directly(span, packed, cache, reference.inputs, outputs, new_cache) or packed
    return Service("recurrent" if layout.mixers else "paged", driver, layout, cache, new_cache)


def _absorb_latents(
    span: LoadedSpan,
    packed: PackedForward,
    reference: Reference,
    cache: PagedKV,
    new_cache: Callable[[], SessionCache] | None,
) -> list[torch.Tensor] | None:
    """Attend to cached latents as they are, where that gives the reference; returns its outputs."""
    modules = [module for block in span.blocks for module in block.modules()]
    cache.absorbed = absorb_all(modules, cache.pool.shapes, span.dtype, span.device)
    if not cache.absorbed:
        return None
    try:
        return _agreeing(span, packed, reference, new_cache)
    except UnsupportedModel:
        cache.absorbed = {}
        return None


def _try_sessions(span: LoadedSpan, reference: Reference, layout: CacheLayout) -> Service:
    for module in span.model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = span.attention
    driver = SessionForward(span.own_forward())
    _agreeing(span, driver, reference, span.session_cache)
    return Service("session", driver, layout, None, span.session_cache)


def _probe_masks(span: LoadedSpan, own: OwnForward, layout: CacheLayout) -> MaskProbe:
    """Find out how each block's attention reads the pages. Raises UnsupportedModel unless it does so in a known way."""
    probe = MaskProbe(span.max_position)
    with attention_implementation(span.model, MASK_PROBE):
        PackedForward(own, probe).run(
            span.random_inputs(2, seed=2),
            _one_step(span, 2),
            torch.arange(2, device=span.device),
        )
    for layer, reason in probe.unclear.items():
        raise span.refuse(f"block {layer} {reason}")
    for layer in layout.keeping - probe.attending.keys():
        raise span.refuse(f"block {layer} does not attend through transformers' attention interface")
    return probe


def _try_directly(
    span: LoadedSpan,
    packed: PackedForward,
    cache: PagedKV,
    inputs: torch.Tensor,
    outputs: list[torch.Tensor],
    new_cache: Callable[[], SessionCache] | None,
) -> DirectForward | None:
    """Call the modules without the wrappers around them, if that gives the outputs of `packed` to the bit."""
    try:
        recipe = learn_recipe(
            packed,
            span.blocks,
            span.blocks_name,
            cache,
            span.random_inputs(3, seed=3),
            _one_step(span, 3),
        )
    except NoRecipe:
        return None
    direct = DirectForward(recipe, cache, first=span.first, last=span.last)
    ours = run_chunks(direct, span, inputs, new_cache)
    return direct if all(torch.equal(*pair) for pair in zip(ours, outputs, strict=True)) else None


def _agreeing(
    span: LoadedSpan, driver: Driver, reference: Reference, new_cache: Callable[[], SessionCache] | None
) -> list[torch.Tensor]:
    """Give the outputs of ragged chunks of two sessions. Raises UnsupportedModel unless they are the reference."""
    outputs, error = reference.compare(span, lambda inputs: run_chunks(driver, span, inputs, new_cache))
    if not error <= span.tolerance:
        raise span.refuse(f"it is off by {error:.1e}, the tolerance is {span.tolerance:.0e}")
    return outputs


def run_chunks(
    driver: Driver,
    span: LoadedSpan,
    inputs: torch.Tensor,
    new_cache: Callable[[], SessionCache] | None,
    *,
    steps: Steps = TEST_STEPS,
    page_size: int = PAGE_SIZE,
) -> list[torch.Tensor]:
    """Send the same inputs as two interleaved sessions in ragged chunks; give each session's outputs in order."""
    allocator = PageAllocator(pages=TEST_PAGES, page_size=page_size)
    keys = (SessionKey(b"first"), SessionKey(b"second"))
    states = None if new_cache is None else SessionStates(new_cache, None)
    outputs = [inputs.new_empty(0), inputs.new_empty(0)]
    for chunks in steps:
        tables, parts, caches, redone = [], [], [], []
        for session, position, tokens in chunks:
            key, first = keys[session], position
            if states is not None:
                if (again := states.redone(key, position)) is not None:
                    first -= len(again)
                rows = inputs[first : position + tokens]
                states.check(key, first)
                states.enter(key, first, rows, position - first)
                caches.append(states.cache(key))
            tables.append(allocator.place(key, first, position + tokens - first))
            parts.append(inputs[first : position + tokens])
            redone.append(position - first)
        counts = [len(rows) for rows in parts]
        step = Step(tables, counts, page_size, span.dtype, Transfers(span.device), caches)
        output = driver.run(torch.cat(parts), step, torch.arange(step.tokens, device=span.device))
        for (session, position, _), rows, skipped in zip(chunks, torch.split(output, counts), redone, strict=True):
            outputs[session] = torch.cat((outputs[session][:position], rows[skipped:]))
    return outputs


def _one_step(span: LoadedSpan, tokens: int) -> Step:
    """Make a step of one new session."""
    table = PageAllocator(pages=TEST_TOKENS, page_size=PAGE_SIZE).place(SessionKey(b""), 0, tokens)
    return Step([table], [tokens], PAGE_SIZE, span.dtype, Transfers(span.device), [span.session_cache()])
