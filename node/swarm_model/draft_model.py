"""A whole small model on this machine that guesses tokens for a larger one elsewhere.

Owns the sessions' state over one span of all blocks: what is fed again and what is cut when ids turn out otherwise. It
draws with the noise of each token's position, as the large model's last hop does: where both think alike, both draw the
same token, sampled too. Knows nothing of who asks; used by one thread at a time.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from swarm_model.checkpoint import Checkpoint
from swarm_model.errors import ModelError, RewindImpossible
from swarm_model.sampling_params import Sampling
from swarm_model.sizing import kv_bytes_per_token
from swarm_model.span import Chunk, SampleRequest, SessionKey, Span

SESSIONS_WITH_ROOM: Final = 8  # that reach the longest position at once; more share what there is
MAX_KV_BYTES: Final = 512 << 20
PREFILL_TOKENS: Final = 256


class DraftModel:
    """Guesses for many sessions; make one with `load`."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._ids: dict[SessionKey, list[int]] = {}  # that are cached

    @classmethod
    def load(cls, checkpoint: Checkpoint) -> "DraftModel":
        """Load all of a checkpoint on the CPU. Raises ModelError."""
        per_token = kv_bytes_per_token(checkpoint, 0, checkpoint.num_blocks, "float32")
        span = Span.load(
            checkpoint,
            0,
            checkpoint.num_blocks,
            device=torch.device("cpu"),
            dtype=torch.float32,
            kv_bytes=min(MAX_KV_BYTES, per_token * SESSIONS_WITH_ROOM * checkpoint.max_position),
        )
        return cls(span)

    def propose(self, session: SessionKey, ids: Sequence[int], count: int, sampling: Sampling) -> list[int]:
        """Guess `count` tokens behind `ids`; fewer, or none, where the context or the KV pool ends."""
        cached = self._ids.setdefault(session, [])
        position = min(_common(cached, ids), len(ids) - 1)
        known, guesses = list(ids), list[int]()
        while len(guesses) < count:
            end = min(len(known), position + PREFILL_TOKENS)
            request = SampleRequest(sampling, np.array(known)) if end == len(known) else None
            (output,) = self._span.forward([Chunk(session, position, torch.tensor(known[position:end]), request)])
            if isinstance(output, RewindImpossible):
                position = 0
                continue
            if isinstance(output, ModelError):
                break
            position = end
            if isinstance(output, tuple):
                known.append(output[0].token)
                guesses.append(output[0].token)
        self._ids[session] = known[: self._span.cached(session)]
        return guesses

    def drop(self, session: SessionKey) -> None:
        """Forget a session; one that is not known is already forgotten."""
        self._ids.pop(session, None)
        self._span.drop(session)


def _common(cached: Sequence[int], ids: Sequence[int]) -> int:
    """Count the tokens that both begin with."""
    length = min(len(cached), len(ids))
    if cached[:length] == ids[:length]:
        return length
    return next(place for place in range(length) if cached[place] != ids[place])
