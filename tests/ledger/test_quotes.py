"""Price lists: what they cost, whose they are, and what is none."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_ledger.accounts import NOBODY
from swarm_ledger.channels import Domain
from swarm_ledger.errors import BadBinding, BadQuote
from swarm_ledger.quotes import (
    BUCKET_ENDS,
    MAX_QUOTE_BYTES,
    NS_PER_HOUR,
    Quote,
    bucket,
    check_binding,
    decode_quote,
    encode_quote,
    price_bytes,
    quote_digest,
    rate_at,
    sign_binding,
)
from tests.ledger.parties import PAYEES, STRANGER
from tests.ledger.sessions import quote_of

NODE_KEY = bytes([4]) * 32
NOW_S = 1_900_000_000


@given(price=st.integers(0, 2**100 - 1))
def test_a_quote_is_read_as_it_was_written(price: int) -> None:
    quote = quote_of(price)
    data = encode_quote(quote)
    assert len(data) <= MAX_QUOTE_BYTES
    assert decode_quote(data) == quote
    assert decode_quote(data).price == price


@given(st.binary(max_size=200))
def test_noise_is_no_quote(data: bytes) -> None:
    with pytest.raises(BadQuote):
        decode_quote(data)


@given(place=st.integers(0, 10_000), change=st.integers(1, 255))
def test_an_altered_quote_is_another_quote_or_none(place: int, change: int) -> None:
    meant = encode_quote(quote_of())
    data = bytearray(meant)
    data[place % len(data)] ^= change
    assert quote_digest(bytes(data)) != quote_digest(meant)
    try:
        assert isinstance(decode_quote(bytes(data)), Quote)
    except BadQuote:
        return


def test_what_no_quote_may_say() -> None:
    with pytest.raises(BadQuote):
        decode_quote(bytes(MAX_QUOTE_BYTES + 1))
    with pytest.raises(BadQuote, match="nobody"):
        decode_quote(encode_quote(msgspec.structs.replace(quote_of(), payee=NOBODY)))
    with pytest.raises(BadQuote):
        decode_quote(encode_quote(msgspec.structs.replace(quote_of(), price_per_hour=b"\xff" * 16)))
    for price in (-1, 2**100):
        with pytest.raises(BadQuote):
            price_bytes(price)
    free = msgspec.structs.replace(quote_of(0), payee=NOBODY)
    assert decode_quote(encode_quote(free)).price == 0
    with pytest.raises(BadQuote, match="at most"):
        encode_quote(msgspec.structs.replace(quote_of(), bank_addresses=("x" * 300, "y" * 300)))


@given(price=st.integers(0, 2**100 - 1), times=st.lists(st.integers(0, 10**15), min_size=1, max_size=5))
def test_amounts_are_rounded_down_once(price: int, times: list[int]) -> None:
    quote = quote_of(price)
    parts = sum(quote.amount(time) for time in times)
    assert parts <= quote.amount(sum(times)) < parts + len(times)
    assert quote.amount(NS_PER_HOUR) == price


def test_the_price_that_people_compare() -> None:
    quote = quote_of()
    assert quote.per_million_tokens(4) == 1_000_000 * (4 * quote.rates.decode[0] + quote.rates.head)


@given(position=st.integers(0, 200_000))
def test_positions_have_a_bucket(position: int) -> None:
    number = bucket(position)
    assert number == sum(position >= end for end in BUCKET_ENDS)
    assert rate_at((5,), number) == 5
    assert rate_at((1, 2, 3, 4, 6), number) == (1, 2, 3, 4, 6)[number]


def test_a_binding_is_for_one_node_one_quote_and_one_ledger() -> None:
    quote = quote_of(expires_s=NOW_S + 10)
    binding = sign_binding(quote, NODE_KEY, PAYEES[0])
    check_binding(quote, binding, NODE_KEY, NOW_S)
    with pytest.raises(BadQuote, match="expired"):
        check_binding(quote, binding, NODE_KEY, NOW_S + 10)
    with pytest.raises(BadBinding):
        check_binding(quote, binding, bytes([5]) * 32, NOW_S)
    with pytest.raises(BadBinding):
        check_binding(quote, sign_binding(quote, NODE_KEY, STRANGER), NODE_KEY, NOW_S)
    with pytest.raises(BadBinding):
        check_binding(quote, b"", NODE_KEY, NOW_S)
    swapped = msgspec.structs.replace(quote, payee=STRANGER.address)
    later = msgspec.structs.replace(quote, expires_s=NOW_S + 11)
    newer = msgspec.structs.replace(quote, seq=2)
    elsewhere = msgspec.structs.replace(quote, chain_id=1)
    for other in (swapped, later, newer, elsewhere):
        with pytest.raises(BadBinding):
            check_binding(other, binding, NODE_KEY, NOW_S)
    assert quote.domain == Domain(0, quote_of().domain.contract)
