"""What is said to a bank, and what it answers; pure.

    request    Request(account, id, expires_s, body, signature), the body that of its method
    reply      the bank's signature, then Answer(verdict, result)

A request that acts for an account is signed by it, over the method, the bank, the id and the expiry: it counts at this
bank alone, until then, and once. The reply is signed over the whole request, so it belongs to no other one. Both
digests begin with labels, so neither is one of EIP-712 or of a transaction.

Called by `bank_service.py` and `embedded.py`.
"""

from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from swarm_ledger.accounts import ADDRESS_BYTES, SIGNATURE_BYTES, Account, Address, keccak, signer_of
from swarm_ledger.channels import ChannelId, ChannelKey, ChannelState, Claim
from swarm_ledger.errors import BadSignature, BankRefused
from swarm_ledger.ledger import ChannelEntry, Event, EventKind, Opening
from swarm_ledger.quotes import RawAddress
from swarm_ledger.sections import Amount, Salt, Signature, amount_bytes

MAX_REQUEST_BYTES: Final = 24 * 1024
MAX_REPLY_BYTES: Final = 48 * 1024
MAX_LIFETIME_S: Final = 600  # how far ahead a request may expire
MAX_BATCH: Final = 64  # openings or claims in one request
MAX_CHANNELS: Final = 128  # in one answer
MAX_EVENTS: Final = 256
ID_BYTES: Final = 16

_REQUEST: Final = b"swarm-ledger/bank-request/1\0"
_REPLY: Final = b"swarm-ledger/bank-reply/1\0"

Verdict = Literal["ok", "refused", "rejected", "expired", "no credit"]
RawChannel = Annotated[bytes, Meta(min_length=32, max_length=32)]
Seconds = Annotated[int, Meta(ge=0, le=2**53)]
_Message = TypeVar("_Message")


