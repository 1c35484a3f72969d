"""Nodes that choose for themselves, one after another: no block stays without a server, none is served by all."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_net.messages import ModelId
from swarm_net.placement import choose_span
from swarm_net.records import Record, missing_blocks

spans = st.tuples(st.integers(0, 11), st.integers(1, 12), st.sampled_from((0.0, 5.0, 50.0)))


def node(start: int, end: int, *, num_blocks: int = 12, rate: float = 20.0, state: str = "online") -> Record:
    return Record(
        sequence=1,
        published_ns=0,
        expires_ns=1,
        peer="p",
        model=ModelId(name="m", revision="r"),
        num_blocks=num_blocks,
        start=start,
        end=end,
        state=state,  # type: ignore[arg-type]
        dtype="float32",
        max_context=64,
        decode_tokens_per_s=rate,
    )


@settings(deadline=None)
@given(st.lists(spans, max_size=8), st.integers(1, 20), st.floats(0, 1e6), st.integers(0, 99))
def test_the_span_lies_in_the_model_and_takes_most_of_what_is_lacking(
    served: list[tuple[int, int, float]], capacity: int, my_rate: float, seed: int
) -> None:
    records = [node(start, min(12, start + length), rate=rate) for start, length, rate in served]
    start, end = choose_span(records, 12, capacity, my_rate, Random(seed))
    width = min(capacity, 12)
    assert 0 <= start < end == start + width <= 12
    lacking = {block for gap in missing_blocks(records, 12) for block in range(*gap)}
    assert len(lacking & set(range(start, end))) == max(
        len(lacking & set(range(first, first + width))) for first in range(12 - width + 1)
    )


@settings(deadline=None)
@given(st.integers(1, 40), st.lists(st.integers(1, 12), min_size=1, max_size=12), st.integers(0, 99))
def test_each_newcomer_closes_a_gap_while_there_is_one(num_blocks: int, capacities: list[int], seed: int) -> None:
    records: list[Record] = []
    rng = Random(seed)
    for capacity in capacities:
        before = sum(end - start for start, end in missing_blocks(records, num_blocks))
        start, end = choose_span(records, num_blocks, capacity, 20.0, rng)
        records.append(node(start, end, num_blocks=num_blocks))
        after = sum(end - start for start, end in missing_blocks(records, num_blocks))
        assert after < before or before == 0


def test_three_thirds_make_a_model_whoever_comes_first() -> None:
    for seed in range(50):
        rng = Random(seed)
        records: list[Record] = []
        for _ in range(3):
            records.append(node(*choose_span(records, 12, 4, 20.0, rng)))
        assert not missing_blocks(records, 12)


def test_a_whole_swarm_balances_itself() -> None:
    rng = Random(1)
    records: list[Record] = []
    for _ in range(60):
        rate = rng.choice((5.0, 20.0, 80.0))
        records.append(node(*choose_span(records, 32, rng.randint(4, 16), rate, rng), num_blocks=32, rate=rate))
    throughput = [sum(each.decode_tokens_per_s for each in records if each.start <= b < each.end) for b in range(32)]
    assert min(throughput) > 0.7 * sum(throughput) / 32


def test_the_weakest_blocks_are_helped() -> None:
    records = [node(0, 6, rate=100.0), node(6, 12, rate=10.0)]
    assert choose_span(records, 12, 6, 20.0, Random(0)) == (6, 12)


def test_leaving_nodes_do_not_count_and_joining_ones_do() -> None:
    assert choose_span([node(0, 6, state="joining")], 12, 6, 20.0, Random(0)) == (6, 12)
    assert choose_span([node(0, 6), node(6, 12, state="draining")], 12, 6, 20.0, Random(0)) == (6, 12)


def test_nodes_that_start_together_do_not_decide_alike() -> None:
    assert len({choose_span([], 12, 4, 20.0, Random(seed)) for seed in range(30)}) > 1


def test_a_span_has_a_block() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        choose_span([], 12, 0, 20.0, Random(0))
