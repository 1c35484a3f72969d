"""The embedded ledger as an account sees it: the `Ledger` of a bank that is somewhere else, or in this process.

Owns what the bank's client needs: requests signed and numbered, answers checked against the pinned key of the bank, and
asking again without doing it twice. It does not know links: `call` carries bytes to the bank, and raises TimeoutError
or OSError when no reply comes in time. Nodes and clients use it wherever they use a `Ledger`.
"""

import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from swarm_ledger.accounts import Account, Address, address_text
from swarm_ledger.answered import KEPT_S
from swarm_ledger.bank_messages import (
    ID_BYTES,
    MAX_BATCH,
    MAX_CHANNELS,
    MAX_EVENTS,
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
    TopUpBody,
    WithdrawBody,
    decode,
    encode,
    raw_claim,
    raw_key,
    raw_opening,
    read_reply,
    write_request,
)
from swarm_ledger.bank_service import BankService
from swarm_ledger.channels import ChannelId, ChannelKey, ChannelState, Claim, Domain
from swarm_ledger.currencies import Currency
from swarm_ledger.errors import (
    REFUSALS,
    BadAmount,
    BankRefused,
    LedgerUnreachable,
    NoStartingCredit,
    NothingToClaim,
    OnlyMinted,
)
from swarm_ledger.ledger import ChannelEntry, Event, Opening
from swarm_ledger.sections import amount_bytes

Call = Callable[[str, bytes], Awaitable[bytes]]

LIFETIME_S: Final = 120  # of a request
MAX_UNANSWERED: Final = 64  # changes whose answers were lost; the oldest is forgotten first
MAX_LISTED: Final = 10_000  # channels, which strangers may open
_Result = TypeVar("_Result")


def in_process(service: BankService, clock: Callable[[], float] = time.time) -> Call:
    """Return what carries requests to a bank of this process."""

    async def call(method: str, request: bytes) -> bytes:
        return service.handle(method, request, origin="this machine", now_s=clock())

    return call


