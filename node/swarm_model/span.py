"""A span of a model's blocks, ready to compute: token ids or hidden states in, hidden states or sampled tokens out.

Owns the loaded modules, the KV pool and the page tables of all sessions. Knows neither network nor money nor who asks:
the node's compute thread calls `forward`, one batch at a time, and `drop`. A step: check each chunk and reserve
its pages; pack the accepted ones into one step; send it through the blocks; sample the rows that ask for it.

What fails, fails alone: a chunk that cannot be computed gets its ModelError in its place of the returned list, its
session stays as it was, and the others are computed as if it had not been there.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import torch

from swarm_model.acceleration import Acceleration, accelerate, acceleration_of
from swarm_model.checkpoint import Checkpoint
from swarm_model.devices import available_bytes, make_current
from swarm_model.digests import block_digest
from swarm_model.disk import files_of, require_disk
from swarm_model.drawing import SampleRequest, draw
from swarm_model.drivers import Driver, Part
from swarm_model.errors import (
    ContextTooLong,
    InvalidChunk,
    KVFull,
    ModelError,
    PositionGap,
    SpanOutsideModel,
)
from swarm_model.experts import quantizes_experts
from swarm_model.kv_pool import KVPool
from swarm_model.linears import can_pack, pack_linears
from swarm_model.load_checks import LoadedSpan, Mode, choose_service, run_reference, watch_cache
from swarm_model.load_progress import ByteProgress, LoadProgress
from swarm_model.loading import (
    drop_unused_embedding,
    give_back_memory,
    load_model,
    move_weights,
    owned_blocks,
    weight_bytes,
)
from swarm_model.native_kernels import prepare as prepare_kernels
from swarm_model.pages import OutOfPages, PageTable, SessionKey
from swarm_model.prequantized import expands
from swarm_model.quantization import format_for
from swarm_model.quantized_loading import load_quantized
from swarm_model.sampler import Sampled
from swarm_model.session_kv import SessionKV
from swarm_model.session_states import REDONE_TOKENS, SessionStates
from swarm_model.sizing import DtypeName, QuantizationName, Room, require_memory
from swarm_model.skeleton import check_span, foreign_code, study
from swarm_model.step import Step
from swarm_model.transfers import Transfers

__all__ = ["Chunk", "LoadProgress", "Output", "SampleRequest", "Sampled", "SessionKey", "Span", "SpanInfo"]

DTYPE_NAMES: Final[dict[torch.dtype, DtypeName]] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}

Output = torch.Tensor | tuple[Sampled, ...] | ModelError | None
"""What becomes of a chunk: hidden states `[tokens, hidden]` on the host; on the last span the tokens sampled, one more
than drafts were right, or None where none were asked for; or the error because of which it was not computed."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens of one session.

    `position` says how many tokens of the session stand before the chunk: if more are cached, the cache is cut to it.
    `inputs` is `[tokens]` int64 ids on the first span, else `[tokens, hidden]`. `sample` counts on the last span alone.
    The span itself puts `redone` tokens of the session's own before them where it cannot be cut: session_states.py.
    """

    session: SessionKey
    position: int
    inputs: torch.Tensor
    sample: SampleRequest | None = None
    redone: int = 0


@dataclass(frozen=True, slots=True)
class SpanInfo:
    """What a span is, as its record in the network tells it."""

    family: str
    start: int
    end: int
    num_blocks: int
    hidden_size: int
    vocab_size: int
    max_position: int
    dtype: str
    numeric_class: str  # spans of one class give the same numbers up to the order of additions
    weight_bytes: int
    kv_bytes_per_token: int
    kernel: str  # that attends, "+graphs" where decode steps are recorded
    page_size: int  # tokens
    pages: int
    block_digests: tuple[bytes, ...]
    mode: Mode
    rewind: Literal["any", "checkpoints"]  # where a session can be cut: anywhere, or within its last step (64 guesses)
    state_bytes_per_session: int  # besides the KV of its tokens
    max_sessions: int | None  # that have room for such a state; None where there is none
    quantization: str = ""  # how the weights are held: the checkpoint's scheme, then the format they were loaded into


class Span:
    """Blocks `[start, end)` of a model; make one with `load`."""

    def __init__(
        self,
        info: SpanInfo,
        driver: Driver,
        kv: SessionKV,
        dtype: torch.dtype,
        transfers: Transfers,
        states: SessionStates | None = None,
    ) -> None:
        """`states` are what sessions keep outside the pages, where they keep such."""
        self.info: Final = info
        self._driver = driver
        self._kv = kv
        self._dtype = dtype
        self._transfers = transfers
        self._states = states

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        start: int,
        end: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        kv_bytes: int,
        page_size: int = 16,
        quantize: QuantizationName = "none",
        on_progress: Callable[[LoadProgress], None] | None = None,
        acceleration: Acceleration | None = None,
    ) -> "Span":
        """Load blocks `start` to `end`, fetching only the files that they need, and check them on random inputs.

        `kv_bytes` is the memory for KV pages. `acceleration` is what may be tried, by default all that the device may
        be able to do; a kernel decides on the page size. Raises SpanOutsideModel, UnsupportedModel, CheckpointBroken,
        NotEnoughMemory, NotEnoughDisk, KVPoolTooSmall, and what HubFiles.fetch raises.
        """
        report = on_progress or (lambda _: None)
        acceleration = acceleration or acceleration_of(device, page_size)
        return load_span(checkpoint, start, end, device, dtype, kv_bytes, page_size, quantize, acceleration, report)

    @property
    def pages_free(self) -> int:
        """Count the pages that sessions could take, those of kept prefixes included."""
        return self._kv.free

    def cached(self, session: SessionKey) -> int:
        """Count the tokens cached for a session; a session that is not known has none."""
        return self._kv.tokens(session)

    def adopt(self, session: SessionKey, scope: bytes, digests: Sequence[bytes]) -> int:
        """Let a new session begin with what is kept of its prefix; return how many tokens that are.

        One digest stands for each `prefixes.CHUNK_TOKENS` tokens, with all tokens before them. Sessions of one `scope`
        share what they computed: it has to tell apart whatever else their keys and values depend on, and whoever does
        not trust the other.
        """
        if self._states is not None:
            return 0  # what its tokens left behind is not in the pages alone
        return self._kv.adopt(session, scope, digests)

    def drop(self, session: SessionKey) -> None:
        """Free what a session keeps, but for its prefix; a session that is not known is already dropped."""
        self._kv.drop(session)
        if self._states is not None:
            self._states.drop(session)

    @torch.inference_mode()
    def forward(self, batch: Sequence[Chunk], *, blocks: tuple[int, int] | None = None) -> list[Output]:
        """Compute one step of several sessions' chunks; the list returned stands in the batch's order.

        `blocks` is the part `[start, end)` of the span to go through, all of it by default. A session goes through the
        same blocks from its first chunk to its last.

        A session stands in a batch once. Whatever is wrong with one chunk comes back in its place. An exception means
        that the whole step failed: the sessions in it are cut back to the positions of their chunks, or dropped where
        they keep more than pages.
        """
        start, end = blocks or (self.info.start, self.info.end)
        if not self.info.start <= start < end <= self.info.end:
            raise SpanOutsideModel((start, end), self.info.num_blocks)
        make_current(self._transfers.device)
        batch = self._with_redone(batch)
        outputs: list[Output] = [None] * len(batch)
        ran: list[Chunk] = []
        waiting = list(range(len(batch)))
        try:
            while waiting:
                # One wave, unless the sessions of the batch do not all have room in the pool at once.
                wave, tables, crowded = self._reserve_all(batch, waiting, ran, outputs, embeds=start == 0)
                ran += [batch[index] for index in wave]
                if wave:
                    self._compute([batch[index] for index in wave], tables, wave, outputs, (start, end))
                waiting = crowded
        except BaseException:
            for chunk in reversed(ran):
                if self._states is None:
                    self._kv.truncate(chunk.session, chunk.position)
                else:
                    self.drop(chunk.session)  # some blocks have gone on, others have not
            raise
        for chunk in ran:
            self._kv.wrote(chunk.session, chunk.position, chunk.position + len(chunk.inputs))
        return [
            output[chunk.redone :] if isinstance(output, torch.Tensor) and chunk.redone else output
            for output, chunk in zip(outputs, batch, strict=True)
        ]

    def _with_redone(self, batch: Sequence[Chunk]) -> Sequence[Chunk]:
        """Put before each chunk what a session that cannot be cut has to compute once more."""
        if self._states is None:
            return batch
        chunks = []
        for chunk in batch:
            rows = self._states.redone(chunk.session, chunk.position)
            if rows is not None and rows.shape[1:] == chunk.inputs.shape[1:] and rows.dtype == chunk.inputs.dtype:
                inputs = torch.cat((rows, chunk.inputs))
                chunk = replace(chunk, position=chunk.position - len(rows), inputs=inputs, redone=len(rows))
            chunks.append(chunk)
        return chunks

    def _reserve_all(
        self, batch: Sequence[Chunk], waiting: Sequence[int], ran: Sequence[Chunk], outputs: list[Output], embeds: bool
    ) -> tuple[list[int], list[PageTable], list[int]]:
        """Give chunks their places; return whose can run now, their tables, and who has to wait for these."""
        wave: list[int] = []
        tables: list[PageTable] = []
        crowded: list[int] = []
        for index in waiting:
            chunk, busy = batch[index], [batch[earlier].session for earlier in wave]
            try:
                self._check(chunk, [*busy, *(earlier.session for earlier in ran)], embeds)
                tables.append(self._kv.place(chunk.session, chunk.position, len(chunk.inputs), busy))
                wave.append(index)
                if self._states is not None:
                    self._states.enter(chunk.session, chunk.position, chunk.inputs, chunk.redone)
            except OutOfPages as refusal:
                if wave:
                    crowded.append(index)
                else:
                    outputs[index] = KVFull(refusal.needed, refusal.free)
            except ModelError as error:
                outputs[index] = error
        return wave, tables, crowded

    def _check(self, chunk: Chunk, sessions: Sequence[SessionKey], embeds: bool) -> None:
        """Raise ModelError for a chunk that cannot be computed beside those of the sessions."""
        self._check_inputs(chunk.inputs, embeds)
        tokens, cached = len(chunk.inputs), self._kv.tokens(chunk.session)
        if chunk.position > cached:
            raise PositionGap(chunk.position, cached)
        if chunk.position < 0 or chunk.session in sessions:
            raise InvalidChunk("a position below 0, or a session twice in one step")
        if chunk.sample is not None and len(chunk.sample.drafts) >= tokens - chunk.redone:
            raise InvalidChunk("drafts without a known token before them")
        if chunk.position + tokens > self.info.max_position:
            raise ContextTooLong(chunk.position + tokens, self.info.max_position)
        if (pages := -(-(chunk.position + tokens) // self.info.page_size)) > self.info.pages:
            raise KVFull(pages, self._kv.free)
        if self._states is not None:
            self._states.check(chunk.session, chunk.position)

    def _check_inputs(self, inputs: torch.Tensor, embeds: bool) -> None:
        if embeds:
            if inputs.dim() != 1 or inputs.dtype != torch.int64 or len(inputs) == 0:
                raise InvalidChunk(f"token ids must be [tokens] int64, not {list(inputs.shape)} {inputs.dtype}")
            lowest, highest = inputs.aminmax()
            if int(lowest) < 0 or int(highest) >= self.info.vocab_size:
                raise InvalidChunk(f"token ids go from 0 to {self.info.vocab_size - 1}")
        elif inputs.dim() != 2 or inputs.shape[1] != self.info.hidden_size or not inputs.is_floating_point():
            raise InvalidChunk(f"hidden states must be [tokens, {self.info.hidden_size}], not {list(inputs.shape)}")
        elif len(inputs) == 0:
            raise InvalidChunk("a chunk without tokens")

    def _compute(
        self,
        chunks: Sequence[Chunk],
        tables: Sequence[PageTable],
        places: Sequence[int],
        outputs: list[Output],
        blocks: tuple[int, int],
    ) -> None:
        part = Part(blocks[0] - self.info.start, blocks[1] - self.info.start)
        embeds, last = blocks[0] == 0, blocks[1] == self.info.num_blocks
        counts = [len(chunk.inputs) for chunk in chunks]
        caches = () if self._states is None else [self._states.cache(chunk.session) for chunk in chunks]
        step = Step(tables, counts, self.info.page_size, self._dtype, self._transfers, caches)
        inputs = chunks[0].inputs if len(chunks) == 1 else torch.cat([chunk.inputs for chunk in chunks])
        inputs = self._transfers.to_device(inputs, None if embeds else self._dtype)
        asking = [(number, chunk.sample) for number, chunk in enumerate(chunks) if last and chunk.sample is not None]
        wanted: list[int] = []  # the rows behind which tokens are drawn
        requests: list[tuple[SampleRequest, int]] = []
        for number, request in asking:
            end = step.stretches[number].offset + counts[number]
            wanted.extend(range(end - request.rows, end))
            requests.append((request, chunks[number].position + counts[number] - len(request.drafts)))
        rows = self._transfers.to_device(torch.tensor(wanted, dtype=torch.int64))
        result = self._driver.run(inputs, step, rows, part)
        if not last:
            for place, hidden in zip(places, torch.split(self._transfers.to_host(result), counts), strict=True):
                outputs[place] = hidden
        elif asking:
            for (number, _), drawn in zip(asking, draw(result, requests, self._transfers), strict=True):
                outputs[places[number]] = drawn


def load_span(
    checkpoint: Checkpoint,
    start: int,
    end: int,
    device: torch.device,
    dtype: torch.dtype,
    kv_bytes: int,
    page_size: int,
    quantize: QuantizationName,
    acceleration: Acceleration,
    on_progress: Callable[[LoadProgress], None],
) -> Span:
    """See Span.load."""
    check_span(start, end, checkpoint.num_blocks)
    make_current(device)
    if device.type == "cpu":
        prepare_kernels(lambda done, total: on_progress(LoadProgress("build", done, total)))
    dtype_name, quantized = DTYPE_NAMES[dtype], format_for(quantize, checkpoint, device)
    require_memory(
        checkpoint,
        start,
        end,
        dtype_name,
        quantize,
        kv_bytes=kv_bytes,
        available_bytes=available_bytes(device),
        expanded=expands(checkpoint, device),
        experts=quantizes_experts(checkpoint),
    )
    anatomy = study(checkpoint, device)
    names = anatomy.tensors(start, end)
    require_disk(checkpoint, anatomy, start, end, free_bytes=shutil.disk_usage(checkpoint.directory).free)
    files = files_of(checkpoint, anatomy, start, end)
    checkpoint.fetch(files, lambda done, total: on_progress(LoadProgress("fetch", done, total)))

    read = ByteProgress(
        "read", sum(checkpoint.tensors[name].end - checkpoint.tensors[name].start for name in names), on_progress
    )
    with foreign_code(checkpoint.family):
        if quantized is None:
            model = load_model(checkpoint, anatomy, start, end, dtype=dtype, on_bytes=read.add, device=device)
        else:
            model = load_quantized(
                checkpoint, anatomy, start, end, dtype=dtype, wanted=quantized, on_bytes=read.add, device=device
            )
    config = checkpoint.config.get_text_config()
    span = LoadedSpan(
        model=model,
        blocks=owned_blocks(model, anatomy),
        blocks_name=anatomy.blocks,
        start=start,
        end=end,
        num_blocks=anatomy.num_blocks,
        family=checkpoint.family,
        source=checkpoint.source,
        hidden_size=int(config.hidden_size),
        vocab_size=int(config.vocab_size),
        max_position=_longest_session(checkpoint, model),
        dtype=dtype,
        device=device,
        tuples=anatomy.tuples,
        attention=anatomy.attention,
        quantized=quantized is not None,
    )
    with torch.inference_mode(), foreign_code(checkpoint.family):
        move_weights(model, device)
        reference = run_reference(span)
        packed = can_pack(dtype, device)
        if packed:
            pack_linears(model, reference.linears.siblings, keep=reference.linears.read_directly)
            drop_unused_embedding(model, anatomy, start)
        layout = watch_cache(span, reference)
        service = choose_service(span, reference, layout)
        accelerated = accelerate(span, reference, service, acceleration)
        spare_pages = 0
        if accelerated is not None:
            page_size, spare_pages = accelerated.page_size, accelerated.spare_pages
        layout, state_bytes = service.layout, service.layout.state_bytes
        if not service.rewinds:
            state_bytes = 2 * state_bytes + REDONE_TOKENS * span.hidden_size * dtype.itemsize  # with a checkpoint
        room = Room.of(
            kv_bytes,
            layout.bytes_per_token,
            state_bytes,
            page_size=page_size,
            max_position=span.max_position,
        )
        if service.pages is not None:
            service.pages.pool = KVPool(
                service.pages.pool.shapes,
                pages=room.pages + spare_pages,
                page_size=page_size,
                dtype=dtype,
                device=device,
            )
        if accelerated is not None and accelerated.graphs is not None:
            accelerated.graphs.record_ahead(
                reference.inputs, lambda done, total: on_progress(LoadProgress("record", done, total))
            )

    absorbed = {} if service.pages is None else service.pages.absorbed
    absorbed_bytes = sum(maps.size_bytes for maps in absorbed.values())
    give_back_memory()
    owned = {block: [checkpoint.tensors[name] for name in anatomy.digest_tensors(block)] for block in range(start, end)}
    hashed = ByteProgress("digest", sum(t.end - t.start for tensors in owned.values() for t in tensors), on_progress)
    scheme = [anatomy.plan.label] if anatomy.plan else []
    info = SpanInfo(
        family=checkpoint.family,
        start=start,
        end=end,
        num_blocks=anatomy.num_blocks,
        hidden_size=span.hidden_size,
        vocab_size=span.vocab_size,
        max_position=span.max_position,
        dtype=dtype_name,
        numeric_class="/".join(
            [dtype_name, *([quantized] if quantized else []), device.type, "packed" if packed else "plain", *scheme]
        ),
        weight_bytes=weight_bytes(model) + absorbed_bytes,
        kv_bytes_per_token=layout.bytes_per_token,
        kernel=accelerated.label if accelerated else "torch",
        page_size=page_size,
        pages=room.pages,
        block_digests=tuple(block_digest(checkpoint.directory, tensors, hashed.add) for tensors in owned.values()),
        mode=service.mode,
        rewind="any" if service.rewinds else "checkpoints",
        state_bytes_per_session=state_bytes,
        max_sessions=room.sessions,
        quantization="/".join([*scheme, *([] if quantize == "none" else [quantize])]),
    )
    pool = KVPool({}, pages=0, page_size=page_size, dtype=dtype, device=device)
    if service.pages is not None:
        pool = service.pages.pool
    states = None if service.new_cache is None else SessionStates(service.new_cache, room.sessions)
    driver = service.driver if accelerated is None else accelerated.driver
    transfers = Transfers(device, None if acceleration.streams is None else acceleration.streams())
    return Span(info, driver, SessionKV(pool, room.pages), dtype, transfers, states)


def _longest_session(checkpoint: Checkpoint, model: Any) -> int:
    """Where a rotary embedding changes with the batch's longest position, stay in the range where it does not.

    transformers' "longrope" switches its factors there for all rows at once: sessions would change one another.
    """
    longest = checkpoint.max_position
    for module in model.modules():
        if not hasattr(module, "rope_type"):
            continue
        rope = module.config.rope_parameters
        for parameters in [rope] if "rope_type" in rope else rope.values():  # of all layers, or by their kind
            if isinstance(parameters, dict) and parameters.get("rope_type") == "longrope":
                longest = min(longest, int(parameters["original_max_position_embeddings"]))
    return longest