class Request(Struct, array_like=True, frozen=True):
    """A question or an order; both stand for themselves without an account where nobody's account matters."""

    account: Annotated[bytes, Meta(max_length=ADDRESS_BYTES)]
    id: Annotated[bytes, Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
    expires_s: Seconds
    body: Annotated[bytes, Meta(max_length=MAX_REQUEST_BYTES)]
    signature: Signature


class Answer(Struct, array_like=True, frozen=True):
    """What became of a request: the method's result, or a code of `Refused`, or a reason for people."""

    verdict: Verdict
    result: Annotated[bytes, Meta(max_length=MAX_REPLY_BYTES)] = b""


class Nothing(Struct, array_like=True, frozen=True):
    """The body of what needs no more, and the result of what has none."""


class Info(Struct, array_like=True, frozen=True):
    """What a bank says of itself."""

    currency: Annotated[str, Meta(min_length=1, max_length=16)]
    decimals: Annotated[int, Meta(ge=0, le=36)]
    close_delay_s: Seconds
    starting_credit: Amount
    now_s: Seconds  # by the bank's clock, which decides when requests expire


class RawKey(Struct, array_like=True, frozen=True):
    """A channel's parties."""

    payer: RawAddress
    payee: RawAddress
    signer: RawAddress
    salt: Salt

    def key(self) -> ChannelKey:
        return ChannelKey(
            Address(self.payer), Address(self.payee), Address(self.signer), int.from_bytes(self.salt, "big")
        )


class ChannelBody(Struct, array_like=True, frozen=True):
    channel: RawChannel


class PageBody(Struct, array_like=True, frozen=True):
    """Which channels to list: those behind this one."""

    after: Annotated[bytes, Meta(max_length=32)]


class HistoryBody(Struct, array_like=True, frozen=True):
    limit: Annotated[int, Meta(ge=1, le=MAX_EVENTS)]


class RawOpening(Struct, array_like=True, frozen=True):
    payee: RawAddress
    signer: RawAddress
    salt: Salt
    amount: Amount

    def opening(self) -> Opening:
        salt, amount = int.from_bytes(self.salt, "big"), int.from_bytes(self.amount, "big")
        return Opening(Address(self.payee), Address(self.signer), salt, amount)


class OpenBody(Struct, array_like=True, frozen=True):
    openings: Annotated[tuple[RawOpening, ...], Meta(min_length=1, max_length=MAX_BATCH)]


class TopUpBody(Struct, array_like=True, frozen=True):
    key: RawKey
    amount: Amount


class RawClaim(Struct, array_like=True, frozen=True):
    key: RawKey
    cumulative: Amount
    signature: Signature

    def claim(self) -> Claim:
        return Claim(self.key.key(), int.from_bytes(self.cumulative, "big"), self.signature)


class RedeemBody(Struct, array_like=True, frozen=True):
    claims: Annotated[tuple[RawClaim, ...], Meta(min_length=1, max_length=MAX_BATCH)]


class KeyBody(Struct, array_like=True, frozen=True):
    key: RawKey


class WithdrawBody(Struct, array_like=True, frozen=True):
    amount: Amount
    to: RawAddress


class AmountResult(Struct, array_like=True, frozen=True):
    amount: Amount


class RawState(Struct, array_like=True, frozen=True):
    allocated: Amount
    claimed: Amount
    closes_at_s: Seconds
    is_closed: bool

    def state(self) -> ChannelState:
        allocated, claimed = int.from_bytes(self.allocated, "big"), int.from_bytes(self.claimed, "big")
        return ChannelState(allocated, claimed, self.closes_at_s, self.is_closed)


class ChannelResult(Struct, array_like=True, frozen=True):
    state: RawState | None


class RawEntry(Struct, array_like=True, frozen=True):
    key: RawKey
    state: RawState


class ChannelsResult(Struct, array_like=True, frozen=True):
    entries: Annotated[tuple[RawEntry, ...], Meta(max_length=MAX_CHANNELS)]


class RawEvent(Struct, array_like=True, frozen=True):
    kind: EventKind
    at_s: Seconds
    amount: Amount
    channel: Annotated[bytes, Meta(max_length=32)]
    other: Annotated[bytes, Meta(max_length=ADDRESS_BYTES)]

    def event(self) -> Event:
        channel = ChannelId(self.channel) if self.channel else None
        return Event(
            self.kind,
            self.at_s,
            int.from_bytes(self.amount, "big"),
            channel,
            Address(self.other) if self.other else None,
        )


class HistoryResult(Struct, array_like=True, frozen=True):
    events: Annotated[tuple[RawEvent, ...], Meta(max_length=MAX_EVENTS)]


def raw_key(key: ChannelKey) -> RawKey:
    """Return a channel's parties as they are sent."""
    return RawKey(key.payer, key.payee, key.signer, amount_bytes(key.salt))


def raw_opening(opening: Opening) -> RawOpening:
    """Return an opening as it is sent."""
    return RawOpening(opening.payee, opening.signer, amount_bytes(opening.salt), amount_bytes(opening.amount))


def raw_claim(claim: Claim) -> RawClaim:
    """Return a claim as it is sent."""
    return RawClaim(raw_key(claim.key), amount_bytes(claim.cumulative), claim.signature)


def raw_state(state: ChannelState) -> RawState:
    """Return a channel's state as it is sent."""
    return RawState(amount_bytes(state.allocated), amount_bytes(state.claimed), state.closes_at_s, state.is_closed)


def raw_entry(entry: ChannelEntry) -> RawEntry:
    """Return a channel as it is sent."""
    return RawEntry(raw_key(entry.key), raw_state(entry.state))


def raw_event(event: Event) -> RawEvent:
    """Return an event as it is sent."""
    return RawEvent(event.kind, event.at_s, amount_bytes(event.amount), event.channel or b"", event.other or b"")


encode: Final = msgspec.msgpack.Encoder().encode


def decode(data: bytes, kind: type[_Message]) -> _Message:
    """Return the message in some bytes. Raises BankRefused for what is none."""
    if len(data) > MAX_REPLY_BYTES:
        raise BankRefused(f"{len(data)} bytes, at most {MAX_REPLY_BYTES}")
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BankRefused(str(error)[:200]) from error


def write_request(
    method: str, body: bytes, *, bank: Address, account: Account | None, request_id: bytes, expires_s: int
) -> bytes:
    """Return a request's bytes, signed if it is for an account."""
    owner = account.address if account else b""
    signature = account.sign(_request_digest(method, bank, owner, request_id, expires_s, body)) if account else b""
    return encode(Request(owner, request_id, expires_s, body, signature))


def read_request(method: str, data: bytes, *, bank: Address) -> Request:
    """Return the request in some bytes, its signature checked if it names an account. Raises BankRefused."""
    if len(data) > MAX_REQUEST_BYTES:
        raise BankRefused(f"{len(data)} bytes, at most {MAX_REQUEST_BYTES}")
    request = decode(data, Request)
    if request.account:
        digest = _request_digest(method, bank, request.account, request.id, request.expires_s, request.body)
        try:
            signer = signer_of(digest, request.signature)
        except BadSignature as error:
            raise BankRefused("its signature is malformed") from error
        if signer != request.account:
            raise BankRefused("it is not signed by its account, for this bank")
    return request


def write_reply(method: str, request: bytes, answer: bytes, account: Account) -> bytes:
    """Return the bank's answer to a request, signed."""
    return account.sign(_reply_digest(method, request, account.address, answer)) + answer


def read_reply(method: str, request: bytes, reply: bytes, bank: Address) -> Answer:
    """Return what this bank has answered to this request. Raises BankRefused for anything else."""
    signature, answer = reply[:SIGNATURE_BYTES], reply[SIGNATURE_BYTES:]
    try:
        signer = signer_of(_reply_digest(method, request, bank, answer), signature)
    except BadSignature as error:
        raise BankRefused("the signature of its answer is malformed") from error
    if signer != bank:
        raise BankRefused("its answer is not signed with the bank's key, or not for this request")
    return decode(answer, Answer)


def _request_digest(
    method: str, bank: Address, account: bytes, request_id: bytes, expires_s: int, body: bytes
) -> bytes:
    fixed = bank + account + request_id + expires_s.to_bytes(8, "big") + keccak(body)
    return keccak(_REQUEST + fixed + method.encode())


def _reply_digest(method: str, request: bytes, bank: Address, answer: bytes) -> bytes:
    return keccak(_REPLY + bank + keccak(request) + keccak(answer) + method.encode())
