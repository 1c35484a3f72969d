"""What is believed of a record and what is not; its bytes, kept from the first version on."""

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_net.errors import BadRecord
from swarm_net.identity import Identity
from swarm_net.messages import Load, ModelId, SignedRecord
from swarm_net.records import (
    MAX_CLOCK_SKEW_S,
    MAX_LIFETIME_S,
    MAX_RECORD_BYTES,
    Record,
    missing_blocks,
    open_record,
    sign,
)

NOW_NS = 1_800_000_000_000_000_000
S = 1_000_000_000
ME, OTHER = Identity(bytes(range(32))), Identity(bytes(range(1, 33)))


def make(identity: Identity = ME, **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "sequence": 7,
        "published_ns": NOW_NS,
        "expires_ns": NOW_NS + 90 * S,
        "peer": identity.peer_id,
        "model": ModelId(name="demo", revision="ab" * 32),
        "num_blocks": 12,
        "start": 4,
        "end": 8,
        "dtype": "bfloat16",
        "page_size": 16,
        "max_context": 4096,
        "prefill_tokens_per_s": 900.5,
        "decode_tokens_per_s": 45.25,
        "load": Load(sessions=3, busy=0.5, kv_tokens_free=60_000, kv_tokens=65_536),
        "addresses": (f"/ip4/192.0.2.7/tcp/4001/p2p/{identity.peer_id}",),
        "libp2p": (f"/ip4/192.0.2.7/tcp/4002/p2p/{identity.peer_id}",),
        "region": "eu-west",
        "quote": bytes(32),
        "binding": bytes(100),
        "block_digests": bytes(range(32)),
        "software": "swarm-inference 0.1.0",
    }
    return Record(**{**fields, **changes})


def forge(record: Record, identity: Identity = ME) -> SignedRecord:
    """Sign without the checks that an honest node makes."""
    body = msgspec.msgpack.encode(record)
    return SignedRecord(
        body=body, key=identity.public_key, signature=identity.sign(b"swarm-inference/record/1\0" + body)
    )


def test_a_signed_record_opens_as_it_was() -> None:
    signed = sign(make(), ME)
    assert open_record(signed, NOW_NS) == make()
    assert len(signed.body) + len(signed.key) + len(signed.signature) < 1024


def test_golden_bytes() -> None:
    record = Record(
        sequence=1,
        published_ns=NOW_NS,
        expires_ns=NOW_NS + 60 * S,
        peer=ME.peer_id,
        model=ModelId(name="m", revision="r"),
        num_blocks=2,
        start=0,
        end=1,
        dtype="float32",
        max_context=64,
    )
    signed = sign(record, ME)
    assert signed.body.hex() == (
        "de000aa873657175656e636501ac7075626c69736865645f6e73cf18fae27693b40000aa657870697265735f6e73cf18fae2"
        "848bfb5800a470656572d934313244334b6f6f574134586f70314a6154334d487877594d6b436570597376346950566f704d"
        "5877437a35694859644266655342a56d6f64656c82a46e616d65a16da87265766973696f6ea172aa6e756d5f626c6f636b73"
        "02a5737461727400a3656e6401a56474797065a7666c6f61743332ab6d61785f636f6e7465787440"
    )
    assert signed.signature.hex() == (
        "fe657f24d68051d823eea1f66ec0bebd468c5b37ec5de11f90558710a449c535b36c5bd56efa0761faf6e2c8e21512158721"
        "27f8664a7a051bdab9ae583d1207"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"start": 8, "end": 8}, "outside"),
        ({"start": 8, "end": 4}, "outside"),
        ({"end": 13}, "outside"),
        ({"peer": OTHER.peer_id}, "another peer"),
        ({"addresses": (f"/ip4/192.0.2.7/tcp/1/p2p/{OTHER.peer_id}",)}, "not its signer's"),
        ({"libp2p": ("/ip4/192.0.2.7/tcp/1",)}, "not its signer's"),
        ({"block_digests": bytes(31)}, "digests"),
        ({"decode_tokens_per_s": float("inf")}, "malformed|no numbers"),
        ({"decode_tokens_per_s": float("nan")}, "malformed|no numbers"),
        ({"expires_ns": NOW_NS}, "lifetime"),
        ({"expires_ns": NOW_NS + (MAX_LIFETIME_S + 1) * S}, "lifetime"),
        ({"region": "\x1b[2Jeu"}, "unprintable"),
        ({"model": ModelId(name="a\nb", revision="r")}, "unprintable"),
        ({"must": ("telepathy",)}, "telepathy"),
        ({"extensions": {f"e{i}": bytes(512) for i in range(9)}}, f"at most {MAX_RECORD_BYTES}"),
        ({"num_blocks": 0}, "malformed|outside"),
        ({"decode_tokens_per_s": -1.0}, "malformed"),
        ({"state": "asleep"}, "malformed"),
        ({"region": "x" * 33}, "malformed"),
        ({"extensions": {f"e{i}": b"" for i in range(17)}}, "malformed"),
        ({"addresses": tuple(f"/ip4/10.0.0.{i}/tcp/1/p2p/{ME.peer_id}" for i in range(9))}, "malformed"),
    ],
)
def test_a_record_that_breaks_a_rule_is_refused_though_well_signed(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRecord, match=reason):
        open_record(forge(make(**changes)), NOW_NS)


