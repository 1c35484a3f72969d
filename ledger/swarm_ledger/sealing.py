"""Bytes for one hop alone, carried by all: a key for each session and hop, and what is said under it.

Hop k's vouchers travel through hops 0 to k-1, who may neither read nor alter them. The client makes an ephemeral X25519
key for each hop of a session; with the key in the hop's quote that gives one secret for each direction (HKDF-SHA256,
ChaCha20-Poly1305, a counter as nonce). The pattern is that of HPKE's base mode (RFC 9180); it has no need of HPKE's
choice of algorithms. Payments authenticate themselves: a voucher is signed by the channel's key.

Pure: chance is an argument.
"""

from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from swarm_ledger.errors import BadSection

KEY_BYTES = 32
COUNTER_BYTES = 4
_LABEL = b"swarm-ledger/seal/1\0"


class SealKey:
    """A node's own key, whose public half stands in its quote."""

    def __init__(self, secret: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(secret)
        self.public = self._key.public_key().public_bytes_raw()

    def accept(self, ephemeral: bytes, context: bytes) -> "Seal":
        """Return the seal that a client has begun with its ephemeral key. Raises BadSection."""
        return Seal(_secrets(self._key, ephemeral, ephemeral + self.public + context), is_client=False)


def begin_seal(seal_key: bytes, context: bytes, entropy: Callable[[int], bytes]) -> tuple[bytes, "Seal"]:
    """Return the ephemeral key to send to a hop, and the seal; `context` is what both sides know of the session.

    Raises BadSection for a hop's key that is none.
    """
    key = X25519PrivateKey.from_private_bytes(entropy(KEY_BYTES))
    ephemeral = key.public_key().public_bytes_raw()
    return ephemeral, Seal(_secrets(key, seal_key, ephemeral + seal_key + context), is_client=True)


class Seal:
    """One session's secret between its client and one hop."""

    def __init__(self, secrets: bytes, *, is_client: bool) -> None:
        to_hop, to_client = ChaCha20Poly1305(secrets[:32]), ChaCha20Poly1305(secrets[32:])
        self._outgoing, self._incoming = (to_hop, to_client) if is_client else (to_client, to_hop)
        self._sent = 0

    def seal(self, plain: bytes) -> bytes:
        """Return the bytes that only the other end can open."""
        counter = self._sent.to_bytes(COUNTER_BYTES, "big")
        self._sent += 1
        return counter + self._outgoing.encrypt(bytes(8) + counter, plain, None)

    def open(self, sealed: bytes) -> bytes:
        """Return what the other end has sealed, in whatever order it comes. Raises BadSection."""
        counter = sealed[:COUNTER_BYTES]
        try:
            return self._incoming.decrypt(bytes(8) + counter, sealed[COUNTER_BYTES:], None)
        except (InvalidTag, ValueError) as error:
            raise BadSection("it was sealed with another key, or altered on its way") from error


def _secrets(own: X25519PrivateKey, other: bytes, info: bytes) -> bytes:
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError as error:  # of small order, or of another length
        raise BadSection("a key that is none") from error
    return HKDF(algorithm=SHA256(), length=64, salt=None, info=_LABEL + info).derive(shared)
