"""Sessions over a chain of spans as a busy node runs them: ragged batches, chunked prefill, cuts and re-sending."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from swarm_model.errors import ModelError
from swarm_model.sampler import Sampled
from swarm_model.sampling_params import Sampling
from swarm_model.span import Chunk, SampleRequest, SessionKey, Span


@dataclass
class Session:
    """One prompt on its way through the spans."""

    key: SessionKey
    prompt: list[int]
    wanted: int
    sampling: Sampling = field(default_factory=Sampling)
    ids: list[int] = field(default_factory=list)
    cached: int = 0
    checkpoint: int = 0  # where the last chunk began
    sampled: list[Sampled] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ids = list(self.prompt)

    @property
    def done(self) -> bool:
        return len(self.sampled) >= self.wanted


def run_sessions(spans: Sequence[Span], sessions: Sequence[Session], rng: random.Random, *, cuts: bool = True) -> None:
    """Run all sessions to their end in random batches, and leave no page behind."""
    anywhere = all(span.info.rewind == "any" for span in spans)
    while unfinished := [session for session in sessions if not session.done]:
        batch = rng.sample(unfinished, rng.randint(1, len(unfinished)))
        for session in batch:
            back_to = 0 if anywhere else session.checkpoint
            if cuts and session.cached > max(1, back_to) and rng.random() < 0.2:  # what follows is sent again
                session.cached = rng.randint(back_to, session.cached - 1)
        chunks = [_next_chunk(session, rng) for session in batch]
        outputs = forward_chain(spans, chunks)
        for session, chunk, output in zip(batch, chunks, outputs, strict=True):
            session.checkpoint = session.cached if len(chunk.inputs) > 1 else session.cached + 1
            session.cached += len(chunk.inputs)
            if output is not None:
                (sampled,) = output
                session.ids.append(sampled.token)
                session.sampled.append(sampled)
    for session in sessions:
        for span in spans:
            assert span.cached(session.key) > 0
            span.drop(session.key)
    assert all(span.pages_free == span.info.pages for span in spans)


def forward_chain(spans: Sequence[Span], chunks: Sequence[Chunk]) -> list[tuple[Sampled, ...] | None]:
    """Send chunks of ids through all spans."""
    inputs: list[torch.Tensor] = [chunk.inputs for chunk in chunks]
    for span in spans:
        outputs = span.forward(
            [
                Chunk(chunk.session, chunk.position, rows, chunk.sample)
                for chunk, rows in zip(chunks, inputs, strict=True)
            ]
        )
        for output in outputs:
            if isinstance(output, ModelError):
                raise output
        inputs = outputs  # type: ignore[assignment]  # hidden states, but for the last span
    return outputs  # type: ignore[return-value]


def _next_chunk(session: Session, rng: random.Random) -> Chunk:
    left = len(session.ids) - session.cached
    tokens = rng.randint(1, min(left, 48))
    inputs = torch.tensor(session.ids[session.cached : session.cached + tokens])
    history = np.array(session.ids[: session.cached + tokens])
    request = SampleRequest(session.sampling, history) if tokens == left else None
    return Chunk(session.key, session.cached, inputs, request)


def random_cuts(rng: random.Random, blocks: int, hops: int) -> list[int]:
    """Cut `blocks` into `hops` spans at random places."""
    return [0, *sorted(rng.sample(range(1, blocks), hops - 1)), blocks]
