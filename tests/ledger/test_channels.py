"""Ids and digests are those that a contract computes."""

import pytest
from eth_abi import encode
from eth_account import Account as EthAccount
from eth_account.messages import SignableMessage, encode_typed_data
from eth_utils import keccak
from hypothesis import given
from hypothesis import strategies as st

from swarm_ledger.accounts import Account, Address
from swarm_ledger.channels import ChannelId, ChannelKey, Domain, Voucher, VoucherDigests, binding_digest
from swarm_ledger.errors import BadAmount, BadSignature
from tests.ledger.parties import HERE, SIGNERS, STRANGER, key_of

addresses = st.binary(min_size=20, max_size=20).map(Address)
domains = st.builds(Domain, st.integers(0, 2**64), addresses)
digests = st.binary(min_size=32, max_size=32)


def typed(domain: Domain, kind: str, fields: dict[str, str], message: dict[str, object]) -> bytes:
    """Return the digest that eth-account computes of a typed message."""
    whole: SignableMessage = encode_typed_data(
        domain_data={
            "name": "SwarmLedger",
            "version": "1",
            "chainId": domain.chain_id,
            "verifyingContract": domain.contract,
        },
        message_types={kind: [{"name": name, "type": what} for name, what in fields.items()]},
        message_data=message,
    )
    return keccak(b"\x19" + whole.version + whole.header + whole.body)


@given(domain=domains, channel=digests, cumulative=st.integers(0, 2**128 - 1))
def test_vouchers_have_the_digest_of_eip_712(domain: Domain, channel: bytes, cumulative: int) -> None:
    fields = {"channel": "bytes32", "cumulative": "uint128"}
    expected = typed(domain, "Voucher", fields, {"channel": channel, "cumulative": cumulative})
    assert VoucherDigests(domain).digest(ChannelId(channel), cumulative) == expected


@given(domain=domains, ed25519_key=digests, payee=addresses, seq=st.integers(0, 2**64 - 1))
def test_bindings_have_the_digest_of_eip_712(domain: Domain, ed25519_key: bytes, payee: Address, seq: int) -> None:
    fields = {"ed25519Key": "bytes32", "payee": "address", "seq": "uint64", "expires": "uint64"}
    message = {"ed25519Key": ed25519_key, "payee": payee, "seq": seq, "expires": 7}
    assert binding_digest(domain, ed25519_key, payee, seq, 7) == typed(domain, "NodeBinding", fields, message)


@given(payer=addresses, payee=addresses, signer=addresses, salt=st.integers(0, 2**256 - 1))
def test_ids_are_those_of_the_abi(payer: Address, payee: Address, signer: Address, salt: int) -> None:
    words = encode(["address", "address", "address", "uint256"], [payer, payee, signer, salt])
    assert ChannelKey(payer, payee, signer, salt).id == keccak(words)


def test_a_wallet_of_ethereum_signs_the_same_voucher() -> None:
    secret = bytes([7]) * 32
    digests = VoucherDigests(Domain(1, STRANGER.address))
    channel = key_of().id
    voucher = digests.sign(channel, 5, Account(secret))
    theirs = EthAccount.unsafe_sign_hash(digests.digest(channel, 5), secret)
    assert voucher.signature[:32] == theirs.r.to_bytes(32, "big")
    assert int.from_bytes(voucher.signature[32:], "big") == theirs.s | (theirs.v - 27) << 255


def test_a_voucher_is_good_for_its_signer_channel_amount_and_ledger_only() -> None:
    digests, channel = VoucherDigests(HERE), key_of().id
    voucher = digests.sign(channel, 5, SIGNERS[0])
    digests.check(voucher, SIGNERS[0].address)
    for wrong, at in (
        (Voucher(channel, 6, voucher.signature), digests),
        (Voucher(key_of(salt=1).id, 5, voucher.signature), digests),
        (voucher, VoucherDigests(Domain(1, HERE.contract))),
        (voucher, VoucherDigests(Domain(0, STRANGER.address))),
    ):
        with pytest.raises(BadSignature):
            at.check(wrong, SIGNERS[0].address)
    with pytest.raises(BadSignature):
        digests.check(voucher, SIGNERS[1].address)


def test_amounts_that_no_contract_could_read() -> None:
    for cumulative in (-1, 2**128):
        with pytest.raises(BadAmount):
            VoucherDigests(HERE).digest(key_of().id, cumulative)


def test_a_ledger_has_a_name_for_people() -> None:
    assert str(Domain(5, Address(bytes(20)))) == f"5:0x{bytes(20).hex()}"
