"""Who takes part in the tests of money: accounts that are always the same, and their channels."""

import itertools
from collections.abc import Callable

from swarm_ledger.accounts import Account, Address
from swarm_ledger.channels import ChannelKey, Claim, Domain, VoucherDigests

BANK = Account(bytes([9]) * 32)
PAYERS = [Account(bytes([number]) * 32) for number in (1, 2)]
PAYEES = [Account(bytes([number]) * 32) for number in (0x21, 0x22)]
SIGNERS = [Account(bytes([number]) * 32) for number in (0x51, 0x52)]
STRANGER = Account(bytes([0x77]) * 32)
EVERYBODY_ACCOUNTS = [*PAYERS, *PAYEES, STRANGER]
EVERYBODY = [account.address for account in EVERYBODY_ACCOUNTS]
HERE = Domain(0, BANK.address)
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141  # of secp256k1


def key_of(payer: int = 0, payee: int = 0, signer: int = 0, salt: int = 0) -> ChannelKey:
    return ChannelKey(PAYERS[payer].address, PAYEES[payee].address, SIGNERS[signer].address, salt)


def signer_account(address: Address) -> Account:
    return next(account for account in SIGNERS if account.address == address)


def claim_of(key: ChannelKey, cumulative: int, domain: Domain = HERE, signer: Account | None = None) -> Claim:
    """Return a claim as its signer means it, or as somebody else has signed it."""
    voucher = VoucherDigests(domain).sign(key.id, cumulative, signer or signer_account(key.signer))
    return Claim(key, cumulative, voucher.signature)


def twin(signature: bytes) -> bytes:
    """Return the other signature of the same, s in its upper half, as far as 64 bytes can hold it."""
    parity_and_s = int.from_bytes(signature[32:], "big")
    parity, s = parity_and_s >> 255, parity_and_s & ((1 << 255) - 1)
    other = (ORDER - s) | ((1 - parity) << 255)
    return signature[:32] + (other & ((1 << 256) - 1)).to_bytes(32, "big")


def counting() -> Callable[[int], bytes]:
    """Return a source of chance that is always the same."""
    numbers = itertools.count(1)
    return lambda size: next(numbers).to_bytes(size, "big")
