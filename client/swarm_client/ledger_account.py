"""A client's account at one ledger: which channels it has, and that they hold enough before a session begins.

Owns how much is put aside for whom, and opening and topping up, for all hops of a route at a time: on a chain each
transaction takes seconds. What is signed from a channel is `swarm_ledger.spending`'s business. Used by `wallet.py`.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from swarm_ledger.accounts import Account, Address
from swarm_ledger.channels import ChannelId, ChannelKey
from swarm_ledger.client_store import ClientStore
from swarm_ledger.embedded import EmbeddedLedger
from swarm_ledger.errors import InsufficientFunds, NoStartingCredit
from swarm_ledger.ledger import Ledger, Opening
from swarm_ledger.spending import SpendingChannel

log = logging.getLogger(__name__)

GENEROSITY: Final = 2  # times what is needed now is put aside, where there is so much: the next session needs it, too
TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a session needs of a channel: what it probably costs, and the least that its payee begins for."""

    payee: Address
    expected: int
    least: int


class LedgerAccount:
    """One account at one ledger; sessions that begin at the same time wait for each other."""

    def __init__(self, ledger: Ledger, store: ClientStore, entropy: Callable[[int], bytes]) -> None:
        self.ledger = ledger
        self._store = store
        self._entropy = entropy
        self._channels = {channel.key.payee: channel for channel in store.channels(ledger.domain)}
        self._committed: dict[ChannelId, int] = {}  # what the sessions that go on may still cost
        self._claimed: dict[ChannelId, int] = {}  # of those that the ledger was asked about
        self._turn = asyncio.Lock()

    @property
    def channels(self) -> list[SpendingChannel]:
        """The channels in use."""
        return list(self._channels.values())

    async def reserve(self, several: Sequence[Wanted]) -> list[SpendingChannel]:
        """Return a channel for each, with room for its session besides those that go on; `release` gives it back.

        Raises InsufficientFunds, LedgerUnreachable, and what else the ledger refuses.
        """
        async with self._turn, asyncio.timeout(TIMEOUT_S):
            for wanted in several:
                await self._check(wanted.payee)
            left = [self._left(wanted.payee) for wanted in several]
            missing = [
                max(0, max(wanted.expected, wanted.least) - rest) for wanted, rest in zip(several, left, strict=True)
            ]
            if any(missing):
                await self._fill(several, await self._share(several, left, missing))
            channels = [self._channels[wanted.payee] for wanted in several]
        for channel, wanted in zip(channels, several, strict=True):
            self._committed[channel.id] = self._committed.get(channel.id, 0) + wanted.expected
        return channels

    def release(self, channel: SpendingChannel, expected: int) -> None:
        """A session has ended."""
        self._committed[channel.id] -= expected

    def claimed(self, channel: SpendingChannel) -> int:
        """Return what the ledger said was redeemed of a channel: so much was signed, whoever has forgotten it."""
        return self._claimed.get(channel.id, 0)

    def _left(self, payee: Address) -> int:
        channel = self._channels.get(payee)
        if channel is None:
            return 0
        return channel.allocated - channel.sent - channel.lost - self._committed.get(channel.id, 0)

    async def _share(self, several: Sequence[Wanted], left: Sequence[int], missing: Sequence[int]) -> list[int]:
        """Return how much to add for each: plenty, what is needed, or the least, as far as the free balance goes."""
        plenty = [amount * GENEROSITY for amount in missing]
        least = [
            max(0, wanted.least - rest) if amount else 0
            for wanted, rest, amount in zip(several, left, missing, strict=True)
        ]
        free = await self._free(sum(missing))
        for amounts in (plenty, list(missing), least):
            if 0 < sum(amounts) <= free:
                return amounts
        raise InsufficientFunds

    async def _free(self, needed: int) -> int:
        """Return the free balance; a new account asks its bank for something to begin with."""
        free = await self.ledger.balance()
        if free < needed and isinstance(self.ledger, EmbeddedLedger):
            try:
                await self.ledger.claim_starting_credit()
            except NoStartingCredit as error:
                log.info("%s", error)
            else:
                free = await self.ledger.balance()
        return free

    async def _fill(self, several: Sequence[Wanted], amounts: Sequence[int]) -> None:
        """Open the channels that are missing, all at once, and top the others up."""
        new: list[tuple[SpendingChannel, int]] = []
        for wanted, amount in zip(several, amounts, strict=True):
            if not amount:
                continue
            known = self._channels.get(wanted.payee)
            if known is None:
                new.append((self._make(wanted.payee), amount))
            else:
                await self.ledger.top_up(known.key, amount)
                self._store.allocate(known, known.allocated + amount)
        if new:
            await self.ledger.open(
                [Opening(channel.key.payee, channel.key.signer, channel.key.salt, amount) for channel, amount in new]
            )
        for channel, amount in new:
            self._store.allocate(channel, amount)
            self._channels[channel.key.payee] = channel
            self._claimed[channel.id] = 0

    def _make(self, payee: Address) -> SpendingChannel:
        """Write a new channel down before it is opened: money that is put aside can always be found again."""
        signer, salt = Account.generate(self._entropy), int.from_bytes(self._entropy(8), "big")
        key = ChannelKey(self.ledger.address, payee, signer.address, salt)
        return self._store.add(key, signer, self.ledger.domain)

    async def _check(self, payee: Address) -> None:
        """Ask the ledger once about a channel of an earlier run: topped up, claimed, or closed meanwhile."""
        channel = self._channels.get(payee)
        if channel is None or channel.id in self._claimed:
            return
        state = await self.ledger.channel(channel.id)
        if state is None or state.is_closed or state.closes_at_s:
            del self._channels[payee]
            if state is not None and state.is_closed:
                self._store.forget(channel.id)
            return
        self._store.allocate(channel, state.allocated)
        channel.sent, channel.done = max(channel.sent, state.claimed), max(channel.done, state.claimed)
        self._claimed[channel.id] = state.claimed
