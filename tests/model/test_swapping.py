"""Sessions that do not fit the KV pool together: moved to host memory and back, they compute what they would alone."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from swarm_model.errors import KVFull
from swarm_model.sampling_params import Sampling
from swarm_model.span import Chunk, SampleRequest, SessionKey, Span
from swarm_model.transfers import Transfers
from tests.model.families import BLOCKS, VOCABULARY, load_reference, load_spans

GREEDY = SampleRequest(Sampling())
PAGE_BYTES = 4 * 2 * 2 * 16 * 4  # of one block: page size, keys and values, kv heads, head size, float32
PAGES = 8  # of four tokens


@pytest.fixture
def span(checkpoint_of: Callable[[str], Path]) -> Span:
    return load_spans(checkpoint_of("llama"), [0, BLOCKS], kv_bytes=PAGES * PAGE_BYTES * BLOCKS)[0]


def ids(count: int, seed: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))


def tokens_of(outputs: list[object]) -> list[int]:
    tokens = []
    for output in outputs:
        assert isinstance(output, tuple), output
        tokens.append(output[0].token)
    return tokens


def likeliest(checkpoint: Path, text: torch.Tensor) -> int:
    with torch.inference_mode():
        return int(load_reference(checkpoint, torch.float32)(text[None]).logits[0, -1].argmax())


@pytest.mark.parametrize("seed", range(4))
def test_sessions_three_times_as_large_as_the_pool(seed: int, span: Span, checkpoint_of: Callable[[str], Path]) -> None:
    rng = random.Random(seed)
    texts = {SessionKey(bytes([number])): ids(rng.randint(8, 24), seed * 8 + number) for number in range(6)}
    while waiting := [session for session, text in texts.items() if span.cached(session) < len(text)]:
        chosen = rng.sample(waiting, rng.randint(1, len(waiting)))
        chunks = []
        for session in chosen:
            position = span.cached(session)
            if rng.random() < 0.2:
                position = rng.randint(0, position)  # it goes back
            end = rng.randint(position + 1, min(position + 6, len(texts[session])))
            chunks.append(Chunk(session, position, texts[session][position:end], GREEDY))
        expected = [
            likeliest(checkpoint_of("llama"), texts[chunk.session][: chunk.position + len(chunk.inputs)])
            for chunk in chunks
        ]
        assert tokens_of(span.forward(chunks)) == expected
    for session in texts:
        span.drop(session)
    assert span.pages_free == PAGES


def test_a_session_larger_than_the_pool_is_refused_and_moves_nobody(span: Span) -> None:
    small, large = SessionKey(b"small"), SessionKey(b"large")
    span.forward([Chunk(small, 0, ids(4, 0))])
    (output,) = span.forward([Chunk(large, 0, ids(4 * PAGES + 1, 1))])
    assert isinstance(output, KVFull)
    assert (span.cached(small), span.pages_free) == (4, PAGES - 1)


def test_a_failed_step_leaves_swapped_sessions_where_they_were(checkpoint_of: Callable[[str], Path]) -> None:
    """The second wave of a step fails: the first one's sessions, swapped out for it, are cut back as well."""
    (span,) = load_spans(checkpoint_of("llama"), [0, BLOCKS], kv_bytes=PAGES * PAGE_BYTES * BLOCKS)
    first, second = SessionKey(b"first"), SessionKey(b"second")
    text = ids(24, 3)
    span.forward([Chunk(first, 0, text[:16])])
    span.forward([Chunk(second, 0, text[:16])])

    class FailsOnce:
        calls = 0

        def run(self, *arguments: object) -> torch.Tensor:
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("out of memory")
            return span._driver.run(*arguments)  # type: ignore[arg-type]

    failing = Span(span.info, FailsOnce(), span._kv, torch.float32, Transfers(torch.device("cpu")))
    with pytest.raises(RuntimeError, match="out of memory"):
        failing.forward([Chunk(first, 16, text[16:20]), Chunk(second, 16, text[16:20])])
    assert (span.cached(first), span.cached(second)) == (16, 16)
    outputs = [span.forward([Chunk(session, 16, text[16:24], GREEDY)])[0] for session in (first, second)]
    assert tokens_of(outputs) == [likeliest(checkpoint_of("llama"), text)] * 2
