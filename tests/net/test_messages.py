"""Messages as bytes: the same for ever within one protocol version, and harmless whatever the bytes are.

The golden files hold one example of each message with every field set. They are never changed: a change that breaks
them breaks every peer of that version. A message that is new in a version gets a new file:
`SWARM_WRITE_GOLDEN=1 pytest tests/net/test_messages.py` writes the missing ones.
"""

import os
import random
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_net.errors import Malformed, NotUnderstood
from swarm_net.messages import (
    MAX_ADDRESSES,
    MAX_GRAMMAR_BYTES,
    MAX_HOPS,
    VERSION,
    AnyMessage,
    Audit,
    Cancel,
    Candidate,
    Credit,
    DialMe,
    Drain,
    Failure,
    Fence,
    Fetch,
    File,
    Grammar,
    Grant,
    Hello,
    HopGrant,
    HopSpec,
    HopTiming,
    KVTransfer,
    Load,
    Lookup,
    Message,
    ModelId,
    ModelList,
    Models,
    ModelSummary,
    Open,
    Opened,
    Publish,
    Published,
    Records,
    Refuse,
    ReplayRange,
    ReplayRequest,
    Reroute,
    Result,
    Rpc,
    RpcReply,
    SamplingSpec,
    SignedRecord,
    Step,
    TokenBias,
    TokenLogprob,
    Welcome,
    decode,
    decode_grammar,
    encode,
    encode_grammar,
)

GOLDEN = Path(__file__).parent / "golden" / f"v{VERSION}"

SESSION = bytes(range(16))
PEER = "12D3KooWJ3ASUdYt1S3MVSqrNkhKPZDCFzYQYwkDMUTAXXTTgTWH"
ADDRESSES = ("/ip4/10.0.0.1/tcp/4001/p2p/" + PEER, "/ip6/::1/tcp/4001/p2p/" + PEER)
MODEL = ModelId(name="demo", revision="ab" * 32)
HOP = HopSpec(peer=PEER, start=3, end=9, addresses=ADDRESSES, sealed=b"sealed")
GRANT = HopGrant(hop=1, max_tokens=512, idle_timeout_ms=60_000, cached_tokens=128, lease_s=30, sealed=b"grant")
RECORD = SignedRecord(body=b"record", key=bytes(32), signature=bytes(64))
FAILURE = Failure(
    session=SESSION,
    request=9,
    code="kv_full",
    fields={"tokens_needed": 5, "reason": "x", "share": 0.5, "known": True, "none": None, "rows": [1, 2]},
    peer=PEER,
    hop=2,
    retry="elsewhere",
    text="no room",
    remedy="ask elsewhere",
)
TRAIL = (HopTiming(1, 2, 3, 4), HopTiming(5, 6, 7))

