"""When vouchers are collected: never at a loss, not before it is worth it, in time for a close."""

from hypothesis import given
from hypothesis import strategies as st

from swarm_ledger.accounts import Address
from swarm_ledger.channels import ChannelKey, ChannelState, Claim
from swarm_ledger.redeeming import Candidate, Cost, Policy, due

PAYER, PAYEE, SIGNER = (Address(bytes([number]) * 20) for number in (1, 2, 3))


def candidate(salt: int, cumulative: int, state: ChannelState) -> Candidate:
    return Candidate(Claim(ChannelKey(PAYER, PAYEE, SIGNER, salt), cumulative, bytes(64)), state)


STATES = st.builds(
    ChannelState, st.integers(1, 1000), st.integers(0, 1000), st.sampled_from([0, 0, 0, 500]), st.booleans()
).filter(lambda state: state.claimed <= state.allocated)
CANDIDATES = st.lists(st.tuples(st.integers(0, 1200), STATES), max_size=20).map(
    lambda rows: [candidate(salt, *row) for salt, row in enumerate(rows)]
)
COSTS = st.builds(Cost, st.integers(0, 500), st.integers(0, 100))


@given(CANDIDATES, COSTS, st.integers(1, 6))
def test_no_batch_costs_more_than_it_brings(candidates: list[Candidate], cost: Cost, most: int) -> None:
    by_salt = {each.claim.key.salt: each for each in candidates}
    batches = due(candidates, cost, Policy(worth=10, most_claims=most))
    salts = [claim.key.salt for batch in batches for claim in batch]
    assert len(salts) == len(set(salts))
    for batch in batches:
        assert 0 < len(batch) <= most
        chosen = [by_salt[claim.key.salt] for claim in batch]
        value = sum(each.value for each in chosen)
        assert value > cost.of(len(batch)) or value >= 10 * cost.of(len(batch)) > 0 or cost.of(len(batch)) == 0 < value
        assert all(each.value > cost.claim for each in chosen)
        assert value >= 10 * cost.of(len(batch)) or all(each.is_urgent for each in chosen)


@given(CANDIDATES, COSTS)
def test_what_a_close_would_take_away_is_collected_if_it_pays(candidates: list[Candidate], cost: Cost) -> None:
    chosen = {claim.key.salt for batch in due(candidates, cost, Policy()) for claim in batch}
    urgent = [each for each in candidates if each.is_urgent and each.value > cost.claim]
    if sum(each.value for each in urgent) > cost.of(len(urgent)):
        assert {each.claim.key.salt for each in urgent} <= chosen


@given(CANDIDATES)
def test_where_nothing_is_paid_for_it_everything_is_collected(candidates: list[Candidate]) -> None:
    chosen = [claim for batch in due(candidates, Cost(), Policy()) for claim in batch]
    assert sum(each.value > 0 for each in candidates) == len(chosen)


def test_it_waits_until_it_is_worth_ten_times_the_cost() -> None:
    cost = Cost(batch=20, claim=10)
    assert due([candidate(1, 299, ChannelState(1000, 0))], cost, Policy()) == []
    [[claim]] = due([candidate(1, 300, ChannelState(1000, 0))], cost, Policy())
    assert claim.cumulative == 300
    small = [candidate(salt, 140, ChannelState(1000, 0)) for salt in range(5)]
    assert [len(batch) for batch in due(small, cost, Policy())] == [5]
    assert due(small[:4], cost, Policy()) == []


def test_a_voucher_above_its_channel_counts_for_what_the_channel_holds() -> None:
    assert candidate(1, 10**9, ChannelState(100, 40)).value == 60
    assert candidate(1, 30, ChannelState(100, 40)).value == 0
    assert candidate(1, 90, ChannelState(100, 40, is_closed=True)).value == 0
