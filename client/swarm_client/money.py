"""Where a client's money is on this machine, and how it reaches the ledgers that nodes name.

Owns the files of a wallet: an account for credits, and for each program that runs at a time a store of channels (a
channel has one writer). What is paid on a chain is paid from an encrypted key, over endpoints that the person names.
Used by `model.py`; the simulator brings its own wallet or none.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

import platformdirs

from swarm_client.wallet import Wallet
from swarm_client.world import World
from swarm_ledger import wallet_file
from swarm_ledger.access import Access
from swarm_ledger.accounts import Account, Address
from swarm_ledger.client_store import ClientStore
from swarm_ledger.embedded import EmbeddedLedger
from swarm_ledger.errors import LedgerUnreachable, MissingPackage, StoreInUse
from swarm_ledger.ledger import Ledger
from swarm_ledger.quotes import Quote
from swarm_net.endpoint import Endpoint
from swarm_net.links import PeerId
from swarm_net.rpc import RemoteService

APP: Final = "swarm-inference"
BANK_TIMEOUT_S: Final = 10.0
MAX_PROGRAMS: Final = 256  # that use one wallet at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class WalletOptions:
    """What a client pays from.

    `folder` None is this user's own, made when the first node asks for money. `daily_budget` is in whole units of the
    nodes' currency, for all programs with this wallet. Nodes that are paid on a chain need its endpoints (`rpc`), a
    `keystore` and its password: in `password_file`, SWARM_LEDGER_PASSWORD, or asked for.
    """

    folder: Path | None = None
    daily_budget: Decimal | None = None
    rpc: tuple[str, ...] = ()
    keystore: Path | None = None
    password_file: Path | None = None
    confirmations: int = 1
    max_gas_price_gwei: float = 200.0


def default_wallet() -> Path:
    """Return the folder of this user's wallet."""
    return Path(platformdirs.user_data_dir(APP)) / "wallet"


def wallet_of(options: WalletOptions, endpoint: Endpoint, world: World, stack: AsyncExitStack) -> Wallet:
    """Return the wallet that options describe; what it opens is closed with the stack."""

    async def ledger(account: Account, quote: Quote) -> Ledger:
        if quote.chain_id:
            return await _contract(options, quote, stack)
        return await _bank(account, quote, endpoint, world)

    wallet = Wallet(
        files=_files(options.folder or default_wallet()),
        ledger=ledger,
        clock=world.clock,
        entropy=world.entropy,
        client=endpoint.peer,
        daily=options.daily_budget,
    )
    stack.callback(wallet.close)
    return wallet


async def _bank(account: Account, quote: Quote, endpoint: Endpoint, world: World) -> Ledger:
    """Return the bank that a node wants to be paid at. Raises LedgerUnreachable."""
    bank = RemoteService(endpoint, "bank", PeerId(quote.bank_peer), quote.bank_addresses, timeout_s=BANK_TIMEOUT_S)
    return await EmbeddedLedger.connect(
        account,
        Address(quote.contract),
        bank.call,
        clock=lambda: world.clock.wall_ns() / 1e9,
        entropy=world.entropy,
    )


async def _contract(options: WalletOptions, quote: Quote, stack: AsyncExitStack) -> Ledger:
    """Return the contract that a node wants to be paid at; its code is compared with the one that we ship.

    Raises LedgerUnreachable where the person has named no endpoint of the chain, BadOption, BadKeyFile, MissingPackage.
    """
    if not options.rpc:
        raise LedgerUnreachable(where=f"chain {quote.chain_id}", reason="no endpoint of it was named: --rpc")
    try:
        from swarm_ledger.evm import opening
        from swarm_ledger.evm.evm_ledger import EvmLedger
    except ImportError as error:
        raise MissingPackage(str(error.name), "evm") from error
    access = Access(
        ledger="evm",
        rpc=options.rpc,
        chain_id=quote.chain_id,
        keystore=options.keystore,
        password_file=options.password_file,
        confirmations=options.confirmations,
        max_gas_price_gwei=options.max_gas_price_gwei,
    )
    account = await asyncio.to_thread(opening.load_account, access)
    endpoints = await stack.enter_async_context(opening.endpoints_of(access))
    return await EvmLedger.connect(endpoints, Address(quote.contract), account, opening.sending_of(access))


def _files(folder: Path) -> Callable[[], tuple[Account, ClientStore]]:
    def open_files() -> tuple[Account, ClientStore]:
        account = wallet_file.load_or_create(folder / "account.key")
        for number in range(1, MAX_PROGRAMS):
            try:
                return account, ClientStore(folder / f"channels-{number}.sqlite")
            except StoreInUse:
                continue
        return account, ClientStore(folder / f"channels-{MAX_PROGRAMS}.sqlite")

    return open_files