EXAMPLES: tuple[AnyMessage, ...] = (
    Hello(
        min_version=1,
        max_version=3,
        features=("bulk", "int8"),
        swarm="ours",
        swarm_proof=b"proof",
        max_header=65_536,
        max_body=1 << 26,
        wall_ns=1_700_000_000_123_456_789,
        lane="bulk",
        listens=ADDRESSES,
        agent="test",
        must=("lane",),
    ),
    Welcome(
        version=2,
        features=("bulk",),
        swarm="ours",
        swarm_proof=b"proof",
        max_header=65_536,
        max_body=1 << 26,
        wall_ns=1_700_000_000_123_456_789,
        libp2p=ADDRESSES,
        observed="10.0.0.2:5555",
        agent="test",
    ),
    Lookup(request=1, revision="ab" * 32, blocks=(3, 9)),
    Records(request=1, records=(RECORD, RECORD)),
    Publish(request=2, record=RECORD),
    Published(request=2, stored=False, reason="expired"),
    Models(request=3),
    ModelList(request=3, models=(ModelSummary(model=MODEL, blocks=12, nodes=3, replicas=1, missing=((0, 2), (8, 9))),)),
    Fetch(request=4, revision="ab" * 32, name="tokenizer.json"),
    File(request=4, found=False),
    Open(
        session=SESSION,
        nonce=b"nonce",
        client=PEER,
        model=MODEL,
        hops=(HOP, HopSpec(peer=PEER, start=9, end=12, addresses=())),
        hop=1,
        max_tokens=512,
        sampling=SamplingSpec(
            temperature=0.7,
            top_k=40,
            top_p=0.9,
            min_p=0.05,
            repetition_penalty=1.1,
            seed=2**62,
            logprobs=True,
            top_logprobs=5,
            grammar=b"grammar",
        ),
        edges="local",
        wanted=("tokens", "logprobs"),
        codec="int8",
        numeric_class="bf16",
        adapter="lora",
        prefix=(b"one", b"two"),
        cache_salt=b"salt",
        deadline_ms=5000,
        trace=b"trace",
        priority=-1,
        lease_s=60,
        standby=True,
    ),
    Opened(session=SESSION, grants=(GRANT, HopGrant(hop=2, max_tokens=1, idle_timeout_ms=2))),
    Refuse(
        session=SESSION,
        failure=FAILURE,
        load=Load(sessions=1, queued_tokens=2, busy=0.25, kv_tokens_free=3, kv_tokens=4),
        retry_after_ms=250,
    ),
    Step(
        session=SESSION,
        epoch=2,
        frame=77,
        position=1000,
        count=3,
        kind="verify",
        sample=True,
        token_ids=bytes(12),
        tip=5,
        candidates=(Candidate(6, 5, 1234, 1001, 5, 1), Candidate(7, 6, 99, 1002)),
        codec="int8",
        sealed=b"voucher",
        trace=b"trace",
        trail=TRAIL,
        sent_ns=-5,
    ),
    Result(
        session=SESSION,
        epoch=2,
        frame=77,
        position=1003,
        tokens=(5, 6),
        logprobs=(-0.5, -1.25),
        top_logprobs=((TokenLogprob(5, -0.5), TokenLogprob(9, -2.0)), ()),
        accepted=(6,),
        acknowledged=(6, 7),
        units=12,
        commitment=b"commitment",
        trail=TRAIL,
        sent_ns=123,
    ),
    Cancel(session=SESSION, reason="gone"),
    FAILURE,
    Fence(session=SESSION, epoch=1, tip=4, dead=(5, 6)),
    Credit(session=SESSION, sealed=(b"a", b"b")),
    Grant(session=SESSION, grant=GRANT),
    Reroute(session=SESSION, epoch=3, next=HOP),
    ReplayRequest(session=SESSION, epoch=1, start=2, end=3),
    ReplayRange(session=SESSION, epoch=1, start=2, end=3, complete=False),
    KVTransfer(session=SESSION, block=3, position=4, count=5, layout="canonical"),
    Drain(deadline_ms=1000),
    DialMe(peer=PEER, addresses=ADDRESSES),
    Audit(request=5, session=SESSION, start=0, end=32, commitment=b"commitment"),
    Rpc(request=6, service="bank", method="open"),
    RpcReply(request=6, ok=False),
)

ADDED = {
    "Open-biases-and-penalties": Open(
        session=SESSION,
        client=PEER,
        model=MODEL,
        hops=(HOP,),
        max_tokens=512,
        sampling=SamplingSpec(
            grammar=encode_grammar(Grammar(kind="regex", text="[a-z]+")),
            frequency_penalty=0.5,
            presence_penalty=-1.5,
            logit_bias=(TokenBias(7, -100.0), TokenBias(9, 2.5)),
            prompt_tokens=40,
        ),
        must=("sampling.frequency_penalty", "sampling.logit_bias"),
    ),
}
"""Messages with what was added within this version: older peers ignore it, or refuse what stands in `must`."""

examples = pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)


def test_every_message_has_an_example() -> None:
    assert {type(message) for message in EXAMPLES} == set(get_args(AnyMessage))


@examples
def test_bytes_never_change(message: Message) -> None:
    check_golden(message, type(message).__name__)


@pytest.mark.parametrize("name", ADDED)
def test_bytes_of_additions_never_change(name: str) -> None:
    check_golden(ADDED[name], name)


def check_golden(message: Message, name: str) -> None:
    file = GOLDEN / f"{name}.bin"
    if not file.exists() and os.environ.get("SWARM_WRITE_GOLDEN"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(message))
    golden = file.read_bytes()
    assert decode(golden) == message
    assert encode(message) == golden


@examples
def test_what_is_unknown_is_ignored_unless_it_must_be_understood(message: Message) -> None:
    fields = msgspec.msgpack.decode(encode(message))
    newer = msgspec.msgpack.encode({**fields, "from_the_future": [1, {"x": None}]})
    assert decode(newer) == message
    critical = msgspec.msgpack.encode({**fields, "from_the_future": 1, "must": ["session", "from_the_future"]})
    with pytest.raises(NotUnderstood, match="from_the_future"):
        decode(critical)


def test_a_field_of_a_part_can_be_critical() -> None:
    opening = ADDED["Open-biases-and-penalties"]
    fields = msgspec.msgpack.decode(encode(opening))
    for unknown in ("sampling.from_the_future", "sampling.seed.x", "session.x", ".", "sampling.", "x.seed"):
        with pytest.raises(NotUnderstood):
            decode(msgspec.msgpack.encode({**fields, "must": [unknown]}))
    assert isinstance(opening, Open)
    assert opening.sampling.critical == (
        "sampling.frequency_penalty",
        "sampling.presence_penalty",
        "sampling.logit_bias",
        "sampling.prompt_tokens",
    )
    assert decode(encode(msgspec.structs.replace(opening, must=opening.sampling.critical)))
    assert SamplingSpec(repetition_penalty=1.5, seed=3, top_k=4).critical == ()


