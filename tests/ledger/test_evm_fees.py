"""What transactions offer, first and when they are stuck."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_ledger.errors import GasTooExpensive
from swarm_ledger.evm.fees import Fee, GasPrice, first_fee, higher_fee

PRICES = st.builds(GasPrice, st.integers(0, 10**12), st.integers(0, 10**12))
LIMITS = st.integers(1, 10**13)


@given(PRICES, LIMITS)
def test_an_offer_gets_into_the_next_block_and_stays_below_the_limit(price: GasPrice, most: int) -> None:
    if price.base_fee >= most:
        with pytest.raises(GasTooExpensive):
            first_fee(price, most)
        return
    fee = first_fee(price, most)
    assert price.base_fee <= fee.max_fee <= most
    assert 0 <= fee.tip <= fee.max_fee


@given(PRICES, PRICES, LIMITS)
def test_a_higher_offer_replaces_the_one_before(price: GasPrice, later: GasPrice, most: int) -> None:
    if price.base_fee >= most:
        return
    fee = first_fee(price, most)
    higher = higher_fee(fee, later, most)
    if higher is None:
        assert 8 * most < 9 * fee.max_fee + 8
        return
    assert higher.max_fee <= most
    assert 8 * higher.max_fee >= 9 * fee.max_fee  # 12.5 %
    assert 8 * higher.tip >= 9 * fee.tip or higher.tip == higher.max_fee


def test_it_follows_the_market_where_that_is_dearer() -> None:
    assert higher_fee(Fee(100, 10), GasPrice(500, 70), 10_000) == Fee(1070, 70)
    assert higher_fee(Fee(100, 10), GasPrice(1, 1), 10_000) == Fee(113, 12)
    assert higher_fee(Fee(100, 10), GasPrice(1, 1), 112) is None
