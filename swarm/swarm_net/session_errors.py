"""What can fail inside a session. These errors cross the wire, so their codes and fields are part of the protocol.

    SessionError
    ├── KVFull              no room for the session's KV                        elsewhere
    ├── Overloaded          what waits to be computed takes too long already    elsewhere
    ├── Busy                a request, where many are served already            elsewhere
    ├── SpanNotServed       the blocks asked for are not here                   elsewhere
    ├── ModelNotServed      another model, or other weights                     elsewhere
    ├── Draining            the node is stopping                                elsewhere
    ├── HopUnreachable      the next hop of the route could not be dialed       elsewhere
    ├── HopLost             a hop of the route went away                        elsewhere
    ├── HopSilent           an answer did not come within its deadline          elsewhere
    ├── ComputeFailed       the executor raised                                 elsewhere
    ├── SessionUnknown      a step for a session that is not (or no longer) open elsewhere
    ├── PositionGap         tokens are missing before the step                  here
    ├── PaymentRefused      no way to pay that this node takes                  elsewhere
    ├── PaymentDue          a step that is not paid for; it waits for a while   here
    ├── RewindImpossible    a running state cannot go back that far             here
    ├── SessionFull         the step goes beyond what was reserved              never
    ├── ContextTooLong      beyond what the model can attend to                 never
    ├── BadStep             a step that contradicts its session or itself       never
    ├── GrammarRefused      a grammar that is invalid, too large, or that the answer does not match  never
    └── Unsupported         something asked for that this node cannot do        elsewhere

`to_failure` and `from_failure` map them to `messages.Failure` and back; an unknown code arrives as RemoteError.
"""

from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar, Self

from swarm_net.errors import NetError
from swarm_net.messages import Failure, Retry, Scalar

MAX_AMOUNT_DIGITS = 40


@dataclass(eq=False, kw_only=True)
class SessionError(NetError):
    """A failure of one session; `hop` and `peer` say where, as soon as that is known."""

    hop: int | None = None
    peer: str = ""

    code: ClassVar[str] = "session_error"
    retry: ClassVar[Retry] = "never"

    @abstractmethod
    def text(self) -> str:
        """Say what happened, without where."""

    def __str__(self) -> str:
        if self.hop is None:
            return self.text()
        return f"hop {self.hop} ({self.peer[-8:]}): {self.text()}"

    def at(self, hop: int, peer: str) -> Self:
        """Name the hop where it happened, unless that is known already; returns self."""
        if self.hop is None:
            self.hop, self.peer = hop, peer
        return self


@dataclass(eq=False)
class KVFull(SessionError):
    """The node cannot keep this session's keys and values."""

    tokens_needed: int
    tokens_free: int
    tokens_total: int

    code: ClassVar[str] = "kv_full"
    retry: ClassVar[Retry] = "elsewhere"

    def text(self) -> str:
        return f"KV for {self.tokens_needed} tokens needed, {self.tokens_free} of {self.tokens_total} free"

    def remedy(self) -> str:
        return "ask for fewer tokens, try later, or another node; operators: raise --kv-memory"


@dataclass(eq=False)
class Overloaded(SessionError):
    """More waits at the node than it computes within its operator's limit."""

    waiting_ms: int
    limit_ms: int

    code: ClassVar[str] = "overloaded"
    retry: ClassVar[Retry] = "elsewhere"

    def text(self) -> str:
        return f"what waits here takes {self.waiting_ms / 1000:.0f} s, the limit is {self.limit_ms / 1000:.0f} s"

    def remedy(self) -> str:
        return "try later, or another node"


@dataclass(eq=False)
class Busy(SessionError):
    """A request, not of a session, that the peer does not serve now."""

    reason: str

    code: ClassVar[str] = "busy"
    retry: ClassVar[Retry] = "elsewhere"

    def text(self) -> str:
        return f"busy: {self.reason}"

    def remedy(self) -> str:
        return "ask again later, or another node"


@dataclass(eq=False)
class SpanNotServed(SessionError):
    """The blocks asked for are outside the span that this node serves."""

    start: int
    end: int
    served_start: int
    served_end: int

    code: ClassVar[str] = "span_not_served"
    retry: ClassVar[Retry] = "elsewhere"

    def text(self) -> str:
        return f"blocks {self.start}:{self.end} asked, {self.served_start}:{self.served_end} served"

    def remedy(self) -> str:
        return "the node has moved since its record was read: look the route up again"


