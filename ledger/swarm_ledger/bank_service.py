"""A bank as others reach it: requests as bytes in, signed replies as bytes out; who carries them is not known here.

    handle    network's pace -> size -> signature -> answered before? -> expiry -> verb and answer in one transaction

Owns who may do what: an account's owner disposes of its balance, anybody may look at a channel or redeem vouchers, and
the operator's own verb, `Bank.deposit`, is not among the methods. The node that hosts the bank calls `handle` and names
the network address that a request came from; the present is an argument.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from swarm_ledger.accounts import Account, Address, keccak
from swarm_ledger.answered import AnsweredRequests
from swarm_ledger.bank import Bank
from swarm_ledger.bank_messages import (
    MAX_CHANNELS,
    MAX_LIFETIME_S,
    AmountResult,
    Answer,
    ChannelBody,
    ChannelResult,
    ChannelsResult,
    HistoryBody,
    HistoryResult,
    Info,
    KeyBody,
    Nothing,
    OpenBody,
    PageBody,
    RedeemBody,
    Request,
    TopUpBody,
    WithdrawBody,
    decode,
    encode,
    raw_entry,
    raw_event,
    raw_state,
    read_request,
    write_reply,
)
from swarm_ledger.channels import ChannelId
from swarm_ledger.errors import BankRefused, NoStartingCredit, Refused
from swarm_ledger.sections import amount_bytes
from swarm_ledger.starting_credit import StartingCredit, count_starting_credit, network_of

MOST_PER_MINUTE: Final = 1200  # requests of one network, each opening and claim counted
MAX_NETWORKS: Final = 10_000  # that are counted at a time; beyond them nobody new is served in this minute


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that may be carried out."""

    account: Address
    origin: str
    now_s: float


@dataclass(frozen=True, slots=True)
class _Verb:
    """What a method does with its body; `changes`: it is carried out once, and what it answered is kept."""

    body: type[Any]
    act: Callable[["BankService", _Asked, Any], Any]
    changes: bool
    needs_account: bool = True


