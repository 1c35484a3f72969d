"""The bytes that client and hop say to each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_ledger.channels import Voucher, VoucherDigests
from swarm_ledger.errors import BadSection, BadSignature
from swarm_ledger.sections import (
    MAX_SECTION_BYTES,
    amount_bytes,
    first_of,
    grant_section,
    open_section,
    pack,
    pay_section,
    read_grant,
    read_open,
    read_pay,
)
from tests.ledger.parties import HERE, PAYEES, SIGNERS, key_of

amounts = st.integers(0, 2**128 - 1)
signatures = st.binary(min_size=64, max_size=64)
DIGESTS = VoucherDigests(HERE)


@given(salt=st.integers(0, 2**256 - 1), cumulative=amounts, signature=signatures | st.just(b""))
def test_an_opening_is_read_as_it_was_written(salt: int, cumulative: int, signature: bytes) -> None:
    key = key_of(salt=salt)
    data = open_section(b"q" * 16, key, Voucher(key.id, cumulative, signature))
    assert len(data) <= MAX_SECTION_BYTES
    section = read_open(data)
    assert section.key(PAYEES[0].address) == key
    assert section.voucher(key.id) == Voucher(key.id, cumulative, signature)
    assert section.quote == b"q" * 16


@given(window=amounts, earned=amounts, cumulative=amounts, signature=signatures, lease_s=st.integers(0, 2**31))
def test_a_grant_is_read_as_it_was_written(
    window: int, earned: int, cumulative: int, signature: bytes, lease_s: int
) -> None:
    best = Voucher(key_of().id, cumulative, signature)
    grant = read_grant(grant_section(window=window, earned=earned, best=best, lease_s=lease_s))
    assert [int.from_bytes(each, "big") for each in (grant.window, grant.earned, grant.cumulative)] == [
        window,
        earned,
        cumulative,
    ]
    assert (grant.signature, grant.lease_s) == (signature, lease_s)


@given(cumulative=amounts)
def test_a_payment_is_read_as_it_was_written(cumulative: int) -> None:
    voucher = DIGESTS.sign(key_of().id, cumulative, SIGNERS[0])
    data = pay_section(voucher, 60)
    assert len(data) <= 84
    assert read_pay(data, key_of().id) == (voucher, 60)


@given(st.binary(max_size=200))
def test_noise_is_refused_or_pays_nothing(data: bytes) -> None:
    for read in (read_open, read_grant):
        try:
            read(data)
        except BadSection:
            continue
    try:
        voucher, _ = read_pay(data, key_of().id)
    except BadSection:
        return
    with pytest.raises(BadSignature):
        DIGESTS.check(voucher, SIGNERS[0].address)


@given(place=st.integers(0, 10_000), change=st.integers(1, 255))
def test_an_altered_opening_never_carries_a_voucher_of_another_channel(place: int, change: int) -> None:
    key = key_of()
    data = bytearray(open_section(b"q" * 16, key, DIGESTS.sign(key.id, 5, SIGNERS[0])))
    data[place % len(data)] ^= change
    try:
        section = read_open(bytes(data))
    except BadSection:
        return
    found = section.key(PAYEES[0].address)
    voucher = section.voucher(found.id)
    if (found, voucher.cumulative, voucher.signature[:64]) != (key, 5, DIGESTS.sign(key.id, 5, SIGNERS[0]).signature):
        with pytest.raises(BadSignature):
            DIGESTS.check(voucher, found.signer)


@given(st.lists(st.binary(max_size=90), max_size=8))
def test_sections_in_a_row_come_out_one_at_each_hop(sections: list[bytes]) -> None:
    rest = pack(sections)
    for section in sections:
        first, rest = first_of(rest)
        assert first == (section if any(sections) else b"")
    assert rest == b""


@given(st.binary(max_size=2000))
def test_rows_of_noise_end(data: bytes) -> None:
    rest = data
    while rest:
        before = len(rest)
        try:
            section, rest = first_of(rest)
        except BadSection:
            return
        assert len(rest) == before - 2 - len(section)


def test_lengths_have_limits() -> None:
    for read in (read_open, read_grant):
        with pytest.raises(BadSection):
            read(bytes(MAX_SECTION_BYTES + 1))
    with pytest.raises(BadSection):
        first_of((MAX_SECTION_BYTES + 1).to_bytes(2, "big") + bytes(MAX_SECTION_BYTES + 1))
    for length in (0, 67, 85):
        with pytest.raises(BadSection):
            read_pay(bytes(length), key_of().id)


@given(amounts)
def test_amounts_are_as_short_as_they_can_be(amount: int) -> None:
    data = amount_bytes(amount)
    assert int.from_bytes(data, "big") == amount
    assert not data.startswith(b"\0")
