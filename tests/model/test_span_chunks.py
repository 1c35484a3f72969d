"""What a span does with chunks that cannot be computed, with cuts, and with pages that are scattered."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from swarm_model.errors import ContextTooLong, InvalidChunk, KVFull, ModelError, PositionGap
from swarm_model.sampling_params import Sampling
from swarm_model.span import Chunk, Output, SampleRequest, SessionKey, Span
from swarm_model.transfers import Transfers
from tests.model.families import BLOCKS, LONGEST, VOCABULARY, load_reference, load_spans

A, B, C = (SessionKey(name) for name in (b"a", b"b", b"c"))
GREEDY = SampleRequest(Sampling())
PAGE_BYTES = 4 * 2 * 2 * 16 * 4  # of one block: page size, keys and values, kv heads, head size, float32


@pytest.fixture(scope="module")
def whole(checkpoint_of: Callable[[str], Path]) -> Span:
    """All blocks of a Llama, with eight pages of four tokens."""
    return load_spans(checkpoint_of("llama"), [0, BLOCKS], kv_bytes=8 * PAGE_BYTES * BLOCKS)[0]


@pytest.fixture(autouse=True)
def _nothing_left_behind(whole: Span) -> Any:
    yield
    for session in (A, B, C):
        whole.drop(session)
    assert whole.pages_free == whole.info.pages == 8


def ids(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))


def likeliest(checkpoint: Path, text: torch.Tensor) -> int:
    with torch.inference_mode():
        return int(load_reference(checkpoint, torch.float32)(text[None]).logits[0, -1].argmax())


def token_of(output: Output) -> int:
    assert isinstance(output, tuple)
    (sampled,) = output
    return sampled.token


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (Chunk(B, 0, ids(33), GREEDY), KVFull(9, 7)),
        (Chunk(B, 3, ids(2), GREEDY), PositionGap(3, 0)),
        (Chunk(B, 0, ids(LONGEST + 1), GREEDY), ContextTooLong(LONGEST + 1, LONGEST)),
        (Chunk(B, 0, ids(0), GREEDY), InvalidChunk("token ids must be [tokens] int64, not [0] torch.int64")),
        (Chunk(B, 0, ids(4)[None], GREEDY), InvalidChunk("token ids must be [tokens] int64, not [1, 4] torch.int64")),
        (Chunk(B, 0, torch.rand(2, 64)), InvalidChunk("token ids must be [tokens] int64, not [2, 64] torch.float32")),
        (Chunk(B, 0, torch.tensor([5, VOCABULARY])), InvalidChunk(f"token ids go from 0 to {VOCABULARY - 1}")),
        (Chunk(B, 0, torch.tensor([-1])), InvalidChunk(f"token ids go from 0 to {VOCABULARY - 1}")),
        (Chunk(B, -1, ids(4)), InvalidChunk("a position below 0, or a session twice in one step")),
        (Chunk(A, 0, ids(2)), InvalidChunk("a position below 0, or a session twice in one step")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_bad_chunk_fails_alone(
    bad: Chunk, error: ModelError, whole: Span, checkpoint_of: Callable[[str], Path]
) -> None:
    good, other = Chunk(A, 0, ids(3), GREEDY), Chunk(C, 0, ids(5, seed=1), GREEDY)

    outputs = whole.forward([good, bad, other])

    assert type(outputs[1]) is type(error)
    assert dataclasses.asdict(outputs[1]) == dataclasses.asdict(error)
    assert outputs[1].remedy()
    assert token_of(outputs[0]) == likeliest(checkpoint_of("llama"), ids(3))
    assert token_of(outputs[2]) == likeliest(checkpoint_of("llama"), ids(5, seed=1))
    assert [whole.cached(session) for session in (A, B, C)] == [3, 0, 5]


def test_a_refused_chunk_leaves_its_session_as_it_was(whole: Span, checkpoint_of: Callable[[str], Path]) -> None:
    whole.forward([Chunk(A, 0, ids(10))])
    (refusal,) = whole.forward([Chunk(A, 4, ids(30))])
    assert isinstance(refusal, KVFull)
    assert refusal.retry_elsewhere
    (output,) = whole.forward([Chunk(A, 10, ids(12)[10:], GREEDY)])
    assert token_of(output) == likeliest(checkpoint_of("llama"), ids(12))


def test_hidden_states_of_a_wrong_width_are_refused(checkpoint_of: Callable[[str], Path]) -> None:
    (middle,) = load_spans(checkpoint_of("llama"), [2, 4])
    outputs = middle.forward([Chunk(A, 0, torch.rand(3, 63)), Chunk(B, 0, ids(3)), Chunk(C, 0, torch.rand(0, 64))])
    assert [type(output) for output in outputs] == [InvalidChunk] * 3
    (hidden,) = middle.forward([Chunk(A, 0, torch.rand(3, 64))])
    assert isinstance(hidden, torch.Tensor)
    assert hidden.shape == (3, 64)


def test_only_chunks_that_ask_are_sampled(whole: Span) -> None:
    first, second = whole.forward([Chunk(A, 0, ids(3)), Chunk(B, 0, ids(3), GREEDY)])
    assert first is None
    assert isinstance(second, tuple)
    assert whole.forward([Chunk(A, 3, ids(3))]) == [None]
    assert whole.forward([]) == []


def test_a_lower_position_cuts_the_cache(whole: Span, checkpoint_of: Callable[[str], Path]) -> None:
    whole.forward([Chunk(A, 0, ids(20))])
    (output,) = whole.forward([Chunk(A, 7, ids(3, seed=9), GREEDY)])
    assert whole.cached(A) == 10
    assert token_of(output) == likeliest(checkpoint_of("llama"), torch.cat([ids(20)[:7], ids(3, seed=9)]))


@pytest.mark.parametrize("seed", range(6))
def test_scattered_pages_change_nothing(seed: int, whole: Span, checkpoint_of: Callable[[str], Path]) -> None:
    """Three sessions fill a pool of eight pages by turns, so that their pages cannot all stay side by side."""
    rng = random.Random(seed)
    texts = {A: ids(10, seed), B: ids(10, seed + 1), C: ids(8, seed + 2)}
    whole.forward([Chunk(session, 0, text[:1]) for session, text in texts.items()])
    while waiting := [session for session, text in texts.items() if whole.cached(session) < len(text)]:
        chunks = []
        for session in rng.sample(waiting, rng.randint(1, len(waiting))):
            position = whole.cached(session)
            tokens = rng.randint(1, min(3, len(texts[session]) - position))
            chunks.append(Chunk(session, position, texts[session][position : position + tokens], GREEDY))
        for chunk, output in zip(chunks, whole.forward(chunks), strict=True):
            text = texts[chunk.session][: whole.cached(chunk.session)]
            assert token_of(output) == likeliest(checkpoint_of("llama"), text)
    assert whole.pages_free == 0
    assert not all(whole._kv.pages.table(session).contiguous for session in texts)


def test_a_failed_step_cuts_its_sessions_back(checkpoint_of: Callable[[str], Path]) -> None:
    class Broken:
        def run(self, *_: Any) -> torch.Tensor:
            raise RuntimeError("out of memory")

    (span,) = load_spans(checkpoint_of("llama"), [0, BLOCKS])
    span.forward([Chunk(A, 0, ids(9))])
    broken = Span(span.info, Broken(), span._kv, torch.float32, Transfers(torch.device("cpu")))
    with pytest.raises(RuntimeError, match="out of memory"):
        broken.forward([Chunk(A, 9, ids(2)), Chunk(B, 0, ids(2))])
    assert (span.cached(A), span.cached(B)) == (9, 0)
    assert span.pages_free == span.info.pages - 3
