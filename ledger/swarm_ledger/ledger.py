"""What every ledger can do, whoever keeps it: the one interface of the bank (`embedded.py`) and the chain (`evm/`).

A Ledger acts for one account. Verdicts are the same everywhere (`errors.Refused`); only time differs: a bank answers at
once, a chain after its confirmations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from swarm_ledger.accounts import Address
from swarm_ledger.channels import ChannelId, ChannelKey, ChannelState, Claim, Domain
from swarm_ledger.currencies import Currency

EventKind = Literal["deposited", "opened", "topped up", "claimed", "closing", "closed", "withdrawn"]


@dataclass(frozen=True, slots=True)
class Opening:
    """A channel to open; its payer is the account."""

    payee: Address
    signer: Address
    salt: int
    amount: int


@dataclass(frozen=True, slots=True)
class Event:
    """One line of an account's history."""

    kind: EventKind
    at_s: int
    amount: int
    channel: ChannelId | None = None
    other: Address | None = None  # the other party of the channel, or the receiver of a withdrawal
    transaction: str = ""


@dataclass(frozen=True, slots=True)
class ChannelEntry:
    """A channel with its parties."""

    key: ChannelKey
    state: ChannelState


class Ledger(Protocol):
    """Money of one account. Every method may raise LedgerUnreachable, and those that change something Refused."""

    @property
    def address(self) -> Address: ...

    @property
    def domain(self) -> Domain: ...

    @property
    def currency(self) -> Currency: ...

    @property
    def close_delay_s(self) -> int: ...

    async def balance(self) -> int:
        """Return what is neither in channels nor withdrawn."""
        ...

    async def channel(self, channel: ChannelId) -> ChannelState | None:
        """Return a channel as it counts: on a chain, as of enough confirmations."""
        ...

    async def channels(self) -> Sequence[ChannelEntry]:
        """Return the open channels that the account pays from or is paid by."""
        ...

    async def history(self, limit: int = 100) -> Sequence[Event]:
        """Return the latest events of the account, newest first."""
        ...

    async def deposit(self, amount: int) -> None:
        """Put money of the account into the ledger; what a bank's operator mints is not a deposit."""
        ...

    async def open(self, openings: Sequence[Opening]) -> None:
        """Open channels from the free balance: all, or none."""
        ...

    async def top_up(self, key: ChannelKey, amount: int) -> None:
        """Add to a channel from the free balance; cancels a close that was asked for."""
        ...

    async def redeem(self, claims: Sequence[Claim]) -> int:
        """Collect vouchers, of any payee; returns how much was paid. Raises NothingToClaim if that is nothing."""
        ...

    async def request_close(self, key: ChannelKey) -> None:
        """As the payer, ask to close a channel; it can be finished after `close_delay_s`."""
        ...

    async def finish_close(self, key: ChannelKey) -> None:
        """Give a channel's rest back to its payer: at once by the payee, by others after the delay."""
        ...

    async def withdraw(self, amount: int, to: Address) -> None:
        """Take free balance out of the ledger."""
        ...
