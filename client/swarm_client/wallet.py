"""What a client pays with: its account, its channels to nodes, and what it may spend.

Owns what each session is paid with: its channels, its budgets, what has to be on disk before anything is signed. That
channels hold enough is `ledger_account.py`'s business, before a session: no ledger is asked while tokens flow. Ledgers
are reached lazily: who uses free nodes alone never meets one. Made by `money.py`, used by `token_stream.py`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import ClassVar

from swarm_client.ledger_account import LedgerAccount, Wanted
from swarm_client.payment import HopPayment, SessionPayment
from swarm_client.prices import quote_of
from swarm_ledger.accounts import Account, Address
from swarm_ledger.channels import Domain
from swarm_ledger.client_store import ClientStore, Raise
from swarm_ledger.ledger import Ledger
from swarm_ledger.metering import Meter, Place
from swarm_ledger.quotes import Quote, check_binding, quote_digest
from swarm_ledger.sealing import begin_seal
from swarm_ledger.spending import Budget, Purse, SpendingChannel
from swarm_net.identity import public_key_of
from swarm_net.links import Clock
from swarm_net.records import QUOTE_EXTENSION
from swarm_net.routing import Hop, Route

log = logging.getLogger(__name__)

SLACK = 4  # one part in so many on top of what a session probably costs: guesses, another try
LEASES = 5  # of KV that a session probably needs
LEDGER_TIMEOUT_S = 30.0


@dataclass(slots=True)
class RequestBudget:
    """What one generation may cost, over all its routes; in whole units until a quote tells how small the parts are."""

    limit: Decimal | None
    _budgets: dict[str, Budget] = field(default_factory=dict)

    def of(self, quote: Quote) -> Budget:
        """Return the budget in the currency of a quote."""
        known = self._budgets.get(quote.currency)
        if known is None:
            limit = None if self.limit is None else int(self.limit.scaleb(quote.decimals))
            known = Budget("of the request", limit, 0, quote.currency, quote.decimals)
            self._budgets[quote.currency] = known
        return known


@dataclass(frozen=True, slots=True)
class _PaidHop:
    """A hop that asks for money, before anything is put aside for it."""

    hop: Hop
    quote: Quote
    meter: Meter
    wanted: Wanted


class Wallet:
    """One client's money; used by all its sessions."""

    session_payment: ClassVar = SessionPayment

    def __init__(
        self,
        *,
        files: Callable[[], tuple[Account, ClientStore]],
        ledger: Callable[[Account, Quote], Awaitable[Ledger]],
        clock: Clock,
        entropy: Callable[[int], bytes],
        client: str,
        daily: Decimal | None = None,
    ) -> None:
        self._files = files
        self._connect = ledger
        self._clock = clock
        self._entropy = entropy
        self._client = client
        self._daily_limit = daily
        self._accounts: dict[Domain, LedgerAccount] = {}
        self._connecting = asyncio.Lock()
        self._daily: dict[tuple[int, str], Budget] = {}

    def close(self) -> None:
        """Write down what was signed: until then, the store counts what may have been."""
        if "_opened" not in self.__dict__:
            return
        channels = [channel for account in self._accounts.values() for channel in account.channels]
        self._store.put_away(channels)
        self._store.close()

    async def pay(
        self,
        route: Route,
        *,
        session: bytes,
        prompt_tokens: int,
        new_tokens: int,
        max_tokens: int,
        logprobs: bool,
        budget: RequestBudget,
        is_replay: bool,
    ) -> SessionPayment | None:
        """Return how a session on a route is paid, its channels open and filled; None where all of it is free.

        Raises LedgerError: a node's account that is not its own, a ledger that does not answer, too little money.
        """
        paid: dict[int, _PaidHop] = {}
        for place, hop in enumerate(route.hops):
            quote = quote_of(hop.record)
            if quote is None:
                continue
            check_binding(quote, hop.record.binding, public_key_of(hop.peer), self._clock.wall_ns() / 1e9)
            shape = Place(
                blocks=hop.end - hop.start,
                is_first=place == 0,
                is_last=place == len(route.hops) - 1,
                logprobs=logprobs,
                pages=-(-max_tokens // quote.page_size),
            )
            meter = Meter(quote, shape)
            least = quote.amount(quote.min_allocation_ns)
            wanted = Wanted(Address(quote.payee), _expected(meter, prompt_tokens, new_tokens), least)
            paid[place] = _PaidHop(hop, quote, meter, wanted)
        if not paid:
            return None
        channels: dict[int, SpendingChannel] = {}
        for domain in dict.fromkeys(each.quote.domain for each in paid.values()):
            places = [place for place, each in paid.items() if each.quote.domain == domain]
            account = await self._on(paid[places[0]].quote)
            found = await account.reserve([paid[place].wanted for place in places])
            channels.update(zip(places, found, strict=True))
        hops = [
            self._hop(paid[place], channels[place], session, budget) if place in paid else None
            for place in range(len(route.hops))
        ]
        return self.session_payment(hops, self, self._clock.monotonic, is_replay=is_replay)

    def before_signing(self, hops: Sequence[HopPayment], cumulatives: Sequence[int]) -> None:
        """Write down up to where channels will sign. Raises OverBudget, BrokenStore."""
        for currency in {hop.quote.currency for hop in hops}:
            raises = [
                Raise(hop.purse.channel, cumulative)
                for hop, cumulative in zip(hops, cumulatives, strict=True)
                if hop.quote.currency == currency
            ]
            quote = next(hop.quote for hop in hops if hop.quote.currency == currency)
            limit = None if self._daily_limit is None else int(self._daily_limit.scaleb(quote.decimals))
            self._store.raise_ceilings(raises, day=self._today, currency=currency, limit=limit)

    def closed(self, hop: HopPayment) -> None:
        """A session has ended at a hop: its channel has room for others."""
        self._accounts[hop.quote.domain].release(hop.purse.channel, hop.expected)

    def _hop(self, paid: _PaidHop, channel: SpendingChannel, session: bytes, budget: RequestBudget) -> HopPayment:
        quote = paid.quote
        ephemeral, seal = begin_seal(quote.seal_key, session + self._client.encode(), self._entropy)
        return HopPayment(
            peer=paid.hop.peer,
            start=paid.hop.start,
            end=paid.hop.end,
            quote=quote,
            digest=quote_digest(paid.hop.record.extensions[QUOTE_EXTENSION]),
            purse=Purse(channel, paid.meter, (budget.of(quote), self._day(quote)), window=0),
            seal=seal,
            ephemeral=ephemeral,
            expected=paid.wanted.expected,
            claimed=self._accounts[quote.domain].claimed(channel),
        )

    async def _on(self, quote: Quote) -> LedgerAccount:
        async with self._connecting, asyncio.timeout(LEDGER_TIMEOUT_S):
            if quote.domain not in self._accounts:
                ledger = await self._connect(self._account, quote)
                self._accounts[quote.domain] = LedgerAccount(ledger, self._store, self._entropy)
        return self._accounts[quote.domain]

    @cached_property
    def _opened(self) -> tuple[Account, ClientStore]:
        """The account and the store; their files are made when the first node asks for money."""
        return self._files()

    @property
    def _account(self) -> Account:
        return self._opened[0]

    @property
    def _store(self) -> ClientStore:
        return self._opened[1]

    @property
    def _today(self) -> int:
        return self._clock.wall_ns() // (86_400 * 10**9)

    def _day(self, quote: Quote) -> Budget:
        known = self._daily.get((self._today, quote.currency))
        if known is None:
            limit = None if self._daily_limit is None else int(self._daily_limit.scaleb(quote.decimals))
            spent = self._store.spent(self._today, quote.currency)
            known = Budget("of the day", limit, spent, quote.currency, quote.decimals)
            self._daily[self._today, quote.currency] = known
        return known


def _expected(meter: Meter, prompt_tokens: int, new_tokens: int) -> int:
    """Return about the most that a session costs at a hop."""
    trial = meter.copy()
    trial.step("prefill", 0, prompt_tokens, 1)
    trial.step("decode", prompt_tokens, new_tokens, new_tokens)
    trial.lease(LEASES * 60)
    return trial.amount + trial.amount // SLACK
