"""Every message that peers send each other: the header of a frame; tensors and files travel as the frame's body.

Owns the schema of protocol version 1 and the codec between bytes and typed messages; links carry them, node and client
act on them. A header is one MessagePack map whose key `t` names the message. Defaults are left out of the bytes, so a
field that is reserved for later costs nothing until it is used. Fields that a receiver does not know are ignored,
unless the sender lists them in `must`: then `decode` refuses the message (`NotUnderstood`) and no half of it is done.
A field inside a part is named with it: `sampling.logit_bias`.

    link        Hello Welcome                         and the empty frame: a heartbeat
    discovery   Lookup Records  Publish Published  Models ModelList  Fetch File
    session     Open Opened Refuse  Step Result  Credit  Cancel  Failure
    reserved    Fence Grant Reroute ReplayRequest ReplayRange KVTransfer Drain DialMe Audit
    other       Rpc RpcReply

Bodies: `Step` on the way to hop 0 holds int32 little-endian token ids, [count]; further on activations,
[count, hidden] in the session's codec (`raw`: the route's dtype, row-major, little-endian). `File` holds the file.

Every length that a peer chooses is bounded here (`Annotated` types) or by the frame limits in `frames.py`. Golden
bytes of each message are kept in tests/net/golden, a fuzz harness in tests/net/test_messages.py.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from swarm_net.errors import Malformed, NotUnderstood

VERSION = 1

MAX_HOPS = 64
MAX_ADDRESSES = 8
MAX_RECORDS = 512
MAX_MODELS = 256
MAX_BIASED_TOKENS = 300
MAX_GRAMMAR_BYTES = 16_000
MAX_SECTION_BYTES = 512  # that one hop is sent with a step, sealed

PeerIdText = Annotated[str, Meta(min_length=1, max_length=64)]
AddressText = Annotated[str, Meta(min_length=1, max_length=256)]
Addresses = Annotated[tuple[AddressText, ...], Meta(max_length=MAX_ADDRESSES)]
Name = Annotated[str, Meta(max_length=128)]
Text = Annotated[str, Meta(max_length=2048)]
Names = Annotated[tuple[Name, ...], Meta(max_length=64)]
SessionId = Annotated[bytes, Meta(min_length=16, max_length=16)]
Digest = Annotated[bytes, Meta(max_length=64)]
Sealed = Annotated[bytes, Meta(max_length=4096)]
SealedRow = Annotated[bytes, Meta(max_length=MAX_HOPS * MAX_SECTION_BYTES)]  # of all later hops, one after the other
Blob = Annotated[bytes, Meta(max_length=16384)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Natural = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Tokens = Annotated[tuple[Token, ...], Meta(max_length=1024)]


class Message(Struct, tag_field="t", omit_defaults=True, kw_only=True, frozen=True):
    """A frame's header; `must` names the fields that the receiver has to understand."""

    must: Names = ()


class Part(Struct, omit_defaults=True, kw_only=True, frozen=True):
    """A value inside a message."""


# -- link ------------------------------------------------------------------------------------------------------------

Lane = Literal["decode", "bulk"]


class Hello(Message, tag="hello", kw_only=True, frozen=True):
    """The dialer's first frame after the handshake."""

    min_version: Count = VERSION
    max_version: Count = VERSION
    features: Names = ()
    swarm: Name = ""  # the private swarm's id; empty: the public one
    swarm_proof: Digest = b""
    max_header: Count
    max_body: Count
    wall_ns: Natural
    lane: Lane = "decode"
    listens: Addresses = ()  # where the dialer itself can be dialed, if anywhere
    agent: Name = ""


class Welcome(Message, tag="welcome", kw_only=True, frozen=True):
    """The listener's answer to Hello."""

    version: Count = VERSION
    features: Names = ()
    swarm: Name = ""
    swarm_proof: Digest = b""
    max_header: Count
    max_body: Count
    wall_ns: Natural
    libp2p: Addresses = ()  # where the peer's DHT daemon listens
    observed: Annotated[str, Meta(max_length=256)] = ""  # the dialer's address as the listener sees it
    agent: Name = ""


# -- discovery -------------------------------------------------------------------------------------------------------


class ModelId(Part, kw_only=True, frozen=True):
    """A model and the exact weights meant by it: `revision` is the digest of its manifest (`manifest.py`)."""

    name: Name
    revision: Name

    def __str__(self) -> str:
        return f"{self.name}@{self.revision[:12]}"


