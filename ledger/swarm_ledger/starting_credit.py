"""What a bank gives to newcomers, and the caps that keep one of them from being many.

Owns the sums that the caps need, in the bank's own tables; minting is `bank.py`'s, asking `bank_service.py`'s business.
Which account asked from which network is not kept.
"""

import ipaddress
from dataclasses import dataclass
from typing import Final

from swarm_ledger.accounts import Address
from swarm_ledger.errors import NoStartingCredit
from swarm_ledger.store_file import StoreFile, blob, number

MAX_ORIGIN_CHARS: Final = 64
_IPV6_PREFIX: Final = 64  # what one customer has at least
_EVERYWHERE: Final = ""
_DAY_S: Final = 24 * 3600

TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS credited (account BLOB PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS credit_sums (network TEXT, day INTEGER, amount BLOB NOT NULL,"
    " PRIMARY KEY (network, day)) WITHOUT ROWID",
)


@dataclass(frozen=True, slots=True)
class StartingCredit:
    """An operator's offer; amounts in the smallest unit."""

    amount: int
    most_per_network_and_day: int
    most_in_total: int


def count_starting_credit(store: StoreFile, offer: StartingCredit, account: Address, origin: str, now_s: float) -> None:
    """Count what is about to be minted for an account. Raises NoStartingCredit, which says what cap is reached."""
    network, day = network_of(origin), int(now_s // _DAY_S)
    with store.transaction():
        if store.row("SELECT 1 FROM credited WHERE account = ?", account):
            raise NoStartingCredit("this account had it before")
        _raise_sum(store, _EVERYWHERE, 0, offer.amount, offer.most_in_total, "the bank has none left")
        store.execute("DELETE FROM credit_sums WHERE network != ? AND day < ?", _EVERYWHERE, day)
        reason = f"the network {network} had its share of today"
        _raise_sum(store, network, day, offer.amount, offer.most_per_network_and_day, reason)
        store.execute("INSERT INTO credited VALUES (?)", account)


def network_of(origin: str) -> str:
    """Return what counts as one network address: an IPv4 address, a /64 of IPv6, any other name as it is."""
    try:
        address = ipaddress.ip_address(origin.partition("%")[0])
    except ValueError:
        return origin[:MAX_ORIGIN_CHARS] or "?"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))
    return str(address)


def _raise_sum(store: StoreFile, network: str, day: int, amount: int, most: int, reason: str) -> None:
    row = store.row("SELECT amount FROM credit_sums WHERE network = ? AND day = ?", network, day)
    total = amount + (number(row[0]) if row else 0)
    if total > most:
        raise NoStartingCredit(reason)
    store.execute(
        "INSERT INTO credit_sums VALUES (?, ?, ?) ON CONFLICT (network, day) DO UPDATE SET amount = excluded.amount",
        *(network, day, blob(total)),
    )
