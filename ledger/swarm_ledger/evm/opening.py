"""From options to a ledger on a chain. Called by the commands of `swarm-ledger`."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from swarm_ledger import keystore
from swarm_ledger.access import Access
from swarm_ledger.accounts import Account, Address, parse_address
from swarm_ledger.errors import BadOption
from swarm_ledger.evm.endpoints import Endpoints
from swarm_ledger.evm.evm_ledger import EvmLedger
from swarm_ledger.evm.fees import GWEI
from swarm_ledger.evm.sending import Sending


@asynccontextmanager
async def open_evm(access: Access) -> AsyncIterator[EvmLedger]:
    """Open the ledger that options name. Raises BadOption, BadKeyFile and what `EvmLedger.connect` raises."""
    if access.contract is None:
        raise BadOption("--contract", "the ledger's address is missing")
    address = address_option("--contract", access.contract)
    sending = sending_of(access)
    async with endpoints_of(access) as endpoints:
        yield await EvmLedger.connect(endpoints, address, load_account(access), sending)


@asynccontextmanager
async def endpoints_of(access: Access) -> AsyncIterator[Endpoints]:
    """Give the endpoints that options name, and close them. Raises BadOption."""
    if not access.rpc:
        raise BadOption("--rpc", "the URL of at least one endpoint of the chain is missing")
    endpoints = Endpoints.of_urls(access.rpc, chain_id=access.chain_id)
    try:
        yield endpoints
    finally:
        await endpoints.close()


def sending_of(access: Access) -> Sending:
    """Return how to send transactions. Raises BadOption."""
    if access.confirmations < 1:
        raise BadOption("--confirmations", "at least 1")
    most_fee = int(access.max_gas_price_gwei * GWEI)
    if most_fee < 1:
        raise BadOption("--max-gas-price", "above 0")
    return Sending(confirmations=access.confirmations, most_fee=most_fee)


def load_account(access: Access) -> Account:
    """Return the account that signs. Raises BadOption, BadKeyFile."""
    file = keystore_of(access)
    password = keystore.read_password(access.password_file, os.environ, prompt=f"Password of {file.name}")
    return keystore.load(file, password)


def keystore_of(access: Access) -> Path:
    """Return the file of the account's key. Raises BadOption."""
    if access.keystore is None:
        raise BadOption("--keystore", "the file of the account's key is missing; swarm-ledger account --new makes one")
    return access.keystore


def address_option(option: str, text: str) -> Address:
    """Return the address that an option says. Raises BadOption."""
    try:
        return parse_address(text)
    except ValueError as error:
        raise BadOption(option, str(error)) from error
