"""Keys, addresses and signatures, compared with what others make of the same keys."""

import pytest
from eth_account import Account as EthAccount
from eth_keys import keys
from eth_utils import keccak as eth_keccak
from eth_utils import to_checksum_address
from hypothesis import given
from hypothesis import strategies as st

from swarm_ledger.accounts import (
    HALF_ORDER,
    Account,
    address_text,
    keccak,
    parse_address,
    signer_of,
    word,
)
from swarm_ledger.errors import BadAmount, BadSignature
from tests.ledger.parties import ORDER, PAYERS, twin

secrets = st.integers(1, ORDER - 1).map(lambda number: number.to_bytes(32, "big"))
digests = st.binary(min_size=32, max_size=32)


@given(secret=secrets, digest=digests)
def test_addresses_and_signatures_are_those_of_ethereum(secret: bytes, digest: bytes) -> None:
    account, key = Account(secret), keys.PrivateKey(secret)
    assert account.address == key.public_key.to_canonical_address()
    assert address_text(account.address) == EthAccount.from_key(secret).address
    signature = account.sign(digest)
    theirs = key.sign_msg_hash(digest)
    assert signature[:32] == theirs.r.to_bytes(32, "big")
    assert int.from_bytes(signature[32:], "big") == theirs.s | theirs.v << 255
    assert signer_of(digest, signature) == account.address


@given(st.binary(max_size=300))
def test_the_hash_is_ethereums(data: bytes) -> None:
    assert keccak(data) == eth_keccak(data)


@given(raw=st.binary(min_size=20, max_size=20))
def test_addresses_are_written_and_read_with_their_checksum(raw: bytes) -> None:
    written = address_text(raw)
    assert written == to_checksum_address(raw)
    for spelling in (written, written.lower(), written[2:], "0x" + written[2:].upper()):
        assert parse_address(spelling) == raw


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0x",
        "0x7E5F4552091A69125d5DfCb7b8C2659029395Bd",
        "0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf00",
        "0x7e5F4552091A69125d5DfCb7b8C2659029395Bdf",  # one letter of the checksum
        "0x7E5F4552091A69125d5DfCb7b8C2659029395Bzz",
        "0x7e 5f4552091a69125d5dfcb7b8c2659029395bd",
    ],
)
def test_texts_that_are_no_addresses(text: str) -> None:
    with pytest.raises(ValueError):
        parse_address(text)


@given(digest=digests, noise=st.binary(min_size=64, max_size=64))
def test_noise_is_nobodys_signature(digest: bytes, noise: bytes) -> None:
    try:
        found = signer_of(digest, noise)
    except BadSignature:
        return
    assert found not in [account.address for account in PAYERS]


@given(digest=digests, other=digests)
def test_a_signature_is_for_one_digest(digest: bytes, other: bytes) -> None:
    account = PAYERS[0]
    assert (signer_of(other, account.sign(digest)) == account.address) == (digest == other)


def test_malformed_signatures_are_refused() -> None:
    digest, account = bytes(32), PAYERS[0]
    signature = account.sign(digest)
    high = HALF_ORDER + 1
    for bad in (
        b"",
        signature[:-1],
        signature + b"\0",
        bytes(64),
        b"\xff" * 64,
        twin(signature),
        signature[:32] + high.to_bytes(32, "big"),
        signature[:32] + bytes(32),
    ):
        try:
            assert signer_of(digest, bad) != account.address
        except BadSignature:
            continue
    with pytest.raises(BadSignature):
        signer_of(digest, signature[:32] + high.to_bytes(32, "big"))


def test_a_key_is_not_printed() -> None:
    account = PAYERS[0]
    assert account.secret.hex() not in repr(account)


def test_words_are_those_of_the_abi() -> None:
    assert word(1) == bytes(31) + b"\1"
    for number in (-1, 2**256):
        with pytest.raises(BadAmount):
            word(number)