def test_an_honest_node_does_not_sign_what_nobody_would_believe() -> None:
    with pytest.raises(BadRecord, match="outside"):
        sign(make(end=13), ME)
    with pytest.raises(BadRecord, match="another peer"):
        sign(make(OTHER), ME)


@pytest.mark.parametrize(
    ("now_ns", "reason"),
    [
        (NOW_NS + 90 * S, "expired 0.0 s ago"),
        (NOW_NS + 100 * S, "expired 10.0 s ago"),
        (NOW_NS - (MAX_CLOCK_SKEW_S + 1) * S, "in the future"),
    ],
)
def test_a_record_counts_only_in_its_time(now_ns: int, reason: str) -> None:
    signed = sign(make(), ME)
    with pytest.raises(BadRecord, match=reason):
        open_record(signed, now_ns)
    assert open_record(signed, NOW_NS - MAX_CLOCK_SKEW_S * S)
    assert open_record(signed, NOW_NS + 90 * S - 1)
    assert open_record(signed, NOW_NS + 99 * S, grace_s=10)


def test_nobody_signs_for_another() -> None:
    signed = sign(make(), ME)
    with pytest.raises(BadRecord, match="another peer"):
        open_record(msgspec.structs.replace(signed, key=OTHER.public_key), NOW_NS)
    with pytest.raises(BadRecord, match="signature"):
        open_record(msgspec.structs.replace(signed, signature=OTHER.sign(signed.body)), NOW_NS)
    with pytest.raises(BadRecord, match="signature"):  # signed by the right key, but as something else than a record
        open_record(msgspec.structs.replace(signed, signature=ME.sign(signed.body)), NOW_NS)


@settings(deadline=None)
@given(st.binary(max_size=600))
def test_noise_is_refused(body: bytes) -> None:
    with pytest.raises(BadRecord):
        open_record(SignedRecord(body=body, key=ME.public_key, signature=ME.sign(body)), NOW_NS)


@settings(deadline=None)
@given(st.integers(0), st.integers(1, 255))
def test_any_changed_byte_is_noticed(place: int, change: int) -> None:
    signed = sign(make(), ME)
    whole = bytearray(signed.body + signed.key + signed.signature)
    whole[place % len(whole)] ^= change
    size = len(signed.body)
    changed = SignedRecord(
        body=bytes(whole[:size]), key=bytes(whole[size : size + 32]), signature=bytes(whole[size + 32 :])
    )
    with pytest.raises(BadRecord):
        open_record(changed, NOW_NS)


def test_fields_of_later_versions_are_ignored() -> None:
    body = msgspec.msgpack.decode(msgspec.msgpack.encode(make()))
    body["moods"] = ["sunny"]
    later = msgspec.msgpack.encode(body)
    signed = SignedRecord(body=later, key=ME.public_key, signature=ME.sign(b"swarm-inference/record/1\0" + later))
    assert open_record(signed, NOW_NS) == make()


def test_numeric_class_and_digests() -> None:
    record = make()
    assert record.numeric_class == "bfloat16"
    assert make(quantization="int8").numeric_class == "bfloat16/int8"
    assert [record.digest_of(block) for block in (3, 4, 7, 8)] == [b"", bytes(range(8)), bytes(range(24, 32)), b""]
    assert make(block_digests=b"").digest_of(4) == b""


@settings(deadline=None)
@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 11), st.integers(1, 12)), max_size=6))
def test_missing_blocks_are_those_in_no_span(num_blocks: int, spans: list[tuple[int, int]]) -> None:
    spans = [(start, min(start + length, 12)) for start, length in spans]
    gaps = missing_blocks([make(start=start, end=end) for start, end in spans], num_blocks)
    uncovered = [b for b in range(num_blocks) if not any(start <= b < end for start, end in spans)]
    assert [block for start, end in gaps for block in range(start, end)] == uncovered
    assert all(gap[1] < after[0] for gap, after in pairwise(gaps))  # neighbours are joined
