"""Has a node paid for what it computes: quotes it, checks the channel behind each session, counts, stores, redeems.

Owns the shell around `swarm_ledger.earning`: the node's quotes, the seals of its sessions, its voucher store and its
account at the ledger. `node.py` calls it for each opening, step and voucher; `program.py` makes it, or none where work
is free.

    admit     which channel pays for a session, as the ledger knows it; raises PaymentRefused
    collect   a voucher that came with a step or alone
    check     before a step is accepted; raises PaymentDue
    charge    after it was
    run       redeem in time, and look whether channels are being closed
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from swarm_ledger.accounts import Account
from swarm_ledger.channels import ChannelId, ChannelState, Claim
from swarm_ledger.collector import Collector
from swarm_ledger.earning import Earnings, Tab
from swarm_ledger.errors import LedgerError, NoChannel, PaymentMissing
from swarm_ledger.ledger import Ledger
from swarm_ledger.metering import Meter, Place
from swarm_ledger.node_store import NodeStore, Redemption
from swarm_ledger.quotes import Quote, encode_quote, quote_digest, sign_binding
from swarm_ledger.redeeming import Cost
from swarm_ledger.sealing import KEY_BYTES, Seal, SealKey
from swarm_ledger.sections import OpenSection, grant_section, read_open, read_pay
from swarm_net.links import Clock
from swarm_net.messages import HopSpec, Open, Step
from swarm_net.session_errors import PaymentDue, PaymentRefused

log = logging.getLogger(__name__)

SAVE_AFTER_S = 0.05  # the vouchers of so long are stored in one transaction
STATE_LASTS_S = 60.0  # a channel that a session is opened on was looked at so lately, or is looked at again
LEDGER_TIMEOUT_S = 10.0
MAX_LEASE_S = 3600


async def free_of_charge() -> Cost:
    """What a redemption costs at a bank."""
    return Cost()


@dataclass(slots=True)
class Paid:
    """How one session is paid for."""

    tab: Tab
    seal: Seal
    lease_s: int  # asked for at the opening
    leased_until_s: float
    leased_on_s: int = 0  # since then
    has_begun: bool = False


class Cashier:
    """One node's income."""

    def __init__(
        self,
        *,
        quote: Callable[[float], Quote],  # as of a time
        account: Account,
        node_key: bytes,  # Ed25519
        seal_key: SealKey,
        ledger: Ledger,
        earnings: Earnings,
        store: NodeStore,
        clock: Clock,
        cost: Callable[[], Awaitable[Cost]] = free_of_charge,  # of a redemption
        interval_s: float = 5.0,
    ) -> None:
        self._make_quote = quote
        self._account = account
        self._node_key = node_key
        self._seal_key = seal_key
        self._ledger = ledger
        self._earnings = earnings
        self._store = store
        self._clock = clock
        self._collector = Collector(
            ledger,
            self._claims,
            cost,
            observe=self._observe,
            collected=self._collected,
            interval_s=interval_s,
        )
        self._quotes: dict[bytes, Quote] = {}  # by digest, until they expire
        self._present = b""
        self._binding = b""
        self._looked_at: dict[bytes, float] = {}
        self._saving: asyncio.TimerHandle | None = None

    # -- the quote

    def quote(self) -> tuple[bytes, bytes]:
        """Return the present quote's bytes and binding, for the node's record; a new one when it is half expired."""
        now_s = self._clock.wall_ns() / 1e9
        present = self._quotes.get(quote_digest(self._present))
        if present is None or present.expires_s - now_s < (present.expires_s - present.seq / 1000) / 2:
            present = self._make_quote(now_s)
            self._present = encode_quote(present)
            self._binding = sign_binding(present, self._node_key, self._account)
            self._quotes = {digest: old for digest, old in self._quotes.items() if old.expires_s > now_s}
            self._quotes[quote_digest(self._present)] = present
        return self._present, self._binding

    @property
    def present(self) -> Quote:
        """The present quote."""
        return self._quotes[quote_digest(self._present)]

    # -- a session

    async def admit(self, message: Open) -> Paid:
        """Return how a session is paid for, as its client says and the ledger confirms. Raises PaymentRefused."""
        spec = message.hops[message.hop]
        try:
            seal, section = self._unseal(message, spec)
            quote = self._quotes.get(section.quote)
            if quote is None or quote.expires_s <= self._clock.wall_ns() / 1e9:
                raise PaymentRefused("the price list is not the present one", "QuoteExpired", "read the record again")
            key = section.key(self._account.address)
            channel = self._earnings.channels.get(key.id)
            now_s = self._clock.monotonic()
            place = Place(
                blocks=spec.end - spec.start,
                is_first=message.hop == 0,
                is_last=message.hop == len(message.hops) - 1,
                logprobs=message.sampling.logprobs,
                pages=-(-message.max_tokens // quote.page_size),
            )
            least = quote.amount(quote.min_allocation_ns)
            if (
                channel is None
                or now_s - self._looked_at.get(key.id, -STATE_LASTS_S) >= STATE_LASTS_S
                or channel.state.allocated - channel.earned < least
            ):
                async with asyncio.timeout(LEDGER_TIMEOUT_S):
                    state = await self._ledger.channel(key.id)
                if state is None:
                    raise NoChannel
                channel = self._earnings.learn(key, state)
                self._looked_at[key.id] = now_s
            tab = self._earnings.open(channel, section.voucher(key.id), Meter(quote, place))
        except TimeoutError as error:
            raise PaymentRefused("the ledger does not answer", "LedgerUnreachable", "try another node") from error
        except LedgerError as error:
            raise PaymentRefused(str(error), type(error).__name__, error.remedy()) from error
        self._save_soon()
        lease_s = min(message.lease_s, MAX_LEASE_S)
        return Paid(tab, seal, lease_s, self._clock.monotonic() + lease_s)

    def _unseal(self, message: Open, spec: HopSpec) -> tuple[Seal, OpenSection]:
        if len(spec.sealed) <= KEY_BYTES:
            raise PaymentRefused("this node is paid for its work", "Unpaid", "offer a channel to it in the opening")
        context = session_context(message)
        seal = self._seal_key.accept(spec.sealed[:KEY_BYTES], context)
        return seal, read_open(seal.open(spec.sealed[KEY_BYTES:]))

    def grant(self, paid: Paid) -> bytes:
        """Return what the client is answered, sealed for it."""
        channel = paid.tab.channel
        plain = grant_section(window=paid.tab.window, earned=channel.earned, best=channel.best, lease_s=paid.lease_s)
        return paid.seal.seal(plain)

    def begin(self, paid: Paid, cached_tokens: int) -> None:
        """Count what the opening gave, when the first step shows where the session begins."""
        paid.has_begun = True
        paid.tab.begin(cached_tokens, paid.lease_s)

    def collect(self, paid: Paid, sealed: bytes) -> None:
        """Take a voucher, and a lease that goes on if it is paid for. Raises PaymentRefused for what is neither."""
        try:
            voucher, leased_on_s = read_pay(paid.seal.open(sealed), paid.tab.channel.id)
            self._earnings.pay(paid.tab, voucher)
        except LedgerError as error:
            raise PaymentRefused(str(error), type(error).__name__, error.remedy()) from error
        if leased_on_s > paid.leased_on_s:
            self._lease_on(paid, leased_on_s - paid.leased_on_s)
        if self._earnings.unsaved:
            self._save_soon()

    def _lease_on(self, paid: Paid, seconds: int) -> None:
        try:
            paid.tab.lease(seconds)
        except PaymentMissing:
            return  # the next voucher asks again
        paid.leased_on_s += seconds
        paid.leased_until_s += seconds

    def check(self, paid: Paid, step: Step) -> None:
        """Raise PaymentDue if a step is not paid for, PaymentRefused if nothing is served on its channel any more."""
        try:
            paid.tab.check(step.kind, step.position, step.count, draws(step))
        except PaymentMissing as error:
            raise PaymentDue(str(error.earned), str(error.cost), str(error.paid), str(error.window)) from error
        except LedgerError as error:  # its channel is being closed
            raise PaymentRefused(str(error), type(error).__name__, error.remedy()) from error

    def charge(self, paid: Paid, step: Step) -> None:
        """Count a step that was accepted."""
        paid.tab.charge(step.kind, step.position, step.count, draws(step))

    async def look_again(self, paid: Paid) -> None:
        """Ask the ledger whether a channel was topped up."""
        channel = paid.tab.channel
        try:
            async with asyncio.timeout(LEDGER_TIMEOUT_S):
                state = await self._ledger.channel(channel.id)
        except (LedgerError, TimeoutError) as error:
            log.warning("channel not looked at: %s", error or "no answer in time")
            return
        if state is not None:
            self._earnings.learn(channel.key, state)

    # -- between sessions

    async def run(self) -> None:
        """Redeem in time, until cancelled."""
        await self._collector.run()

    async def redeem(self) -> None:
        """Collect what is owed, as far as it is worth its cost. Raises LedgerError."""
        await self._collector.look()

    def _claims(self) -> Sequence[Claim]:
        self._save()
        channels = self._earnings.channels.values()
        return [
            Claim(channel.key, channel.best.cumulative, channel.best.signature)
            for channel in channels
            if channel.best.signature and not channel.state.is_closed
        ]

    def _observe(self, channel: ChannelId, state: ChannelState | None) -> None:
        """Note what the ledger says of a channel; one that it does not know any more pays nothing."""
        known = self._earnings.channels[channel]
        self._earnings.learn(known.key, state or replace(known.state, is_closed=True))

    def _collected(self, claims: Sequence[Claim], amount: int) -> None:
        channels = [self._earnings.channels[claim.key.id] for claim in claims]
        for channel in channels:
            state = channel.state
            claimed = max(state.claimed, min(channel.best.cumulative, state.allocated))
            channel.state = replace(state, claimed=claimed)
        self._store.record(Redemption(int(self._clock.wall_ns() / 1e9), amount, len(claims)), channels)

    def summary(self) -> dict[str, int]:
        """Return what this node was paid in vouchers and is owed besides, what it has redeemed, and still could."""
        self._save()
        totals = self._store.totals()
        owed = sum(channel.unpaid for channel in self._earnings.channels.values())
        return {
            "earned": totals.paid + owed,
            "paid": totals.paid,
            "redeemed": totals.redeemed,
            "unclaimed": totals.unclaimed,
        }

    # -- the store

    def _save_soon(self) -> None:
        if self._saving is None:
            self._saving = asyncio.get_running_loop().call_later(SAVE_AFTER_S, self._save)

    def _save(self) -> None:
        if self._saving is not None:
            self._saving.cancel()
            self._saving = None
        window = self.present.amount(self.present.window_ns)
        try:
            self._store.save(self._earnings, most_at_risk=max(1, window))
        except LedgerError as error:  # vouchers stay in memory, and are tried again with the next ones
            log.error("vouchers not stored: %s; %s", error, error.remedy())


def session_context(message: Open) -> bytes:
    """Return what a seal is bound to: nobody else can use it for another session."""
    return message.session + message.client.encode()


def draws(step: Step) -> int:
    """Return behind how many tokens of a step one may be drawn."""
    return 1 + len(step.candidates) if step.sample else 0