class BankService:
    """Answers requests about one bank; `account` is the bank's own, whose address everybody pins."""

    def __init__(
        self,
        bank: Bank,
        account: Account,
        starting_credit: StartingCredit | None = None,
        *,
        most_per_minute: int = MOST_PER_MINUTE,
    ) -> None:
        assert account.address == bank.domain.contract
        self.bank = bank
        self.address = account.address
        self.starting_credit = starting_credit
        self._account = account
        self._answered = AnsweredRequests(bank.store)
        self._most_per_minute = most_per_minute
        self._minute = 0
        self._counts: dict[str, int] = {}  # of this minute, by network; emptied when the next one begins

    def handle(self, method: str, request: bytes, *, origin: str, now_s: float) -> bytes:
        """Return the reply to a request that came from a network address. Raises BrokenStore if the disk fails."""
        try:
            answer = self._answer(method, request, origin, now_s)
        except BankRefused as error:
            answer = encode(Answer("rejected", error.reason.encode()))
        return write_reply(method, request, answer, self._account)

    def _answer(self, method: str, data: bytes, origin: str, now_s: float) -> bytes:
        self._count(network_of(origin), 1, now_s)
        verb = _VERBS.get(method)
        if verb is None:
            raise BankRefused("no method of that name")
        request = read_request(method, data, bank=self.address)
        if verb.needs_account and not request.account:
            raise BankRefused("this method needs an account's signature")
        asked = _Asked(Address(request.account), origin, now_s)
        if not verb.changes:
            if request.account and request.expires_s <= now_s:
                return encode(Answer("expired"))
            return self._carry_out(verb, request, asked)
        with self.bank.store.transaction():
            known = self._answered.find(asked.account, request.id)
            digest = keccak(method.encode() + b"\0" + data)
            if known is not None:
                if known[0] != digest:
                    raise BankRefused("its id was used for another request")
                return known[1]
            if request.expires_s <= now_s or self._answered.is_forgotten(request.expires_s):
                return encode(Answer("expired"))
            if request.expires_s > now_s + MAX_LIFETIME_S:
                raise BankRefused(f"it expires more than {MAX_LIFETIME_S} s ahead")
            answer = self._carry_out(verb, request, asked)
            self._answered.add(asked.account, request.id, digest, request.expires_s, answer, now_s)
        return answer

    def _carry_out(self, verb: _Verb, request: Request, asked: _Asked) -> bytes:
        body = decode(request.body, verb.body)
        if isinstance(body, OpenBody | RedeemBody):
            extra = len(body.openings if isinstance(body, OpenBody) else body.claims) - 1
            self._count(network_of(asked.origin), extra, asked.now_s)
        try:
            return encode(Answer("ok", encode(verb.act(self, asked, body))))
        except Refused as error:
            return encode(Answer("refused", error.code.encode()))
        except NoStartingCredit as error:
            return encode(Answer("no credit", error.reason.encode()))

    def _count(self, network: str, requests: int, now_s: float) -> None:
        minute = int(now_s // 60)
        if minute != self._minute:
            self._minute = minute
            self._counts.clear()
        if network not in self._counts and len(self._counts) >= MAX_NETWORKS:
            raise BankRefused("too many ask it at once; try again in a minute")
        count = self._counts.get(network, 0) + requests
        if count > self._most_per_minute:
            raise BankRefused("too many requests from this network; try again in a minute")
        self._counts[network] = count

    def _info(self, asked: _Asked, _: Nothing) -> Info:
        currency = self.bank.currency
        credit = self.starting_credit.amount if self.starting_credit else 0
        return Info(currency.symbol, currency.decimals, self.bank.close_delay_s, amount_bytes(credit), int(asked.now_s))

    def _balance(self, asked: _Asked, _: Nothing) -> AmountResult:
        return AmountResult(amount_bytes(self.bank.balance(asked.account)))

    def _channel(self, _: _Asked, body: ChannelBody) -> ChannelResult:
        state = self.bank.channel(ChannelId(body.channel))
        return ChannelResult(raw_state(state) if state else None)

    def _channels(self, asked: _Asked, body: PageBody) -> ChannelsResult:
        entries = self.bank.channels(asked.account, after=body.after, limit=MAX_CHANNELS)
        return ChannelsResult(tuple(raw_entry(entry) for entry in entries))

    def _history(self, asked: _Asked, body: HistoryBody) -> HistoryResult:
        return HistoryResult(tuple(raw_event(event) for event in self.bank.history(asked.account, limit=body.limit)))

    def _open(self, asked: _Asked, body: OpenBody) -> Nothing:
        self.bank.open(asked.account, [raw.opening() for raw in body.openings], asked.now_s)
        return Nothing()

    def _top_up(self, asked: _Asked, body: TopUpBody) -> Nothing:
        self.bank.top_up(asked.account, body.key.key(), int.from_bytes(body.amount, "big"), asked.now_s)
        return Nothing()

    def _redeem(self, asked: _Asked, body: RedeemBody) -> AmountResult:
        return AmountResult(amount_bytes(self.bank.redeem([raw.claim() for raw in body.claims], asked.now_s)))

    def _request_close(self, asked: _Asked, body: KeyBody) -> Nothing:
        self.bank.request_close(asked.account, body.key.key(), asked.now_s)
        return Nothing()

    def _finish_close(self, asked: _Asked, body: KeyBody) -> Nothing:
        self.bank.finish_close(asked.account, body.key.key(), asked.now_s)
        return Nothing()

    def _withdraw(self, asked: _Asked, body: WithdrawBody) -> Nothing:
        self.bank.withdraw(asked.account, int.from_bytes(body.amount, "big"), Address(body.to), asked.now_s)
        return Nothing()

    def _claim_credit(self, asked: _Asked, _: Nothing) -> AmountResult:
        offer = self.starting_credit
        if offer is None or offer.amount == 0:
            raise NoStartingCredit("this bank gives none")
        with self.bank.store.transaction():
            count_starting_credit(self.bank.store, offer, asked.account, asked.origin, asked.now_s)
            self.bank.deposit(asked.account, offer.amount, asked.now_s)
        return AmountResult(amount_bytes(offer.amount))


_VERBS: Final[dict[str, _Verb]] = {
    "info": _Verb(Nothing, BankService._info, changes=False, needs_account=False),
    "channel": _Verb(ChannelBody, BankService._channel, changes=False, needs_account=False),
    "balance": _Verb(Nothing, BankService._balance, changes=False),
    "channels": _Verb(PageBody, BankService._channels, changes=False),
    "history": _Verb(HistoryBody, BankService._history, changes=False),
    "open": _Verb(OpenBody, BankService._open, changes=True),
    "top_up": _Verb(TopUpBody, BankService._top_up, changes=True),
    "redeem": _Verb(RedeemBody, BankService._redeem, changes=True),
    "request_close": _Verb(KeyBody, BankService._request_close, changes=True),
    "finish_close": _Verb(KeyBody, BankService._finish_close, changes=True),
    "withdraw": _Verb(WithdrawBody, BankService._withdraw, changes=True),
    "claim_credit": _Verb(Nothing, BankService._claim_credit, changes=True),
}
METHODS: Final = frozenset(_VERBS)