class SignedRecord(Part, kw_only=True, frozen=True):
    """A record as it is stored and sent; `records.py` opens and checks it."""

    body: Annotated[bytes, Meta(max_length=8192)]
    key: Annotated[bytes, Meta(min_length=32, max_length=32)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class Lookup(Message, tag="lookup", kw_only=True, frozen=True):
    """Ask for the records of a model revision."""

    request: Natural
    revision: Name
    blocks: tuple[Count, Count] | None = None


class Records(Message, tag="records", kw_only=True, frozen=True):
    request: Natural
    records: Annotated[tuple[SignedRecord, ...], Meta(max_length=MAX_RECORDS)] = ()


class Publish(Message, tag="publish", kw_only=True, frozen=True):
    """Ask a node to store a record in the DHT for a peer that cannot run it."""

    request: Natural
    record: SignedRecord


class Published(Message, tag="published", kw_only=True, frozen=True):
    request: Natural
    stored: bool = True
    reason: Text = ""


class ModelSummary(Part, kw_only=True, frozen=True):
    """One model in a node's list: how many nodes serve it, and each block at least how often."""

    model: ModelId
    blocks: Count
    nodes: Count
    replicas: Count = 0
    missing: Annotated[tuple[tuple[Count, Count], ...], Meta(max_length=64)] = ()


class Models(Message, tag="models", kw_only=True, frozen=True):
    request: Natural


class ModelList(Message, tag="model_list", kw_only=True, frozen=True):
    request: Natural
    models: Annotated[tuple[ModelSummary, ...], Meta(max_length=MAX_MODELS)] = ()


class Fetch(Message, tag="fetch", kw_only=True, frozen=True):
    """Ask for a model's manifest (name "") or one of the small files that its manifest lists."""

    request: Natural
    revision: Name
    name: Name = ""


class File(Message, tag="file", kw_only=True, frozen=True):
    """The file as the body; the asker checks it against the manifest, the manifest against the revision."""

    request: Natural
    found: bool = True


# -- session ---------------------------------------------------------------------------------------------------------


class HopSpec(Part, kw_only=True, frozen=True):
    """One hop of a route; `sealed` is opaque to everyone but that hop (quote hash, channel, vouchers)."""

    peer: PeerIdText
    start: Count
    end: Count
    addresses: Addresses
    dtype: Name = ""  # that its activations are sent in; empty: the next hop's own
    sealed: Sealed = b""


class TokenBias(Struct, array_like=True, frozen=True):
    """What is added to the logit of one token."""

    token: Token
    bias: float


GrammarKind = Literal["json_schema", "regex", "ebnf"]


class Grammar(Part, kw_only=True, frozen=True):
    """What the answer has to match as a whole; travels as the bytes of `SamplingSpec.grammar`."""

    kind: GrammarKind
    text: Annotated[str, Meta(max_length=MAX_GRAMMAR_BYTES)]


class SamplingSpec(Part, kw_only=True, frozen=True):
    """How the last hop draws tokens (protocol.md, "Sampling"); temperature 0 is greedy.

    Penalties by frequency and presence, and the grammar, count the answer alone: the tokens from `prompt_tokens` on.
    """

    temperature: float = 0.0
    top_k: Count = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: Natural = 0
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] = 0
    grammar: Blob = b""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Annotated[tuple[TokenBias, ...], Meta(max_length=MAX_BIASED_TOKENS)] = ()
    prompt_tokens: Count = 0

    @property
    def needs_ids(self) -> bool:
        """Whether the last hop has to know the id of every token."""
        return self.needs_prompt_ids or self.counts_answer

    @property
    def needs_prompt_ids(self) -> bool:
        """Whether those of the prompt are among them."""
        return self.repetition_penalty != 1.0

    @property
    def counts_answer(self) -> bool:
        """Whether the last hop has to know where the answer begins."""
        return bool(self.frequency_penalty or self.presence_penalty or self.grammar)

    @property
    def critical(self) -> Names:
        """What an opening with these values has to list in `must`: a peer that ignored it would draw other tokens."""
        added = ("frequency_penalty", "presence_penalty", "logit_bias", "prompt_tokens")
        return tuple(f"sampling.{name}" for name in added if getattr(self, name))


Edges = Literal["remote", "local"]
Wanted = Literal["tokens", "logprobs", "logits", "hidden"]


class Open(Message, tag="open", kw_only=True, frozen=True):
    """Open a session along a route; each hop checks its part, reserves KV and passes it on to the next."""

    session: SessionId
    nonce: Digest = b""
    client: PeerIdText  # the reply path: the last hop answers on this peer's own link
    model: ModelId
    hops: Annotated[tuple[HopSpec, ...], Meta(min_length=1, max_length=MAX_HOPS)]
    hop: Count = 0  # the receiver's place in `hops`
    max_tokens: Count  # prompt and continuation: what KV must be kept for
    sampling: SamplingSpec = SamplingSpec()
    edges: Edges = "remote"
    wanted: Annotated[tuple[Wanted, ...], Meta(max_length=4)] = ("tokens",)
    codec: Name = "raw"
    numeric_class: Name = ""
    adapter: Name = ""
    prefix: Annotated[tuple[Digest, ...], Meta(max_length=1024)] = ()
    cache_salt: Digest = b""
    deadline_ms: Count = 10_000  # for the whole opening; each hop takes off what it used
    trace: Digest = b""
    priority: int = 0
    lease_s: Count = 0
    standby: bool = False


