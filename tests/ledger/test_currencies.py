"""Amounts as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_ledger.currencies import CREDITS, ETHER, Currency

currencies = st.builds(Currency, st.just("X"), st.integers(0, 36))


@given(currency=currencies, amount=st.integers(0, 2**128))
def test_every_amount_is_written_exactly_and_read_again(currency: Currency, amount: int) -> None:
    text = currency.format(amount)
    assert text.endswith(" X")
    assert currency.parse(text.removesuffix(" X")) == amount


@pytest.mark.parametrize(
    ("amount", "digits", "text"),
    [
        (0, None, "0 credits"),
        (1, None, "0.000000001 credits"),
        (1_500_000_000, None, "1.5 credits"),
        (100_000_000_000, None, "100 credits"),
        (1_234_567_890, 3, "1.23 credits"),
        (123_456_000_000_000, 2, "120000 credits"),
        (0, 3, "0 credits"),
    ],
)
def test_how_amounts_look(amount: int, digits: int | None, text: str) -> None:
    assert CREDITS.format(amount, digits) == text


def test_the_last_wei_of_a_large_amount_is_read() -> None:
    assert ETHER.parse("12345678901234567890.123456789012345678") == 12345678901234567890123456789012345678


@pytest.mark.parametrize(
    "text", ["", "one", "-1", "NaN", "sNaN", "Infinity", "1e40", "1e999999", "1e-999999", "0.0000000001", "1.2.3"]
)
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(ValueError):
        CREDITS.parse(text)
