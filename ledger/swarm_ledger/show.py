"""How money looks: as JSON for programs, as text for people. Called by `commands.py`.

In JSON amounts are text, whole numbers of the smallest unit: wei do not fit into other languages' numbers.
"""

import re
from datetime import UTC, datetime
from typing import Any

from swarm_ledger.accounts import Address, address_text
from swarm_ledger.currencies import Currency
from swarm_ledger.errors import LedgerError
from swarm_ledger.ledger import ChannelEntry, Event, Ledger


def error_json(error: LedgerError) -> dict[str, str]:
    """Return an error as JSON values."""
    return {"error": code(error), "message": str(error), "remedy": error.remedy()}


def code(error: LedgerError) -> str:
    """Return the name of an error for programs: `insufficient_funds`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(error).__name__).lower()


def ledger_json(ledger: Ledger) -> dict[str, Any]:
    """Return which ledger and whose account it is."""
    return {
        "account": address_text(ledger.address),
        "chain_id": ledger.domain.chain_id,
        "contract": address_text(ledger.domain.contract),
        "currency": ledger.currency.symbol,
        "decimals": ledger.currency.decimals,
    }


def channel_json(entry: ChannelEntry, own: Address) -> dict[str, Any]:
    """Return a channel as JSON values."""
    key, state = entry.key, entry.state
    return {
        "channel": "0x" + key.id.hex(),
        "role": _role(entry, own),
        "payer": address_text(key.payer),
        "payee": address_text(key.payee),
        "signer": address_text(key.signer),
        "salt": str(key.salt),
        "allocated": str(state.allocated),
        "claimed": str(state.claimed),
        "closes_at_s": state.closes_at_s or None,
    }


def channel_row(entry: ChannelEntry, own: Address, currency: Currency) -> tuple[str, ...]:
    """Return a channel as a row of the table that `CHANNEL_COLUMNS` begins."""
    key, state = entry.key, entry.state
    other = key.payee if key.payer == own else key.payer
    return (
        "0x" + key.id.hex(),
        "to" if key.payer == own else "from",
        address_text(other),
        currency.format(state.allocated),
        currency.format(state.claimed),
        moment(state.closes_at_s) if state.closes_at_s else "-",
    )


CHANNEL_COLUMNS = ("channel", "", "other party", "allocated", "claimed", "closes")


def event_json(event: Event) -> dict[str, Any]:
    """Return one line of history as JSON values."""
    return {
        "kind": event.kind,
        "at_s": event.at_s,
        "amount": str(event.amount),
        "channel": None if event.channel is None else "0x" + event.channel.hex(),
        "other": None if event.other is None else address_text(event.other),
        "transaction": event.transaction or None,
    }


def event_row(event: Event, currency: Currency) -> tuple[str, ...]:
    """Return one line of history as a row of the table that `EVENT_COLUMNS` begins."""
    return (
        moment(event.at_s),
        event.kind,
        currency.format(event.amount) if event.amount else "-",
        "-" if event.channel is None else "0x" + event.channel.hex()[:12],
        "-" if event.other is None else address_text(event.other),
        event.transaction or "-",
    )


EVENT_COLUMNS = ("when (UTC)", "what", "amount", "channel", "other party", "transaction")


def moment(at_s: int) -> str:
    """Return a time as people read it, in UTC."""
    try:
        return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return str(at_s)


def for_terminal(text: str) -> str:
    """Return text without control characters: an endpoint could move a person's cursor or rename their window."""
    return "".join(character for character in text if character in "\n\t" or character.isprintable())


def _role(entry: ChannelEntry, own: Address) -> str:
    return "payer" if entry.key.payer == own else "payee"
