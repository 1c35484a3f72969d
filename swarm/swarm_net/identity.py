"""Who a peer is: an Ed25519 key, and the peer id that is computed from it.

Owns the key, its file and what is signed with it; what is signed is the callers' business (`handshake.py`,
`records.py`). Peer ids are libp2p's: base58 of the identity multihash of the key's protobuf, so that the DHT daemon,
given the same key (`dht.py`), has the same name.
"""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

import base58
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from swarm_net.errors import BadIdentity, Malformed
from swarm_net.links import PeerId

KEY_BYTES = 32
SIGNATURE_BYTES = 64
MAX_IDENTITY_FILE_BYTES = 4096
_MAX_PEER_ID_CHARS = 64

# libp2p "peer-ids" spec: multihash code 0 (identity), its length, protobuf PublicKey{Type: Ed25519 = 1, Data: key}.
_PEER_ID_PREFIX = bytes((0x00, 36, 0x08, 0x01, 0x12, KEY_BYTES))

# The points of order 1, 2, 4 and 8 in all their encodings, the sign bit cleared.
_SMALL_ORDER_KEYS = frozenset(
    bytes.fromhex(text)
    for text in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)


def peer_id_of(public_key: bytes) -> PeerId:
    """Return the peer id of a raw 32-byte Ed25519 key."""
    return PeerId(base58.b58encode(_PEER_ID_PREFIX + public_key).decode())


def public_key_of(peer_id: str) -> bytes:
    """Return the raw 32-byte key that a peer id holds. Raises Malformed for other text."""
    try:
        raw: bytes = base58.b58decode(peer_id) if len(peer_id) <= _MAX_PEER_ID_CHARS else b""
    except ValueError as error:
        raise Malformed(what="peer id", reason=str(error)) from error
    key = raw[len(_PEER_ID_PREFIX) :]
    # The last comparison refuses other spellings of the same bytes, so that peer ids can be compared as text.
    if not raw.startswith(_PEER_ID_PREFIX) or len(key) != KEY_BYTES or peer_id_of(key) != peer_id:
        raise Malformed(what="peer id", reason=f"{peer_id[:_MAX_PEER_ID_CHARS]!r} is not that of an Ed25519 key")
    return key


def verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Tell whether the key's owner signed the message.

    Keys of small order are refused: a signature for one can be made without any private key (as libsodium does; see
    Chalkias et al. 2020, "Taming the many EdDSAs", section 4).
    """
    if len(public_key) != KEY_BYTES or public_key[:-1] + bytes((public_key[-1] & 0x7F,)) in _SMALL_ORDER_KEYS:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


class Identity:
    """A peer's own key; never printed, never sent."""

    def __init__(self, seed: bytes) -> None:
        self.key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = self.key.public_key().public_bytes_raw()
        self.peer_id = peer_id_of(self.public_key)

    @classmethod
    def generate(cls, entropy: Callable[[int], bytes] = secrets.token_bytes) -> "Identity":
        """Return an identity that no file keeps: for tests, the simulator and clients of one run."""
        return cls(entropy(KEY_BYTES))

    @classmethod
    def load_or_create(cls, file: Path) -> "Identity":
        """Return the identity that a file keeps, and make both on the first start.

        Raises BadIdentity for a file that is not an Ed25519 key in PEM, or that others than its owner can read.
        """
        try:
            if not file.exists():
                _create(file, cls.generate())
            return cls(_load(file))
        except OSError as error:
            raise BadIdentity(file=str(file), reason=error.strerror or str(error)) from error

    @property
    def seed(self) -> bytes:
        """The raw private key, for the DHT daemon's key file and for TLS."""
        return self.key.private_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of a message."""
        return self.key.sign(message)

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"


def _load(file: Path) -> bytes:
    with file.open("rb") as stream:
        mode = os.fstat(stream.fileno()).st_mode
        text = stream.read(MAX_IDENTITY_FILE_BYTES + 1)
    if os.name == "posix" and mode & 0o077:
        raise BadIdentity(file=str(file), reason=f"others can read it (mode {mode & 0o777:04o})")
    if len(text) > MAX_IDENTITY_FILE_BYTES:
        raise BadIdentity(file=str(file), reason="too large to be a key")
    try:
        key = load_pem_private_key(text, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadIdentity(file=str(file), reason="not an unencrypted private key in PEM") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BadIdentity(file=str(file), reason="a key of another kind than Ed25519")
    return key.private_bytes_raw()


def _create(file: Path, identity: Identity) -> None:
    """Write the key beside its place and link it there: a crash leaves no half of it, and of two first starts at once
    one wins for both."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(identity.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(draft, file)
        except FileExistsError:
            return
    finally:
        draft.unlink(missing_ok=True)
