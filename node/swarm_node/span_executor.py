"""The real executor: a span of a model on torch, fed with bytes and asked for bytes.

Owns the way between the wire's bodies and tensors, and the measurement of what the span can do. The span itself is
`swarm_model`'s. Imports torch: only `program.py` imports this module, and only when a node really starts.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from swarm_model import int8_codec
from swarm_model.errors import InvalidActivations, ModelError
from swarm_model.loading import is_finite
from swarm_model.prefixes import CHUNK_TOKENS
from swarm_model.sampling_params import Sampling
from swarm_model.session_states import REDONE_TOKENS
from swarm_model.span import Chunk, Sampled, SampleRequest, SessionKey, Span
from swarm_net.messages import SamplingSpec
from swarm_net.prefixes import PREFIX_CHUNK_TOKENS
from swarm_net.session_errors import ComputeFailed
from swarm_node.executor import Draw, Drawn, Output, Piece, Prefix, SpanFacts
from swarm_node.sessions import MAX_CANDIDATES

assert CHUNK_TOKENS == PREFIX_CHUNK_TOKENS
assert REDONE_TOKENS > MAX_CANDIDATES


class SpanExecutor:
    """Runs pieces on a loaded span."""

    def __init__(self, span: Span, *, swap_bytes: int = 0) -> None:
        """`swap_bytes` of host memory are promised to sessions beside the KV pool, where pages hold all they keep."""
        info = span.info
        swap_pages = swap_bytes // (info.kv_bytes_per_token * info.page_size) if info.mode == "paged" else 0
        self._span = span
        self._dtype = getattr(torch, info.dtype)
        self.facts = SpanFacts(
            start=info.start,
            end=info.end,
            num_blocks=info.num_blocks,
            hidden_bytes=info.hidden_size * self._dtype.itemsize,
            vocab_size=info.vocab_size,
            max_context=info.max_position,
            dtype=info.dtype,
            numeric_class=info.numeric_class,
            page_size=info.page_size,
            kv_tokens=(info.pages + swap_pages) * info.page_size,
            swapped_tokens=swap_pages * info.page_size,
            rewind=info.rewind,
            block_digests=info.block_digests,
            weight_bytes=info.weight_bytes,
            kv_bytes_per_token=info.kv_bytes_per_token,
            quantization=info.quantization,
            mode=info.mode,
            max_sessions=info.max_sessions,
        )

    def run(self, pieces: Sequence[Piece]) -> list[Output]:
        """Run one batch; see Executor."""
        outputs: list[Output] = [None] * len(pieces)
        chunks, places = [], []
        for place, piece in enumerate(pieces):
            try:
                chunks.append(self._chunk(piece))
                places.append(place)
            except InvalidActivations as error:
                outputs[place] = ComputeFailed(reason=str(error))
        for place, output in zip(places, self._span.forward(chunks, blocks=pieces[0].blocks), strict=True):
            outputs[place] = _output(output, pieces[place].codec)
        return outputs

    def adopt(self, session: bytes, prefix: Prefix) -> int:
        """Let a session begin with what is kept of its prefix; see Executor."""
        return self._span.adopt(SessionKey(session), prefix.scope, prefix.digests)

    def drop(self, session: bytes) -> None:
        """Forget a session."""
        self._span.drop(SessionKey(session))

    def _chunk(self, piece: Piece) -> Chunk:
        if piece.blocks[0] == 0:
            inputs = torch.from_numpy(np.frombuffer(piece.data, "<i4").astype(np.int64))  # [count]
        else:
            data = memoryview(piece.data)
            data = memoryview(bytearray(data)) if data.readonly else data
            if piece.codec == "int8":
                flat = torch.frombuffer(data, dtype=torch.uint8)
                inputs = int8_codec.decode(flat, piece.count, self._span.info.hidden_size)  # [count, hidden]
            else:
                dtype = getattr(torch, piece.dtype or self.facts.dtype)
                inputs = torch.frombuffer(data, dtype=dtype).view(piece.count, -1)  # [count, hidden]
            if not is_finite(inputs):
                raise InvalidActivations("the activations that came are not finite")
        return Chunk(SessionKey(piece.session), piece.position, inputs, _request(piece.draw))


def _output(output: torch.Tensor | tuple[Sampled, ...] | ModelError | None, codec: str) -> Output:
    if isinstance(output, torch.Tensor):
        if codec == "int8":
            try:
                return int8_codec.encode(output).cpu().numpy().data.cast("B")
            except InvalidActivations as error:
                return ComputeFailed(reason=str(error))
        output = output.contiguous().cpu()
        if not is_finite(output):
            return ComputeFailed(reason="its activations are not finite")
        return output.view(torch.uint8).numpy().data.cast("B")
    if isinstance(output, tuple):
        return tuple(Drawn(one.token, one.logprob, one.top) for one in output)
    if isinstance(output, ModelError):
        return ComputeFailed(reason=str(output))  # the node's checks should have caught it
    return None


def _request(draw: Draw | None) -> SampleRequest | None:
    if draw is None:
        return None
    return SampleRequest(sampling_of(draw.sampling), draw.history, draw.drafts, draw.masks)


def sampling_of(spec: SamplingSpec) -> Sampling:
    """Translate the wire's sampling parameters into the model's."""
    return Sampling(
        temperature=spec.temperature,
        top_k=spec.top_k,
        top_p=spec.top_p,
        min_p=spec.min_p,
        repetition_penalty=spec.repetition_penalty,
        seed=spec.seed,
        top_logprobs=spec.top_logprobs,
        logprobs=spec.logprobs,
        frequency_penalty=spec.frequency_penalty,
        presence_penalty=spec.presence_penalty,
        logit_bias=tuple((biased.token, biased.bias) for biased in spec.logit_bias),
        prompt_tokens=spec.prompt_tokens,
    )


@dataclass(frozen=True, slots=True)
class Rates:
    """What a span was measured to do, in tokens a second."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float


def measure(executor: SpanExecutor, *, prompt_tokens: int = 64, decode_steps: int = 16) -> Rates:
    """Run a made-up session and time it: the best of a few, since what else runs is no part of the machine."""
    facts, session = executor.facts, b"measure"
    prompt_tokens = min(prompt_tokens, facts.max_context - decode_steps - 1, facts.kv_tokens - decode_steps - 1)
    draw = Draw(SamplingSpec()) if facts.end == facts.num_blocks else None
    width = 4 if facts.start == 0 else facts.hidden_bytes

    def run(position: int, count: int) -> float:
        piece = Piece(session, (facts.start, facts.end), position, count, bytearray(width * count), draw)
        started_s = time.perf_counter()
        executor.run([piece])
        return time.perf_counter() - started_s

    run(0, prompt_tokens)  # the first run also allocates
    prefill_s = min(run(0, prompt_tokens) for _ in range(3))
    decode_s = min(run(prompt_tokens + step, 1) for step in range(decode_steps))
    executor.drop(session)
    return Rates(prompt_tokens / prefill_s, 1.0 / decode_s)