@given(st.binary(max_size=60))
def test_bytes_of_a_grammar_are_refused_or_understood(data: bytes) -> None:
    try:
        grammar = decode_grammar(data)
    except Malformed:
        return
    assert decode_grammar(encode_grammar(grammar)) == grammar


def test_a_grammar_is_bounded() -> None:
    whole = Grammar(kind="ebnf", text="x" * MAX_GRAMMAR_BYTES)
    assert decode_grammar(encode_grammar(whole)) == whole
    assert len(encode_grammar(whole)) <= 16384
    with pytest.raises(Malformed):
        decode_grammar(encode_grammar(Grammar(kind="ebnf", text="x" * (MAX_GRAMMAR_BYTES + 1))))


def test_defaults_cost_nothing() -> None:
    step = Step(session=SESSION, frame=1, position=0, count=1)
    assert set(msgspec.msgpack.decode(encode(step))) == {"t", "session", "frame", "position", "count"}


def decode_or_refuse(data: bytes) -> None:
    """Decode; any other exception than those two, or a message that does not encode again, is a bug."""
    try:
        message = decode(data)
    except (Malformed, NotUnderstood):
        return
    assert decode(encode(message)) == message or "nan" in repr(message)


@given(st.binary(max_size=400))
def test_random_bytes_are_refused_or_understood(data: bytes) -> None:
    decode_or_refuse(data)


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(), st.binary()),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=10), inner, max_size=5)),
    max_leaves=10,
)


@given(st.sampled_from(EXAMPLES), st.data())
def test_a_field_of_any_other_value_is_refused_or_understood(message: Message, data: st.DataObject) -> None:
    fields = msgspec.msgpack.decode(encode(message))
    name = data.draw(st.sampled_from(sorted(fields)))
    fields[name] = data.draw(values)
    decode_or_refuse(msgspec.msgpack.encode(fields))


@examples
def test_broken_and_cut_bytes_are_refused_or_understood(message: Message) -> None:
    """A fuzzer that changes, cuts, repeats and splices golden bytes, with a seed of its own for each message."""
    golden, chance = encode(message), random.Random(type(message).__name__)
    others = [encode(other) for other in EXAMPLES]
    for length in range(len(golden)):
        decode_or_refuse(golden[:length])
    for _ in range(2000):
        data = bytearray(golden)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[place] = chance.randrange(256)
                case 1:
                    data[place:] = chance.choice(others)[place:]
                case 2:
                    data[place:place] = chance.randbytes(chance.randint(1, 8))
                case _:
                    del data[place : place + chance.randint(1, 8)]
            data = data or bytearray(golden)
        decode_or_refuse(bytes(data))


@pytest.mark.parametrize("opening", [b"\x81", b"\x91", b"\xdd\x00\x00\x00\x01", b"\x81\xa1x"])
def test_depth_is_bounded(opening: bytes) -> None:
    with pytest.raises(Malformed):
        decode(opening * 100_000)
    with pytest.raises(Malformed):
        decode(b"\x82\xa1t\xa6models\xa1x" + opening * 100_000)


@pytest.mark.parametrize(
    "header",
    [
        b"\xdf\xff\xff\xff\xff",  # a map of four thousand million fields, none of which follows
        b"\x82\xa1t\xa6models\xa7request\xdd\xff\xff\xff\xff",
        b"\x82\xa1t\xa6cancel\xa7session\xc6\xff\xff\xff\xff",
    ],
)
def test_announced_lengths_cost_no_memory(header: bytes) -> None:
    with pytest.raises(Malformed):
        decode(header)


@pytest.mark.parametrize(
    "message",
    [
        Cancel(session=bytes(15)),
        Cancel(session=SESSION, reason="x" * 129),
        Models(request=-1),
        Models(request=2**63),
        Hello(max_header=1, max_body=1, wall_ns=0, listens=("/x",) * (MAX_ADDRESSES + 1)),
        Hello(max_header=1, max_body=1, wall_ns=0, features=("f",) * 65),
        Open(session=SESSION, client=PEER, model=MODEL, hops=(), max_tokens=1),
        Open(session=SESSION, client=PEER, model=MODEL, hops=(HOP,) * (MAX_HOPS + 1), max_tokens=1),
        Step(session=SESSION, frame=1, position=-1, count=1),
        Step(session=SESSION, frame=1, position=0, count=1, kind="other"),  # type: ignore[arg-type]
        Result(session=SESSION, frame=1, position=0, tokens=(0,) * 1025),
        Failure(code="x", fields={str(number): number for number in range(17)}),
        Records(request=1, records=(SignedRecord(body=bytes(8193), key=bytes(32), signature=bytes(64)),)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_values_beyond_their_bounds_are_refused(message: Message) -> None:
    with pytest.raises(Malformed):
        decode(encode(message))
