"""The digest model: any split and any chunking gives its tokens; anything out of order does not."""

from itertools import islice, pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from swarm_net.messages import SamplingSpec
from swarm_net.session_errors import PositionGap
from swarm_node.executor import Draw, Drawn, Piece
from swarm_sim.digest_executor import DigestExecutor, Speed, digest_facts
from swarm_sim.digest_model import continuation

BLOCKS = 6
DRAW = Draw(SamplingSpec())
prompts = st.lists(st.integers(0, 31_999), min_size=1, max_size=20)


def executor(start: int, end: int) -> DigestExecutor:
    return DigestExecutor(digest_facts(start, end, BLOCKS, kv_tokens=1024), Speed())


class Pipeline:
    """Hops in a row, as nodes would run them."""

    def __init__(self, cuts: list[int]) -> None:
        self.hops = [executor(start, end) for start, end in pairwise([0, *cuts, BLOCKS])]

    def feed(self, position: int, tokens: list[int]) -> Drawn:
        data = np.array(tokens, "<i4").tobytes()
        for hop in self.hops:
            blocks = (hop.facts.start, hop.facts.end)
            draw = DRAW if hop.facts.end == BLOCKS else None
            (output,) = hop.run([Piece(b"s" * 16, blocks, position, len(tokens), data, draw)])
            if isinstance(output, tuple):
                (drawn,) = output
                return drawn
            assert isinstance(output, bytes)
            data = output
        raise AssertionError("the last hop draws")


@given(
    prompt=prompts,
    cuts=st.sets(st.integers(1, BLOCKS - 1)),
    chunk=st.integers(1, 20),
    rewind=st.integers(0, 19),
)
def test_any_split_chunking_and_rewinding_gives_the_models_tokens(
    prompt: list[int], cuts: set[int], chunk: int, rewind: int
) -> None:
    pipeline = Pipeline(sorted(cuts))
    pipeline.feed(0, [7] * len(prompt))  # what an earlier epoch left behind
    for start in range(0, len(prompt), chunk):
        drawn = pipeline.feed(start, prompt[start : start + chunk])
    back_to = min(rewind, len(prompt) - 1)
    drawn = pipeline.feed(back_to, prompt[back_to:])
    tokens = [drawn.token]
    for position in range(len(prompt), len(prompt) + 5):
        tokens.append(pipeline.feed(position, tokens[-1:]).token)
    assert tokens == list(islice(continuation(prompt, BLOCKS), 6))


@given(prompt=st.lists(st.integers(0, 31_999), min_size=2, max_size=20, unique=True), swap=st.integers(0, 18))
def test_a_swapped_a_lost_and_a_repeated_token_change_the_answer(prompt: list[int], swap: int) -> None:
    place = swap % (len(prompt) - 1)
    swapped = [*prompt[:place], prompt[place + 1], prompt[place], *prompt[place + 2 :]]
    lost = prompt[:place] + prompt[place + 1 :]
    repeated = prompt[: place + 1] + prompt[place:]
    answers = [tuple(islice(continuation(tokens, BLOCKS), 3)) for tokens in (prompt, swapped, lost, repeated)]
    assert len(set(answers)) == 4


def test_a_gap_fails_the_piece_and_nothing_else() -> None:
    first = executor(0, 3)
    ids = np.array([1, 2], "<i4").tobytes()
    good, gap = first.run([Piece(b"a" * 16, (0, 3), 0, 2, ids), Piece(b"b" * 16, (0, 3), 4, 2, ids)])
    assert isinstance(good, bytes)
    assert isinstance(gap, PositionGap)
    assert (gap.position, gap.cached) == (4, 0)


def test_a_dropped_session_begins_anew() -> None:
    first = executor(0, 3)
    ids = np.array([1], "<i4").tobytes()
    first.run([Piece(b"a" * 16, (0, 3), 0, 1, ids)])
    first.drop(b"a" * 16)
    first.drop(b"unknown")
    (output,) = first.run([Piece(b"a" * 16, (0, 3), 1, 1, ids)])
    assert isinstance(output, PositionGap)


def test_a_batch_takes_its_weights_once_and_each_of_its_tokens() -> None:
    middle = DigestExecutor(digest_facts(2, 5, BLOCKS, kv_tokens=64), Speed(block_s=1.0, token_block_s=0.1).scaled(2.0))
    pieces = [Piece(b"a" * 16, (2, 5), 0, 4, b""), Piece(b"b" * 16, (2, 5), 0, 1, b"")]
    assert middle.duration_s(pieces) == 3 * (2.0 + 5 * 0.2)