class HopGrant(Part, kw_only=True, frozen=True):
    """What one hop promises to a session."""

    hop: Count
    max_tokens: Count
    idle_timeout_ms: Count
    cached_tokens: Count = 0  # of the prefix: prefill may start behind the least of these
    lease_s: Count = 0
    sealed: Sealed = b""


class Opened(Message, tag="opened", kw_only=True, frozen=True):
    """Every hop from the sender on is ready; travels back hop by hop to the client."""

    session: SessionId
    grants: Annotated[tuple[HopGrant, ...], Meta(min_length=1, max_length=MAX_HOPS)]


class Load(Part, kw_only=True, frozen=True):
    """How busy a node is, as its record and its refusals tell."""

    sessions: Count = 0
    queued_tokens: Count = 0
    busy: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0  # share of the last seconds spent computing
    kv_tokens_free: Count = 0
    kv_tokens: Count = 0


class HopTiming(Struct, array_like=True, frozen=True):
    """One hop's part of a step, in microseconds; `wire` is the way from the previous hop, by the clocks' offset."""

    wire_us: int
    queue_us: int
    compute_us: int
    batch_tokens: int = 0


Trail = Annotated[tuple[HopTiming, ...], Meta(max_length=MAX_HOPS)]
StepKind = Literal["prefill", "decode", "verify", "replay"]


class Candidate(Struct, array_like=True, frozen=True):
    """One drafted token: a chain now, a tree later; ids are unique in the session and never reused."""

    id: Natural
    parent: Natural
    token: Token
    position: Count
    root: Natural = 0
    priority: int = 0


class Step(Message, tag="step", kw_only=True, frozen=True):
    """Run `count` tokens from `position` on; a position below the cached length cuts the cache to it."""

    session: SessionId
    epoch: Count = 0
    frame: Natural
    position: Count
    count: Count
    kind: StepKind = "decode"
    sample: bool = False  # draw the token behind the last of these
    acknowledge: bool = False  # answer with a result without tokens, where nothing is drawn
    token_ids: Annotated[bytes, Meta(max_length=4 * 4096)] = b""  # int32, for the last hop: penalties, grammar
    tip: Natural = 0
    candidates: Annotated[tuple[Candidate, ...], Meta(max_length=1024)] = ()
    codec: Name = "raw"
    sealed: SealedRow = b""
    trace: Digest = b""
    trail: Trail = ()
    sent_ns: int = 0  # on the receiver's clock


class TokenLogprob(Struct, array_like=True, frozen=True):
    token: Token
    logprob: float


class Result(Message, tag="result", kw_only=True, frozen=True):
    """The last hop's answer to a step that samples: `tokens` stand at `position` and behind it."""

    session: SessionId
    epoch: Count = 0
    frame: Natural
    position: Count
    tokens: Tokens = ()
    logprobs: Annotated[tuple[float, ...], Meta(max_length=1024)] = ()
    top_logprobs: Annotated[
        tuple[Annotated[tuple[TokenLogprob, ...], Meta(max_length=20)], ...], Meta(max_length=1024)
    ] = ()
    accepted: Annotated[tuple[Natural, ...], Meta(max_length=1024)] = ()
    acknowledged: Annotated[tuple[Natural, ...], Meta(max_length=1024)] = ()
    units: Natural = 0
    commitment: Digest = b""
    trail: Trail = ()
    sent_ns: int = 0


class Cancel(Message, tag="cancel", kw_only=True, frozen=True):
    """The session is over; goes from the client through all hops, and frees what they keep for it."""

    session: SessionId
    reason: Name = "done"


Retry = Literal["never", "here", "elsewhere"]
Scalar = str | int | float | bool | None


class Failure(Message, tag="failure", kw_only=True, frozen=True):
    """A typed error (`session_errors.py`); goes back hop by hop to the client, naming the hop where it happened."""

    session: SessionId | None = None
    request: Natural | None = None
    code: Name
    fields: Annotated[dict[Name, Scalar | list[int]], Meta(max_length=16)] = {}
    peer: Annotated[str, Meta(max_length=64)] = ""
    hop: Count | None = None
    retry: Retry = "never"
    text: Text = ""
    remedy: Text = ""


