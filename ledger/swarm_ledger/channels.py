"""Channels and the vouchers that are paid from them; pure.

A **channel** holds what one payer has put aside for one payee; a **voucher** says how much of it, in all, the payee may
have by now. Its signer is a session key that can pay this payee from this channel and nothing else. Digests are those
of EIP-712, built by hand: this is the token's path.
"""

from dataclasses import dataclass
from typing import Final, NewType

from swarm_ledger.accounts import ADDRESS_BYTES, Account, Address, keccak, signer_of, word
from swarm_ledger.errors import BadAmount, BadSignature

ChannelId = NewType("ChannelId", bytes)  # 32 bytes

MAX_AMOUNT: Final = 2**104 - 1  # of the smallest unit, in one channel
_NAME: Final = keccak(b"SwarmLedger")
_VERSION: Final = keccak(b"1")
_DOMAIN: Final = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
_VOUCHER: Final = keccak(b"Voucher(bytes32 channel,uint128 cumulative)")
_BINDING: Final = keccak(b"NodeBinding(bytes32 ed25519Key,address payee,uint64 seq,uint64 expires)")


@dataclass(frozen=True, slots=True)
class Domain:
    """The one ledger that a signature is for: a chain and its contract, or chain 0 and the bank's address."""

    chain_id: int
    contract: Address

    @property
    def separator(self) -> bytes:
        return keccak(_DOMAIN + _NAME + _VERSION + word(self.chain_id) + _address_word(self.contract))

    def __str__(self) -> str:
        return f"{self.chain_id}:0x{self.contract.hex()}"


@dataclass(frozen=True, slots=True)
class ChannelKey:
    """Whose channel it is; `salt` tells several of the same parties apart."""

    payer: Address
    payee: Address
    signer: Address
    salt: int

    @property
    def id(self) -> ChannelId:
        words = _address_word(self.payer) + _address_word(self.payee) + _address_word(self.signer)
        return ChannelId(keccak(words + word(self.salt)))


@dataclass(frozen=True, slots=True)
class ChannelState:
    """What a ledger says of a channel: 0 <= claimed <= allocated; `closes_at_s` is 0 unless a close was asked for."""

    allocated: int
    claimed: int
    closes_at_s: int = 0
    is_closed: bool = False


@dataclass(frozen=True, slots=True)
class Voucher:
    """`cumulative` of a channel belongs to its payee; only the largest counts."""

    channel: ChannelId
    cumulative: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """A voucher as it is redeemed."""

    key: ChannelKey
    cumulative: int
    signature: bytes


class VoucherDigests:
    """The digests of one ledger's vouchers."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self._prefix = b"\x19\x01" + domain.separator

    def digest(self, channel: ChannelId, cumulative: int) -> bytes:
        """Return what a signer signs. Raises BadAmount outside uint128."""
        if not 0 <= cumulative < 1 << 128:
            raise BadAmount
        return keccak(self._prefix + keccak(_VOUCHER + channel + word(cumulative)))

    def sign(self, channel: ChannelId, cumulative: int, signer: Account) -> Voucher:
        """Return the voucher that promises so much."""
        return Voucher(channel, cumulative, signer.sign(self.digest(channel, cumulative)))

    def check(self, voucher: Voucher, signer: Address) -> None:
        """Raise BadSignature unless the channel's signer has signed exactly this on this ledger."""
        if signer_of(self.digest(voucher.channel, voucher.cumulative), voucher.signature) != signer:
            raise BadSignature


def binding_digest(domain: Domain, ed25519_key: bytes, payee: Address, seq: int, expires_s: int) -> bytes:
    """Return what ties a node's key to its account: signed by both of them."""
    words = ed25519_key + _address_word(payee) + word(seq) + word(expires_s)
    return keccak(b"\x19\x01" + domain.separator + keccak(_BINDING + words))


def _address_word(address: Address) -> bytes:
    assert len(address) == ADDRESS_BYTES
    return bytes(12) + address
