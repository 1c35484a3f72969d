"""How records stand in the DHT, and which entries a node stores for others: a strict rule, without exceptions.

Owns keys, subkeys and the check of an entry. A record is stored twice, with one expiry, its own:

    key of its model revision    subkey: the signer's public key      all nodes of the model
    key of the list of models    subkey: one of INDEX_SLOTS           a few nodes of each model

A model uses INDEX_SLOTS_PER_MODEL slots of the list, drawn from its revision; where two models, or two nodes of one,
meet in a slot the later expiry stays. So the list cannot grow beyond its slots, whoever writes to it.

Pure, and without hivemind: `dht.py` hands the entries over.
"""

from hashlib import sha1, sha256

import msgspec

from swarm_net.errors import BadRecord
from swarm_net.messages import SignedRecord
from swarm_net.records import MAX_RECORD_BYTES, Record, open_record

INDEX_SLOTS = 2048
INDEX_SLOTS_PER_MODEL = 4
# Two clocks in the DHT differ by up to 3 s, and one entry that is refused spoils the whole answer that it came in.
EXPIRED_GRACE_S = 60
MAX_ENTRY_BYTES = MAX_RECORD_BYTES + 256

MODELS_KEY = b"swarm-inference/1/models"

_decode_bytes = msgspec.msgpack.Decoder(bytes).decode
_decode_signed = msgspec.msgpack.Decoder(SignedRecord).decode


def model_key(revision: str) -> bytes:
    """Return the key of a model revision's records."""
    return b"swarm-inference/1/model/" + revision.encode()


def index_slot(revision: str, public_key: bytes) -> bytes:
    """Return the subkey of a node's record in the list of models."""
    place = public_key[0] % INDEX_SLOTS_PER_MODEL
    digest = sha256(f"{revision}/{place}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") % INDEX_SLOTS).to_bytes(2, "big")


def entries(signed: SignedRecord, record: Record) -> tuple[tuple[bytes, bytes], ...]:
    """Return the keys and subkeys under which a record is stored."""
    revision = record.model.revision
    return (model_key(revision), signed.key), (MODELS_KEY, index_slot(revision, signed.key))


def expiration_s(record: Record) -> float:
    """Return a record's expiry as the DHT counts time."""
    return record.expires_ns / 1e9


def encode_entry(signed: SignedRecord) -> bytes:
    """Return a record as the value of an entry."""
    return msgspec.msgpack.encode(signed)


def decode_entry(value: object) -> SignedRecord:
    """Return the record that a value is. Raises BadRecord."""
    if not isinstance(value, bytes) or len(value) > MAX_ENTRY_BYTES:
        raise BadRecord(peer="", reason="the DHT's value is not a record")
    try:
        return _decode_signed(value)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadRecord(peer="", reason=f"malformed: {error}") from error


def acceptable(key_digest: object, subkey: object, value: object, expires_s: object, now_ns: int) -> bool:
    """Tell whether an entry is a believable record in one of its own places, kept no longer than itself.

    `key_digest` is hivemind's, the SHA-1 of the key; `subkey` and `value` are MessagePack, as hivemind hands them to
    validators. Expired ones pass for a while: the store drops them by itself.
    """
    try:
        if not isinstance(subkey, bytes) or not isinstance(value, bytes) or len(value) > MAX_ENTRY_BYTES + 8:
            return False
        signed = decode_entry(_decode_bytes(value))
        record = open_record(signed, now_ns, grace_s=EXPIRED_GRACE_S)
        place = (key_digest, _decode_bytes(subkey))
    except (BadRecord, msgspec.DecodeError, ValueError):
        return False
    places = [(sha1(key, usedforsecurity=False).digest(), own) for key, own in entries(signed, record)]
    return place in places and expires_s == expiration_s(record)
