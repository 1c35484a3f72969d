"""What a node says about itself, signed: its span, how fast and how busy it is, where it can be dialed.

Owns the record's schema, its signature and the checks that decide whether a record is believed. Nodes sign records and
publish them through a directory (`directory.py`); directories, snapshots and the DHT's validator open them. A record
can be withheld by whoever carries it, but neither changed nor kept alive: it names its own expiry, at most five
minutes after it was signed.

Pure: the present is an argument. Unknown fields are ignored unless the record's `must` lists them.
"""

from collections.abc import Iterable
from math import isfinite
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from swarm_net.errors import BadRecord
from swarm_net.identity import Identity, peer_id_of, verify
from swarm_net.messages import Addresses, Count, Digest, Load, ModelId, Names, Natural, Part, SignedRecord

SCHEMA = 1
MAX_RECORD_BYTES = 4096
MAX_BLOCKS = 1024
MAX_LIFETIME_S = 300
MAX_CLOCK_SKEW_S = 30  # how far ahead of ours a publisher's clock may be
BLOCK_DIGEST_BYTES = 8

QUOTE_EXTENSION = "quote"  # the node's price list, opaque here; a record without one asks for nothing
GRAMMAR_EXTENSION = "grammar"  # of a node that, as the last hop, keeps an answer to a grammar

_LABEL = b"swarm-inference/record/1\0"  # what this key signs here can never be taken for anything else that it signs
_S = 1_000_000_000

State = Literal["joining", "online", "draining"]
Rewind = Literal["any", "checkpoints", "none"]
Reachability = Literal["public", "private"]
ShortName = Annotated[str, Meta(max_length=32)]
Rate = Annotated[float, Meta(ge=0.0, le=1e12)]


class Record(Part, kw_only=True, frozen=True):
    """One node serving blocks [start, end) of one model; the rates are those of the whole span."""

    schema: Count = SCHEMA
    must: Names = ()  # fields that the reader has to understand
    sequence: Natural  # grows with each record of a node; of two the larger counts
    published_ns: Natural
    expires_ns: Natural
    peer: Annotated[str, Meta(min_length=1, max_length=64)]
    model: ModelId
    num_blocks: Annotated[int, Meta(ge=1, le=MAX_BLOCKS)]
    start: Count
    end: Count
    state: State = "online"
    dtype: ShortName
    quantization: ShortName = ""
    page_size: Count = 0
    rewind: Rewind = "any"  # where a session can be cut; "checkpoints": anywhere within its last step of guesses
    codecs: Names = ("raw",)
    prefill_tokens_per_s: Rate = 0.0
    decode_tokens_per_s: Rate = 0.0  # of one session alone, through the whole span
    load: Load = Load()
    max_context: Count  # tokens of one session
    addresses: Addresses = ()  # of the direct listener
    libp2p: Addresses = ()  # of the DHT daemon, relayed ones among them
    reachability: Reachability = "public"
    region: ShortName = ""
    quote: Digest = b""  # digest of the price list
    binding: Annotated[bytes, Meta(max_length=512)] = b""  # ties the peer to its account; opaque here
    adapters: Names = ()
    block_digests: Annotated[bytes, Meta(max_length=MAX_BLOCKS * BLOCK_DIGEST_BYTES)] = b""  # 8 bytes a block, or none
    software: ShortName = ""
    extensions: Annotated[dict[ShortName, Annotated[bytes, Meta(max_length=512)]], Meta(max_length=16)] = msgspec.field(
        default_factory=dict
    )

    @property
    def numeric_class(self) -> str:
        """Nodes of one class compute alike; a route that mixes classes is another model, slightly."""
        return f"{self.dtype}/{self.quantization}" if self.quantization else self.dtype

    def digest_of(self, block: int) -> bytes:
        """Return the digest of a block's weights, empty if the record gives none or does not serve it."""
        at = (block - self.start) * BLOCK_DIGEST_BYTES
        return self.block_digests[at : at + BLOCK_DIGEST_BYTES] if at >= 0 else b""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