@dataclass(eq=False)
class ModelNotServed(SessionError):
    """The node serves another model, or the same one with other weights."""

    asked: str
    served: str

    code: ClassVar[str] = "model_not_served"
    retry: ClassVar[Retry] = "elsewhere"

    def text(self) -> str:
        return f"{self.asked} asked, {self.served} served"

    def remedy(self) -> str:
        return "look the route up again: the node's record is out of date"


@dataclass(eq=False)
class Draining(SessionError):
    """The node is stopping."""

    code: ClassVar[str] = "draining"
    retry: ClassVar[Retry] = "elsewhere"

    def text(self) -> str:
        return "the node is stopping"

    def remedy(self) -> str:
        return "try again: another route is taken"


@dataclass(eq=False)
class HopUnreachable(SessionError):
    """A hop could not dial the next one."""

    target: str
    reason: str

    code: ClassVar[str] = "hop_unreachable"
    retry: ClassVar[Retry] = "elsewhere"

    def text(self) -> str:
        return f"cannot reach {self.target[-8:]}: {self.reason}"

    def remedy(self) -> str:
        return "try again: a route around it is taken"


@dataclass(eq=False)
class HopLost(SessionError):
    """A hop that was part of a running session went away."""

    target: str
    reason: str

    code: ClassVar[str] = "hop_lost"
    retry: ClassVar[Retry] = "elsewhere"

    def text(self) -> str:
        return f"the link to {self.target[-8:]} was lost: {self.reason}"

    def remedy(self) -> str:
        return "try again: a route around it is taken"


@dataclass(eq=False)
class HopSilent(SessionError):
    """The route did not answer a step within the time that its hops' rates allow for."""

    waited_ms: int

    code: ClassVar[str] = "hop_silent"
    retry: ClassVar[Retry] = "elsewhere"

    def text(self) -> str:
        return f"no answer within {self.waited_ms} ms"

    def remedy(self) -> str:
        return "try again: another route is taken"


@dataclass(eq=False)
class ComputeFailed(SessionError):
    """The executor raised; the node's log has the details."""

    reason: str

    code: ClassVar[str] = "compute_failed"
    retry: ClassVar[Retry] = "elsewhere"

    def text(self) -> str:
        return f"the computation failed: {self.reason}"

    def remedy(self) -> str:
        return "try another node; the operator finds the cause in the node's log"


@dataclass(eq=False)
class SessionUnknown(SessionError):
    """A step for a session that is not open here: never opened, ended, or dropped after its idle timeout."""

    code: ClassVar[str] = "session_unknown"
    retry: ClassVar[Retry] = "elsewhere"

    def text(self) -> str:
        return "the session is not open here (any more)"

    def remedy(self) -> str:
        return "open it again: what it held is computed anew from its token ids"


@dataclass(eq=False)
class PaymentRefused(SessionError):
    """The node does not serve this session for what it is offered."""

    reason: str
    kind: str  # what exactly, for programs: the name of the ledger's error
    advice: str

    code: ClassVar[str] = "payment_refused"
    retry: ClassVar[Retry] = "elsewhere"

    def text(self) -> str:
        return f"payment refused: {self.reason}"

    def remedy(self) -> str:
        return self.advice


@dataclass(eq=False)
class PaymentDue(SessionError):
    """A step waits at the node until more is paid; amounts in the smallest unit, as text: they may be large."""

    earned: str
    cost: str
    paid: str
    window: str

    code: ClassVar[str] = "payment_due"
    retry: ClassVar[Retry] = "here"

    @property
    def needed(self) -> int:
        """What vouchers have to come to for the step; 0 where the numbers are none."""
        numbers = (self.earned, self.cost, self.window)
        if not all(len(number) <= MAX_AMOUNT_DIGITS and number.isdecimal() for number in numbers):
            return 0
        return max(0, int(self.earned) + int(self.cost) - int(self.window))

    def text(self) -> str:
        return f"not paid for: {self.earned} earned, the next step costs {self.cost}, paid {self.paid}"

    def remedy(self) -> str:
        return f"send a voucher that leaves at most {self.window} unpaid"


@dataclass(eq=False)
class PositionGap(SessionError):
    """The step starts behind the end of what is cached."""

    position: int
    cached: int

    code: ClassVar[str] = "position_gap"
    retry: ClassVar[Retry] = "here"

    def text(self) -> str:
        return f"step at position {self.position}, but only {self.cached} tokens are cached"

    def remedy(self) -> str:
        return f"send the tokens from position {self.cached} on"


