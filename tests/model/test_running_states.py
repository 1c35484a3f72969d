"""Sessions with a running state beside their pages: how far back they go, how many have room, and prefixes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from swarm_model.checkpoint import Checkpoint
from swarm_model.draft_model import DraftModel
from swarm_model.errors import KVPoolTooSmall, RewindImpossible, SessionsFull
from swarm_model.sampling_params import Sampling
from swarm_model.session_states import REDONE_TOKENS
from swarm_model.sizing import COUNTED_PAGES, EXPECTED_TOKENS, Room
from swarm_model.span import Chunk, SampleRequest, SessionKey, Span
from tests.model.families import BLOCKS, RUNNING, VOCABULARY, load_reference, load_spans

A, B = SessionKey(b"a"), SessionKey(b"b")
GREEDY = SampleRequest(Sampling())


@pytest.fixture(scope="module", params=RUNNING)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def span(family: str, checkpoint_of: Callable[[str], Path]) -> Span:
    """All blocks of a hybrid with pages, and of one without."""
    return load_spans(checkpoint_of(family), [0, BLOCKS])[0]


def ids(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))


def likeliest(directory: Path, text: torch.Tensor) -> int:
    with torch.inference_mode():
        return int(load_reference(directory, torch.float32)(text[None]).logits[0, -1].argmax())


def test_a_session_goes_back_within_its_last_chunk(
    span: Span, family: str, checkpoint_of: Callable[[str], Path]
) -> None:
    assert (span.info.mode, span.info.rewind) == ("recurrent", "checkpoints")
    text = ids(50)
    span.forward([Chunk(A, 0, text[:20])])
    span.forward([Chunk(A, 20, text[20:30])])  # guesses
    for position, end in ((23, 33), (25, 37), (37, 38), (38, 47)):
        text = torch.cat((text[:position], ids(50, seed=position)[position:]))
        (output,) = span.forward([Chunk(A, position, text[position:end], GREEDY)])
        assert isinstance(output, tuple)
        assert output[0].token == likeliest(checkpoint_of(family), text[:end])
    span.drop(A)


def refusal(span: Span, position: int) -> int:
    """Tell how many tokens are cached, as a refusal to go back to a position does."""
    (error,) = span.forward([Chunk(A, position, ids(2))])
    assert isinstance(error, RewindImpossible)
    return error.cached


def test_no_further_than_that(span: Span) -> None:
    span.forward([Chunk(A, 0, ids(80))])
    assert refusal(span, 79) == 80
    span.forward([Chunk(A, 80, ids(3)), Chunk(B, 0, ids(9))])
    assert refusal(span, 79) == 83
    span.forward([Chunk(A, 83, ids(1))])
    assert refusal(span, 83) == 84
    assert span.cached(A) == 84
    (output,) = span.forward([Chunk(A, 0, ids(5), GREEDY)])
    assert isinstance(output, tuple)
    span.drop(A)
    span.drop(B)
    assert span.pages_free == span.info.pages


def test_hidden_states_come_back_for_new_tokens_alone(family: str, checkpoint_of: Callable[[str], Path]) -> None:
    (first,) = load_spans(checkpoint_of(family), [0, 3])
    first.forward([Chunk(A, 0, ids(REDONE_TOKENS))])
    (again,) = first.forward([Chunk(A, 40, ids(60)[40:])])
    (straight,) = first.forward([Chunk(B, 0, ids(60))])
    assert isinstance(again, torch.Tensor)
    assert isinstance(straight, torch.Tensor)
    assert again.shape == straight[40:].shape
    assert torch.allclose(again, straight[40:], atol=1e-4)


def test_a_prefix_is_not_shared_where_pages_are_not_all(span: Span) -> None:
    digests = [bytes([number]) * 32 for number in range(2)]
    assert span.adopt(A, b"scope", digests) == 0
    span.forward([Chunk(A, 0, ids(200))])
    span.drop(A)
    assert span.adopt(B, b"scope", digests) == 0


def test_sessions_have_room_for_their_states_or_are_refused(checkpoint_of: Callable[[str], Path]) -> None:
    state = load_spans(checkpoint_of("mamba2"), [0, BLOCKS])[0].info.state_bytes_per_session
    (span,) = load_spans(checkpoint_of("mamba2"), [0, BLOCKS], kv_bytes=2 * state)
    assert span.info.max_sessions == 2
    chunks = [Chunk(SessionKey(name), 0, ids(4)) for name in (b"a", b"b", b"c")]
    error = span.forward(chunks)[2]
    assert isinstance(error, SessionsFull)
    assert error.limit == 2
    span.drop(A)
    assert span.forward(chunks[2:]) == [None]
    with pytest.raises(KVPoolTooSmall):
        load_spans(checkpoint_of("mamba2"), [0, BLOCKS], kv_bytes=state - 1)


def test_memory_is_divided_between_states_and_pages() -> None:
    room = Room.of(10_000_000, bytes_per_token=100, state_bytes=900_000, page_size=16, max_position=4096)
    assert room.sessions == 10_000_000 // (900_000 + EXPECTED_TOKENS * 100)
    assert room.sessions * 900_000 + room.pages * 1600 <= 10_000_000
    assert Room.of(10_000, 100, 0, page_size=16, max_position=4096) == Room(6, None)
    counted = Room.of(1 << 40, 0, 100, page_size=16, max_position=1 << 16)
    assert counted.pages == COUNTED_PAGES


def test_a_draft_model_with_a_running_state_begins_again(checkpoint_of: Callable[[str], Path]) -> None:
    draft = DraftModel.load(Checkpoint.open(checkpoint_of("lfm2")))
    text = ids(30).tolist()
    for shown in (20, 22, 9, 30):
        assert draft.propose(A, text[:shown], 1, Sampling()) == [
            likeliest(checkpoint_of("lfm2"), torch.tensor(text[:shown]))
        ]