def sign(record: Record, identity: Identity) -> SignedRecord:
    """Return the record signed by its own node; raises BadRecord where nobody would believe it."""
    body = _encode(record)
    if reason := _fault(record, len(body), identity.public_key):
        raise BadRecord(peer=record.peer, reason=reason)
    return SignedRecord(body=body, key=identity.public_key, signature=identity.sign(_LABEL + body))


def open_record(signed: SignedRecord, now_ns: int, *, grace_s: int = 0) -> Record:
    """Return the record inside, checked: what it says is what the holder of its key signed, and it counts now, or did
    `grace_s` ago.

    Raises BadRecord for one that is forged, foreign, expired, too long-lived, from the future, oversized or malformed.
    """
    peer = str(peer_id_of(signed.key))
    try:
        record = _decode(signed.body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadRecord(peer=peer, reason=f"malformed: {error}") from error
    if reason := _fault(record, len(signed.body), signed.key) or _untimely(record, now_ns, grace_s):
        raise BadRecord(peer=peer, reason=reason)
    if not verify(signed.key, signed.signature, _LABEL + signed.body):
        raise BadRecord(peer=peer, reason="the signature is not its own")
    return record


def missing_blocks(records: Iterable[Record], num_blocks: int) -> tuple[tuple[int, int], ...]:
    """Return the ranges of blocks that none of these records serves."""
    gaps, reached = [], 0
    for start, end in sorted((record.start, record.end) for record in records):
        if reached < min(start, num_blocks):
            gaps.append((reached, min(start, num_blocks)))
        reached = max(reached, end)
    if reached < num_blocks:
        gaps.append((reached, num_blocks))
    return tuple(gaps)


def _fault(record: Record, size: int, key: bytes) -> str:
    """Say what is wrong with a record at any time; empty if nothing is."""
    if size > MAX_RECORD_BYTES:
        return f"{size} bytes, at most {MAX_RECORD_BYTES} are allowed"
    if unknown := [name for name in record.must if name not in record.__struct_fields__]:
        return f"it demands {', '.join(map(ascii, unknown))}, unknown to this version"
    if record.peer != peer_id_of(key):
        return "it names another peer than its signer"
    if not record.start < record.end <= record.num_blocks:
        return f"span {record.start}:{record.end} outside the model's {record.num_blocks} blocks"
    if record.block_digests and len(record.block_digests) != (record.end - record.start) * BLOCK_DIGEST_BYTES:
        return "block digests that do not match its span"
    if not (isfinite(record.prefill_tokens_per_s) and isfinite(record.decode_tokens_per_s)):
        return "rates that are no numbers"
    if foreign := [text for text in record.addresses + record.libp2p if not text.endswith(f"/p2p/{record.peer}")]:
        return f"address {foreign[0]!a} is not its signer's"
    if not 0 < record.expires_ns - record.published_ns <= MAX_LIFETIME_S * _S:
        return f"a lifetime that is not within {MAX_LIFETIME_S} s"
    if not all(text.isprintable() for text in _texts(record)):
        return "text with unprintable characters"
    return ""


def _untimely(record: Record, now_ns: int, grace_s: int) -> str:
    if record.expires_ns + grace_s * _S <= now_ns:
        return f"expired {(now_ns - record.expires_ns) / _S:.1f} s ago"
    if record.published_ns > now_ns + MAX_CLOCK_SKEW_S * _S:
        return f"signed {(record.published_ns - now_ns) / _S:.1f} s in the future: a clock is wrong, here or there"
    return ""


def _texts(record: Record) -> Iterable[str]:
    """Yield all text that ends up before people: control characters could rewrite their terminal."""
    yield from (record.model.name, record.model.revision, record.dtype, record.quantization)
    yield from (record.region, record.software, *record.extensions)
    for several in (record.codecs, record.adapters, record.addresses, record.libp2p):
        yield from several
