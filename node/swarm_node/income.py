"""Where a node's money is: its account, its ledger, its voucher store, and the bank that it may host.

Owns the files of it in the data directory, and which bank the node uses: the one that it has used before, else the one
of the swarm that it joins, else, where a new swarm begins, its own. Called by `program.py` while a node starts; gives
it a `Cashier`, or none where work is free.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swarm_ledger import wallet_file
from swarm_ledger.access import Access
from swarm_ledger.accounts import Account, address_text
from swarm_ledger.bank_place import SERVICE, WHERE, BankPlace
from swarm_ledger.channels import Domain, VoucherDigests
from swarm_ledger.currencies import CREDITS, Currency
from swarm_ledger.earning import Earnings
from swarm_ledger.embedded import EmbeddedLedger
from swarm_ledger.errors import LedgerError, LedgerUnreachable, MissingPackage
from swarm_ledger.ledger import Ledger
from swarm_ledger.node_store import NodeStore
from swarm_ledger.quotes import NS_PER_HOUR, Rates
from swarm_ledger.redeeming import Cost
from swarm_ledger.sealing import SealKey
from swarm_ledger.starting_credit import StartingCredit
from swarm_net.endpoint import Endpoint
from swarm_net.identity import Identity
from swarm_net.links import Clock, Link, PeerId
from swarm_net.rpc import RemoteService, RpcServices
from swarm_node.bank_host import BankHost, pinned_place, serve_bank
from swarm_node.cashier import Cashier, free_of_charge
from swarm_node.errors import BadSetting
from swarm_node.pricing import MIN_ALLOCATION_NS, default_price, make_quote
from swarm_node.reporting import Reporter
from swarm_node.settings import Settings
from swarm_node.span_choice import in_thread

if TYPE_CHECKING:
    from swarm_ledger.evm.evm_ledger import EvmLedger

BANK_TIMEOUT_S: Final = 10.0
FAREWELL_TIMEOUT_S: Final = 5.0
BANK_INTERVAL_S: Final = 5.0  # between looks at the channels: a bank answers for nothing
CHAIN_INTERVAL_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Machine:
    """What the price list says of this node."""

    device: str
    rates: Rates
    page_size: int


@dataclass(slots=True)
class Income:
    """What a node earns with: all of it is made before the node announces itself."""

    settings: Settings
    folder: Path
    identity: Identity
    endpoint: Endpoint
    services: RpcServices
    addresses: tuple[str, ...]
    clock: Clock
    reporter: Reporter
    host: BankHost | None = None  # the swarm's bank, if it is here

    async def open(self, bootstrap: Sequence[Link], machine: Machine, stack: AsyncExitStack) -> Cashier | None:
        """Return who has the node paid, None where it works for nothing. Raises LedgerError."""
        settings = self.settings
        is_free = settings.price != "" and not float(settings.price)
        on_chain = settings.currency != "credits"
        wants_bank = settings.bank == "auto" and not bootstrap and not is_free and not on_chain
        place, host = await self._bank(bootstrap, hosts=settings.bank == "on" or wants_bank, stack=stack)
        if is_free:
            return None
        if on_chain:
            chain, account = await self._chain(stack)
            # A token's worth in gas is not known: it is redeemed when ten channels' least worth is there.
            least = self._price(machine, chain.currency) * MIN_ALLOCATION_NS // NS_PER_HOUR
            cost = chain.redeem_cost if chain.token is None else partial(_as_worth, least)
            return self._cashier(account, chain, None, machine, stack, cost, CHAIN_INTERVAL_S)
        if place is None:
            self.reporter.event("warning", message="this swarm has no bank: the node works for nothing")
            return None
        account = wallet_file.load_or_create(self.folder / "account.key")
        bank = await EmbeddedLedger.connect(
            account,
            place.bank,
            host.call if host is not None else self._remote(place).call,
            clock=lambda: self.clock.wall_ns() / 1e9,
        )
        return self._cashier(account, bank, place, machine, stack, free_of_charge, BANK_INTERVAL_S)

    async def _chain(self, stack: AsyncExitStack) -> tuple["EvmLedger", Account]:
        """Return the contract that the settings name, and the account that is paid."""
        if not self.settings.price:
            raise BadSetting("price", "", "--currency", f"say what an hour costs in {self.settings.currency}: --price")
        try:
            from swarm_ledger.evm import opening
            from swarm_ledger.evm.evm_ledger import EvmLedger
        except ImportError as error:
            raise MissingPackage(str(error.name), "evm") from error
        access = self._access()
        account = await in_thread(lambda: opening.load_account(access), "open keystore")
        endpoints = await stack.enter_async_context(opening.endpoints_of(access))
        contract = opening.address_option("--contract", self.settings.contract)
        return await EvmLedger.connect(endpoints, contract, account, opening.sending_of(access)), account

    def _access(self) -> Access:
        settings = self.settings
        return Access(
            ledger="evm",
            rpc=tuple(settings.rpc),
            contract=settings.contract or None,
            keystore=Path(settings.keystore).expanduser() if settings.keystore else None,
            password_file=Path(settings.password_file).expanduser() if settings.password_file else None,
            confirmations=settings.confirmations,
        )

    async def _bank(
        self, bootstrap: Sequence[Link], *, hosts: bool, stack: AsyncExitStack
    ) -> tuple[BankPlace | None, BankHost | None]:
        """Return where the swarm's bank is, and the bank if it is here; serves both to others."""
        pin = self.folder / "bank.json"
        host: BankHost | None = None
        place: BankPlace | None
        if hosts:
            host = self.host = BankHost(wallet_file.load_or_create(self.folder / "bank.key"), self.clock)
            await host.open(self.folder / "bank.sqlite", self._starting_credit())
            stack.push_async_callback(host.close)
            place = BankPlace(host.account.address, self.identity.peer_id, self.addresses)
        else:
            place, pinned = await self._ask(bootstrap), pinned_place(pin)
            if pinned is not None and (place is None or place.bank != pinned.bank):
                if place is not None:
                    said = f"this swarm names the bank {address_text(place.bank)}, this node keeps to its own"
                    self.reporter.event("warning", message=f"{said}: {address_text(pinned.bank)}; {pin} decides")
                place = pinned
        if place is None:
            return None, None
        pin.write_bytes(place.encode())
        known = place
        serve_bank(self.services, lambda: known, host)
        return place, host

    async def _ask(self, bootstrap: Sequence[Link]) -> BankPlace | None:
        """Ask the nodes that were dialed where their swarm's bank is."""
        for link in bootstrap:
            service = RemoteService(self.endpoint, SERVICE, link.peer, link.remote_addresses, timeout_s=BANK_TIMEOUT_S)
            try:
                return BankPlace.decode(await service.call(WHERE, b""))
            except (ConnectionError, LedgerUnreachable):
                continue
        return None

    def _remote(self, place: BankPlace) -> RemoteService:
        return RemoteService(self.endpoint, SERVICE, PeerId(place.peer), place.addresses, timeout_s=BANK_TIMEOUT_S)

    def _starting_credit(self) -> StartingCredit:
        settings = self.settings
        return StartingCredit(
            CREDITS.parse(settings.starting_credit),
            CREDITS.parse(settings.starting_credit_per_day),
            CREDITS.parse(settings.starting_credit_in_total),
        )

    def _cashier(
        self,
        account: Account,
        ledger: Ledger,
        place: BankPlace | None,
        machine: Machine,
        stack: AsyncExitStack,
        cost: Callable[[], Awaitable[Cost]],
        interval_s: float,
    ) -> Cashier:
        currency = ledger.currency
        price = self._price(machine, currency)
        seal_key = SealKey(wallet_file.load_or_create(self.folder / "seal.key").secret)
        store = NodeStore(self.folder / f"vouchers-{_name_of(ledger.domain)}.sqlite", ledger.domain, account.address)
        stack.callback(store.close)
        earnings = Earnings(VoucherDigests(ledger.domain), account.address)
        store.restore(earnings)
        quote = partial(
            make_quote,
            rates=machine.rates,
            price_per_hour=price,
            page_size=machine.page_size,
            domain=ledger.domain,
            payee=account.address,
            currency=currency,
            seal_key=seal_key.public,
            bank_peer=place.peer if place is not None else "",
            bank_addresses=place.addresses if place is not None else (),
        )
        cashier = Cashier(
            quote=quote,
            account=account,
            node_key=self.identity.public_key,
            seal_key=seal_key,
            ledger=ledger,
            earnings=earnings,
            store=store,
            clock=self.clock,
            cost=cost,
            interval_s=interval_s,
        )
        cashier.quote()
        stack.push_async_callback(_collect, cashier)
        return cashier

    def _price(self, machine: Machine, currency: Currency) -> int:
        if self.settings.price:
            return currency.parse(self.settings.price)
        return default_price(machine.device, currency)


async def _as_worth(amount: int) -> Cost:
    return Cost(batch=amount)


def _name_of(domain: Domain) -> str:
    """Return what tells the vouchers of one ledger from those of another."""
    return f"{domain.chain_id}-{domain.contract.hex()[:8]}"


def describe(cashier: Cashier, span: tuple[int, int], num_blocks: int) -> dict[str, Any]:
    """Return what a node asks and has earned, for its operator; amounts in the smallest unit."""
    quote = cashier.present
    blocks = span[1] - span[0]
    return {
        "currency": quote.currency,
        "decimals": quote.decimals,
        "price_per_hour": quote.price,
        "per_million_tokens": quote.per_million_tokens(blocks) * num_blocks // blocks,
        "payee": address_text(quote.payee),
        "ledger": str(quote.domain),
        **cashier.summary(),
    }


async def _collect(cashier: Cashier) -> None:
    """Redeem what is left before the node ends; what cannot be is kept."""
    try:
        async with asyncio.timeout(FAREWELL_TIMEOUT_S):
            await cashier.redeem()
    except (LedgerError, TimeoutError):
        return
