"""What computes: the seam between the node and whatever runs a span.

Owns the values that go in and out of a step and the `Executor` interface. `span_executor.py` runs a real span with
torch; the simulator's executor returns digests in modelled time. An executor knows no network, epochs or routes; it is
used by one thread only (`compute.py`), and keeps the KV of the sessions that it has seen until they are dropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from swarm_net.links import Body
from swarm_net.messages import SamplingSpec
from swarm_net.records import Rewind
from swarm_net.session_errors import SessionError

FLOAT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
INT8_GROUP = 64  # values that share one scale of two bytes in the codec `int8`


@dataclass(frozen=True, slots=True)
class Draw:
    """Draw the token behind a piece; `history` holds every id up to there, where penalties need it.

    `drafts` are the piece's last tokens where they are guesses: then draw behind the token before them too, and behind
    each of them for as long as the drawn token is the guess. `masks` say what a grammar allows there: a bit for each
    token, a row for each draw up to one that bars its guess.
    """

    sampling: SamplingSpec
    history: NDArray[np.int32] | None = None  # [position + count]
    drafts: tuple[int, ...] = ()
    masks: tuple[bytes, ...] | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Some tokens of one session that run in one batch."""

    session: bytes
    blocks: tuple[int, int]  # [start, end) that this session runs here: a part of the span, or all of it
    position: int  # tokens cached before; what is cached beyond is cut first
    count: int
    data: Body  # int32 ids [count] where they start at 0, else raw activations [count, hidden]
    draw: Draw | None = None  # only where they end the model
    dtype: str = ""  # of the activations in `data`, where it is not the span's own
    codec: str = "raw"  # of the activations in `data` and in the output


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of a session's prompt: one digest for each `PREFIX_CHUNK_TOKENS`, and who may share it."""

    scope: bytes
    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token, and where they were asked for, log-probabilities of the model's own distribution."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


Output = Body | tuple[Drawn, ...] | SessionError | None
"""Activations [count, hidden] for the next hop; the tokens drawn, one more than drafts were right; what went wrong with
this piece alone; or nothing."""


@dataclass(frozen=True, slots=True)
class SpanFacts:
    """What the node has to know of its span, to check peers' input and to tell others."""

    start: int
    end: int
    num_blocks: int
    hidden_bytes: int  # of one token's activations
    vocab_size: int
    max_context: int
    dtype: str
    numeric_class: str
    page_size: int
    kv_tokens: int  # that fit the KV pool and the swap space, all sessions together
    rewind: Rewind
    block_digests: tuple[bytes, ...]
    weight_bytes: int = 0
    kv_bytes_per_token: int = 0
    quantization: str = ""
    swapped_tokens: int = 0  # as many of these have to be in host memory
    mode: str = "paged"  # how the span computes: see docs/models.md
    max_sessions: int | None = None  # that have room for what they keep besides KV; None where they keep nothing such

    @property
    def pool_tokens(self) -> int:
        """Count the tokens that fit the KV pool: the most that one session may have."""
        return self.kv_tokens - self.swapped_tokens

    @property
    def record_class(self) -> str:
        """The numeric class that this span's record has: what a session may ask for."""
        return f"{self.dtype}/{self.quantization}" if self.quantization else self.dtype

    @property
    def codecs(self) -> tuple[str, ...]:
        """The codecs that activations may come and go in."""
        return ("raw", "int8") if self.dtype in FLOAT_BYTES else ("raw",)

    def activation_bytes(self, dtype: str, codec: str = "raw") -> int | None:
        """Return the size of one token's activations in a number format and codec; None for what is not understood."""
        if codec not in self.codecs:
            return None
        if dtype in ("", self.dtype) and codec == "raw":
            return self.hidden_bytes
        if dtype not in ("", *FLOAT_BYTES) or self.dtype not in FLOAT_BYTES:
            return None
        hidden = self.hidden_bytes // FLOAT_BYTES[self.dtype]
        return hidden * FLOAT_BYTES[dtype] if codec == "raw" else hidden + 2 * -(-hidden // INT8_GROUP)


class Executor(Protocol):
    """Runs pieces of many sessions at once."""

    facts: SpanFacts

    def run(self, pieces: Sequence[Piece]) -> list[Output]:
        """Run one batch, at most one piece a session and all for the same blocks; one output a piece.

        What is wrong with one piece stands in its place in the list; an exception means that the whole batch failed.
        """

    def adopt(self, session: bytes, prefix: Prefix) -> int:
        """Let a new session begin with what is kept of its prefix; return how many tokens that are, 0 for none."""

    def drop(self, session: bytes) -> None:
        """Forget a session; one that is not known is already forgotten."""


class TimedExecutor(Executor, Protocol):
    """An executor for virtual time: says how long a batch takes."""

    def duration_s(self, pieces: Sequence[Piece]) -> float: ...