class Refuse(Message, tag="refuse", kw_only=True, frozen=True):
    """A Failure of an opening that also tells the node's load, so that the client can choose again."""

    session: SessionId
    failure: Failure
    load: Load = Load()
    retry_after_ms: Count = 0


class Credit(Message, tag="credit", kw_only=True, frozen=True):
    """Vouchers on their own, where the client sends no steps: at the end; each for the hop of its place."""

    session: SessionId
    sealed: Annotated[tuple[Sealed, ...], Meta(max_length=MAX_HOPS)] = ()


# -- reserved --------------------------------------------------------------------------------------------------------


class Fence(Message, tag="fence", kw_only=True, frozen=True):
    """The last hop tells every hop which draft candidates are dead; best effort, may only save work."""

    session: SessionId
    epoch: Count = 0
    tip: Natural
    dead: Annotated[tuple[Natural, ...], Meta(max_length=1024)] = ()


class Grant(Message, tag="grant", kw_only=True, frozen=True):
    session: SessionId
    grant: HopGrant


class Reroute(Message, tag="reroute", kw_only=True, frozen=True):
    """From this epoch on, the session's next hop is another one."""

    session: SessionId
    epoch: Count
    next: HopSpec


class ReplayRequest(Message, tag="replay_request", kw_only=True, frozen=True):
    session: SessionId
    epoch: Count = 0
    start: Count
    end: Count


class ReplayRange(Message, tag="replay_range", kw_only=True, frozen=True):
    session: SessionId
    epoch: Count = 0
    start: Count
    end: Count
    complete: bool = True


class KVTransfer(Message, tag="kv_transfer", kw_only=True, frozen=True):
    session: SessionId
    block: Count
    position: Count
    count: Count
    layout: Name = ""


class Drain(Message, tag="drain", kw_only=True, frozen=True):
    """The sender stops soon: open nothing new, finish or move what runs."""

    deadline_ms: Count = 0


class DialMe(Message, tag="dial_me", kw_only=True, frozen=True):
    """Ask, through a third peer, to be dialed: for the end that cannot be reached."""

    peer: PeerIdText
    addresses: Addresses


class Audit(Message, tag="audit", kw_only=True, frozen=True):
    request: Natural
    session: SessionId
    start: Count
    end: Count
    commitment: Digest = b""


class Rpc(Message, tag="rpc", kw_only=True, frozen=True):
    """A call of a service that the protocol does not know, its arguments as the body; the bank, for one."""

    request: Natural
    service: Name
    method: Name


class RpcReply(Message, tag="rpc_reply", kw_only=True, frozen=True):
    request: Natural
    ok: bool = True


AnyMessage = (
    Hello
    | Welcome
    | Lookup
    | Records
    | Publish
    | Published
    | Models
    | ModelList
    | Fetch
    | File
    | Open
    | Opened
    | Step
    | Result
    | Cancel
    | Failure
    | Refuse
    | Fence
    | Credit
    | Grant
    | Reroute
    | ReplayRequest
    | ReplayRange
    | KVTransfer
    | Drain
    | DialMe
    | Audit
    | Rpc
    | RpcReply
)

_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes | bytearray | memoryview], AnyMessage] = msgspec.msgpack.Decoder(AnyMessage).decode


def encode(message: Message) -> bytes:
    """Return the header bytes of a message."""
    return _encode(message)


def decode(header: bytes | bytearray | memoryview) -> AnyMessage:
    """Return the message that header bytes hold.

    Raises Malformed for anything that is not a message of this version within its limits, NotUnderstood for one whose
    `must` names fields that this version does not have.
    """
    try:
        message = _decode(header)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Malformed(what="message", reason=str(error)) from error
    if message.must and (unknown := [name for name in message.must if not _knows(message, name)]):
        raise NotUnderstood(message=type(message).__name__, fields=tuple(unknown))
    return message


def _knows(value: object, name: str) -> bool:
    """Whether a message has a field, or its part has the field behind the dot."""
    field, dot, inner = name.partition(".")
    if not isinstance(value, Struct) or field not in value.__struct_fields__:
        return False
    return not dot or _knows(getattr(value, field), inner)


_decode_grammar = msgspec.msgpack.Decoder(Grammar).decode


def encode_grammar(grammar: Grammar) -> bytes:
    """Return the bytes of `SamplingSpec.grammar`."""
    return _encode(grammar)


def decode_grammar(data: bytes) -> Grammar:
    """Return the grammar in `SamplingSpec.grammar`. Raises Malformed."""
    try:
        return _decode_grammar(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Malformed(what="grammar", reason=str(error)) from error