@dataclass(eq=False)
class RewindImpossible(SessionError):
    """The step starts before the end of what is cached, and the span's state cannot go back there."""

    position: int
    cached: int

    code: ClassVar[str] = "rewind_impossible"
    retry: ClassVar[Retry] = "here"

    def text(self) -> str:
        return f"step at position {self.position}, but {self.cached} tokens cannot be taken back that far"

    def remedy(self) -> str:
        return "send the session's tokens again from position 0"


@dataclass(eq=False)
class SessionFull(SessionError):
    """The step goes beyond the tokens that the session was opened for."""

    tokens: int
    limit: int

    code: ClassVar[str] = "session_full"
    retry: ClassVar[Retry] = "never"

    def text(self) -> str:
        return f"{self.tokens} tokens, the session was opened for {self.limit}"

    def remedy(self) -> str:
        return "open the session for more tokens"


@dataclass(eq=False)
class ContextTooLong(SessionError):
    """More tokens than the model can attend to."""

    tokens: int
    limit: int

    code: ClassVar[str] = "context_too_long"
    retry: ClassVar[Retry] = "never"

    def text(self) -> str:
        return f"{self.tokens} tokens, the model's limit is {self.limit}"

    def remedy(self) -> str:
        return "shorten the prompt or ask for fewer new tokens"


@dataclass(eq=False)
class BadStep(SessionError):
    """A step or opening that contradicts its session or itself."""

    reason: str

    code: ClassVar[str] = "bad_step"
    retry: ClassVar[Retry] = "never"

    def text(self) -> str:
        return self.reason

    def remedy(self) -> str:
        return "the sender is broken or of another version: update it"


@dataclass(eq=False)
class GrammarRefused(SessionError):
    """What the answer should match cannot be used: invalid, too slow, or not what the tokens so far match."""

    reason: str

    code: ClassVar[str] = "grammar_refused"
    retry: ClassVar[Retry] = "never"

    def text(self) -> str:
        return f"the grammar cannot be used: {self.reason}"

    def remedy(self) -> str:
        return "correct it, or make it smaller and simpler"


@dataclass(eq=False)
class Unsupported(SessionError):
    """Something asked for that this node cannot do: a codec, an adapter, a grammar."""

    feature: str

    code: ClassVar[str] = "unsupported"
    retry: ClassVar[Retry] = "elsewhere"

    def text(self) -> str:
        return f"this node does not support {self.feature}"

    def remedy(self) -> str:
        return "do without it, or choose nodes whose records offer it"


@dataclass(eq=False)
class RemoteError(SessionError):
    """An error of a newer version, as its sender described it."""

    remote_code: str
    description: str
    advice: str
    remote_retry: Retry

    code: ClassVar[str] = "remote_error"

    def text(self) -> str:
        return self.description

    def remedy(self) -> str:
        return self.advice


_LEAVES: dict[str, type[SessionError]] = {
    leaf.code: leaf
    for leaf in (
        KVFull,
        Overloaded,
        Busy,
        SpanNotServed,
        ModelNotServed,
        Draining,
        HopUnreachable,
        HopLost,
        HopSilent,
        ComputeFailed,
        SessionUnknown,
        PaymentRefused,
        PaymentDue,
        PositionGap,
        RewindImpossible,
        SessionFull,
        ContextTooLong,
        BadStep,
        GrammarRefused,
        Unsupported,
    )
}


def to_failure(error: SessionError, *, session: bytes | None = None, request: int | None = None) -> Failure:
    """Return the message that carries an error to the client."""
    values: dict[str, Scalar | list[int]] = {
        field.name: getattr(error, field.name) for field in fields(error) if field.name not in ("hop", "peer")
    }
    return Failure(
        session=session,
        request=request,
        code=error.code,
        fields=values,
        peer=error.peer,
        hop=error.hop,
        retry=error.retry,
        text=error.text()[:2048],
        remedy=error.remedy()[:2048],
    )


def from_failure(failure: Failure) -> SessionError:
    """Return the error that a message carries; what this version cannot rebuild becomes a RemoteError."""
    leaf = _LEAVES.get(failure.code)
    if leaf is not None:
        expected = {field.name: field.type for field in fields(leaf) if field.name not in ("hop", "peer")}
        if expected == {name: type(value) for name, value in failure.fields.items()}:
            return leaf(**failure.fields, hop=failure.hop, peer=failure.peer)
    return RemoteError(
        remote_code=failure.code,
        description=failure.text or failure.code,
        advice=failure.remedy or "try another route",
        remote_retry=failure.retry,
        hop=failure.hop,
        peer=failure.peer,
    )
