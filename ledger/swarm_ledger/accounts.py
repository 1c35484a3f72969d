"""Who owns money: secp256k1 keys, the addresses computed from them, and recoverable signatures.

The fast path: coincurve and hand-built digests, no eth-account. Files with keys are the business of `wallet_file.py`
and `keystore.py`.
"""

from collections.abc import Callable
from typing import NewType

from coincurve import PrivateKey, PublicKey
from Crypto.Hash import keccak as _keccak

from swarm_ledger.errors import BadAmount, BadSignature

Address = NewType("Address", bytes)  # 20 bytes

ADDRESS_BYTES = 20
KEY_BYTES = 32
SIGNATURE_BYTES = 64  # EIP-2098: r | (parity << 255 | s)
HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
_S_MASK = (1 << 255) - 1
NOBODY = Address(bytes(ADDRESS_BYTES))


def keccak(data: bytes) -> bytes:
    """Return the 32-byte Keccak-256 of some bytes, as Ethereum uses it (not SHA3-256)."""
    return _keccak.new(data=data, digest_bits=256).digest()


def address_text(address: bytes) -> str:
    """Return an address with the checksum of EIP-55 in its letters."""
    digits = address.hex()
    sums = keccak(digits.encode()).hex()
    return "0x" + "".join(c.upper() if int(s, 16) >= 8 else c for c, s in zip(digits, sums, strict=False))


def parse_address(text: str) -> Address:
    """Return the address that a text names. Raises ValueError for another length, or a wrong checksum."""
    digits = text.removeprefix("0x")
    if len(digits) != 2 * ADDRESS_BYTES:
        raise ValueError(f"{text!r}: an address has {ADDRESS_BYTES} bytes")
    raw = bytes.fromhex(digits)
    if len(raw) != ADDRESS_BYTES:  # spaces between digits
        raise ValueError(f"{text!r}: an address has {2 * ADDRESS_BYTES} digits")
    if digits not in (digits.lower(), digits.upper()) and address_text(raw) != f"0x{digits}":
        raise ValueError(f"{text!r}: the checksum is wrong, one digit is not what was meant")
    return Address(raw)


class Account:
    """A secp256k1 key; never printed, never sent."""

    def __init__(self, secret: bytes) -> None:
        self._key = PrivateKey(secret)
        self.address = _address_of(self._key.public_key)

    @classmethod
    def generate(cls, entropy: Callable[[int], bytes]) -> "Account":
        """Return a new account."""
        return cls(entropy(KEY_BYTES))

    @property
    def secret(self) -> bytes:
        """The raw private key, for key files and for signing transactions."""
        return self._key.secret

    def sign(self, digest: bytes) -> bytes:
        """Return the 64-byte signature of a 32-byte digest, s in its lower half."""
        raw = self._key.sign_recoverable(digest, hasher=None)
        parity_and_s = int.from_bytes(raw[32:64], "big") | (raw[64] << 255)
        return raw[:32] + parity_and_s.to_bytes(32, "big")

    def __repr__(self) -> str:
        return f"Account({address_text(self.address)})"


def signer_of(digest: bytes, signature: bytes) -> Address:
    """Return who signed a 32-byte digest. Raises BadSignature, also for the malleable twin (EIP-2)."""
    if len(signature) != SIGNATURE_BYTES:
        raise BadSignature
    parity_and_s = int.from_bytes(signature[32:], "big")
    s = parity_and_s & _S_MASK
    if s > HALF_ORDER:
        raise BadSignature
    raw = signature[:32] + s.to_bytes(32, "big") + bytes((parity_and_s >> 255,))
    try:
        return _address_of(PublicKey.from_signature_and_message(raw, digest, hasher=None))
    except Exception as error:  # coincurve raises plain ones for keys that do not exist
        raise BadSignature from error


def _address_of(key: PublicKey) -> Address:
    return Address(keccak(key.format(compressed=False)[1:])[-ADDRESS_BYTES:])


def word(value: int) -> bytes:
    """Return an integer as the 32 bytes of the ABI. Raises BadAmount outside uint256."""
    if not 0 <= value < 1 << 256:
        raise BadAmount
    return value.to_bytes(32, "big")