class EmbeddedLedger:
    """The money of one account at one bank; made by `connect`."""

    def __init__(
        self,
        account: Account,
        bank: Address,
        call: Call,
        info: Info,
        *,
        clock: Callable[[], float],
        entropy: Callable[[int], bytes],
    ) -> None:
        self.info = info
        self._account = account
        self._bank = bank
        self._call = call
        self._clock = clock
        self._entropy = entropy
        self._ahead_s = info.now_s - clock()  # by how much the bank's clock is ahead of this one
        self._unanswered: dict[tuple[str, bytes], tuple[bytes, int]] = {}  # (method, body): the request and its expiry

    @classmethod
    async def connect(
        cls,
        account: Account,
        bank: Address,
        call: Call,
        *,
        clock: Callable[[], float] = time.time,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> "EmbeddedLedger":
        """Ask the bank with this address for its terms. Raises LedgerUnreachable."""
        return cls(account, bank, call, await _info(bank, call, entropy), clock=clock, entropy=entropy)

    @property
    def address(self) -> Address:
        return self._account.address

    @property
    def domain(self) -> Domain:
        return Domain(0, self._bank)

    @property
    def currency(self) -> Currency:
        return Currency(self.info.currency, self.info.decimals)

    @property
    def close_delay_s(self) -> int:
        return self.info.close_delay_s

    @property
    def starting_credit(self) -> int:
        """What the bank says that it gives to newcomers."""
        return _number(self.info.starting_credit)

    async def balance(self) -> int:
        """Return what the account has free. Raises LedgerUnreachable, as every method does."""
        return _number((await self._ask("balance", Nothing(), AmountResult)).amount)

    async def channel(self, channel: ChannelId) -> ChannelState | None:
        """Return what a channel holds, whosever it is."""
        state = (await self._ask("channel", ChannelBody(channel), ChannelResult)).state
        return state.state() if state else None

    async def channels(self) -> list[ChannelEntry]:
        """Return the account's open channels."""
        entries: list[ChannelEntry] = []
        after = b""
        while len(entries) < MAX_LISTED:
            page = (await self._ask("channels", PageBody(after), ChannelsResult)).entries
            entries.extend(ChannelEntry(raw.key.key(), raw.state.state()) for raw in page)
            if len(page) < MAX_CHANNELS:
                break
            after = entries[-1].key.id
        return entries

    async def history(self, limit: int = 100) -> list[Event]:
        """Return the latest events of the account, newest first."""
        body = HistoryBody(max(1, min(limit, MAX_EVENTS)))
        return [raw.event() for raw in (await self._ask("history", body, HistoryResult)).events]

    async def deposit(self, amount: int) -> None:
        """Raise OnlyMinted: a bank's credits cannot be bought."""
        raise OnlyMinted

    async def claim_starting_credit(self) -> int:
        """Ask for what the bank gives to newcomers; returns how much it was. Raises NoStartingCredit."""
        return _number((await self._change("claim_credit", Nothing(), AmountResult)).amount)

    async def open(self, openings: Sequence[Opening]) -> None:
        """Open channels: all, or none. Raises Refused."""
        if not 0 < len(openings) <= MAX_BATCH or any(not 0 <= opening.amount < 1 << 128 for opening in openings):
            raise BadAmount
        await self._change("open", OpenBody(tuple(raw_opening(opening) for opening in openings)), Nothing)

    async def top_up(self, key: ChannelKey, amount: int) -> None:
        """Add to a channel. Raises Refused."""
        await self._change("top_up", TopUpBody(raw_key(key), _amount(amount)), Nothing)

    async def redeem(self, claims: Sequence[Claim]) -> int:
        """Collect vouchers, of any payee; returns how much was paid. Raises Refused."""
        paid = 0
        for start in range(0, len(claims), MAX_BATCH):
            body = RedeemBody(tuple(raw_claim(claim) for claim in claims[start : start + MAX_BATCH]))
            try:
                paid += _number((await self._change("redeem", body, AmountResult)).amount)
            except NothingToClaim:
                continue
        if not paid:
            raise NothingToClaim
        return paid

    async def request_close(self, key: ChannelKey) -> None:
        """As the payer, ask to close a channel. Raises Refused."""
        await self._change("request_close", KeyBody(raw_key(key)), Nothing)

    async def finish_close(self, key: ChannelKey) -> None:
        """Give a channel's rest back to its payer. Raises Refused."""
        await self._change("finish_close", KeyBody(raw_key(key)), Nothing)

    async def withdraw(self, amount: int, to: Address) -> None:
        """Take free balance out of the books. Raises Refused."""
        await self._change("withdraw", WithdrawBody(_amount(amount), to), Nothing)

    async def _ask(self, method: str, body: Any, result: type[_Result]) -> _Result:
        data = encode(body)
        answer = await _exchange(self._bank, self._call, method, self._request(method, data)[0])
        if answer.verdict == "expired":
            await self._learn_time()
            answer = await _exchange(self._bank, self._call, method, self._request(method, data)[0])
        return self._judge(answer, result)

    async def _change(self, method: str, body: Any, result: type[_Result]) -> _Result:
        """Have a change made once: if an answer was lost, the same request is sent again, whoever asks for it."""
        data = encode(body)
        request, expires_s = self._request(method, data)
        if (method, data) in self._unanswered:
            before, expired_s = self._unanswered.pop((method, data))
            if expired_s + KEPT_S >= self._now_s():
                request, expires_s = before, expired_s
        answer = await self._send_change(method, data, request, expires_s)
        if answer.verdict == "expired":
            # It was not carried out before either: a bank remembers its answers longer than a request lives.
            await self._learn_time()
            answer = await self._send_change(method, data, *self._request(method, data))
        return self._judge(answer, result)

    async def _send_change(self, method: str, data: bytes, request: bytes, expires_s: int) -> Answer:
        try:
            return await _exchange(self._bank, self._call, method, request)
        except BaseException:
            self._unanswered[method, data] = request, expires_s
            if len(self._unanswered) > MAX_UNANSWERED:
                del self._unanswered[next(iter(self._unanswered))]
            raise

    def _request(self, method: str, body: bytes) -> tuple[bytes, int]:
        expires_s = max(0, int(self._now_s()) + LIFETIME_S)
        request_id = self._entropy(ID_BYTES)
        request = write_request(
            method, body, bank=self._bank, account=self._account, request_id=request_id, expires_s=expires_s
        )
        return request, expires_s

    def _now_s(self) -> float:
        return self._clock() + self._ahead_s

    async def _learn_time(self) -> None:
        self.info = await _info(self._bank, self._call, self._entropy)
        self._ahead_s = self.info.now_s - self._clock()

    def _judge(self, answer: Answer, result: type[_Result]) -> _Result:
        if answer.verdict == "ok":
            return decode(answer.result, result)
        text = answer.result.decode(errors="replace")
        if answer.verdict == "refused" and text in REFUSALS:
            raise REFUSALS[text]
        if answer.verdict == "no credit":
            raise NoStartingCredit(text)
        raise BankRefused(text or answer.verdict)


async def _info(bank: Address, call: Call, entropy: Callable[[int], bytes]) -> Info:
    request = write_request(
        "info", encode(Nothing()), bank=bank, account=None, request_id=entropy(ID_BYTES), expires_s=0
    )
    answer = await _exchange(bank, call, "info", request)
    if answer.verdict != "ok":
        raise BankRefused(answer.result.decode(errors="replace"))
    return decode(answer.result, Info)


async def _exchange(bank: Address, call: Call, method: str, request: bytes) -> Answer:
    where = address_text(bank)
    try:
        reply = await call(method, request)
    except (TimeoutError, OSError) as error:
        raise LedgerUnreachable(where=where, reason=str(error) or "no answer in time") from error
    try:
        return read_reply(method, request, reply, bank)
    except BankRefused as error:
        raise LedgerUnreachable(where=where, reason=error.reason) from error


def _amount(amount: int) -> bytes:
    if not 0 < amount < 1 << 128:
        raise BadAmount
    return amount_bytes(amount)


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, "big")
