"""What is billed depends on which tokens were computed, not on how they came."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_ledger.metering import Meter, Place, Work
from tests.ledger.sessions import RATES, quote_of

PLACES = st.builds(
    Place,
    blocks=st.integers(1, 80),
    is_first=st.booleans(),
    is_last=st.booleans(),
    logprobs=st.booleans(),
    pages=st.integers(0, 100),
)


def meter(place: Place, price: int = 10**9) -> Meter:
    return Meter(quote_of(price), place)


@given(
    place=PLACES,
    start=st.integers(0, 70_000),
    chunks=st.lists(st.integers(1, 5000), min_size=1, max_size=6),
    kind=st.sampled_from(["prefill", "decode", "replay"]),
)
def test_chunks_change_nothing(place: Place, start: int, chunks: list[int], kind: Work) -> None:
    whole, parts = meter(place), meter(place)
    whole.step(kind, start, sum(chunks), 1)
    position = start
    for number, chunk in enumerate(chunks):
        parts.step(kind, position, chunk, int(number == len(chunks) - 1))
        position += chunk
    assert (parts.rated_ns, parts.units, parts.amount) == (whole.rated_ns, whole.units, whole.amount)


@given(place=PLACES, position=st.integers(0, 70_000), count=st.integers(1, 40))
def test_a_verify_step_is_one_token_and_its_guesses(place: Place, position: int, count: int) -> None:
    verify = meter(place)
    verify.step("verify", position, count, count)
    assert verify.units["decode"] == place.blocks
    assert verify.units.get("draft", 0) == (count - 1) * place.blocks
    alone = meter(place)
    alone.step("decode", position, 1, 1)
    assert verify.rated_ns >= alone.rated_ns


@given(
    place=PLACES,
    steps=st.lists(st.tuples(st.sampled_from(["prefill", "decode", "verify", "replay"]), st.integers(1, 3000))),
    price=st.integers(0, 10**24),
)
def test_the_parts_that_steps_cost_come_to_the_whole(place: Place, steps: list[tuple[Work, int]], price: int) -> None:
    counted = meter(place, price)
    counted.lease(7)
    counted.cached(40)
    paid, position = counted.amount, 0
    for kind, count in steps:
        cost = counted.cost_of(kind, position, count, 1)
        before = counted.amount
        counted.step(kind, position, count, 1)
        assert counted.amount - before == cost >= 0
        paid += cost
        position += count
    assert counted.amount == paid == counted.quote.amount(counted.rated_ns)


def test_each_line_at_its_rate() -> None:
    place = Place(blocks=2, is_first=True, is_last=True, logprobs=True, pages=3)
    counted = meter(place)
    counted.lease(10)
    counted.cached(5)
    counted.step("prefill", 1000, 100, 1)
    assert counted.units == {"kv": 30, "cached": 10, "prefill": 200, "embedding": 100, "head": 1, "logprobs": 1}
    near, far = 24 * 2 * RATES.prefill[0], 76 * 2 * RATES.prefill[1]
    other = 30 * RATES.page_second + 10 * RATES.cached + 100 * RATES.embedding + RATES.head + RATES.logprobs
    assert counted.rated_ns == near + far + other


@pytest.mark.parametrize(("is_first", "is_last"), [(False, False), (True, False), (False, True)])
def test_embedding_and_head_count_where_they_are(is_first: bool, is_last: bool) -> None:
    counted = meter(Place(blocks=1, is_first=is_first, is_last=is_last))
    counted.step("decode", 0, 1, 1)
    assert ("embedding" in counted.units, "head" in counted.units, "logprobs" in counted.units) == (
        is_first,
        is_last,
        False,
    )


def test_a_copy_goes_its_own_way() -> None:
    counted = meter(Place(blocks=1, is_first=False, is_last=False))
    counted.step("decode", 0, 1, 0)
    copy = counted.copy()
    copy.step("decode", 1, 1, 0)
    assert counted.units == {"decode": 1}
    assert copy.units == {"decode": 2}
