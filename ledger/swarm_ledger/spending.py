"""A client's side of its channels: what was sent, what was answered, and up to where it signs; pure.

    SpendingChannel     one channel: what its sessions have sent and had answered, the highest voucher
      Purse             one session at one hop: its meter, its window, the vouchers that it sends
    Budget              what may be spent in all, by a request or a day

Invariants: nothing is signed above what was sent to this payee, above what the channel holds, or above a budget; and
nothing before it was delivered but for what one step needs. `ceiling` is what the store knows: it is raised before a
voucher above it is signed, so that a client that was killed never signs less than it thinks.

Called by the client for each opening, step and answer.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from swarm_ledger.accounts import Account
from swarm_ledger.channels import ChannelId, ChannelKey, Voucher, VoucherDigests
from swarm_ledger.currencies import Currency
from swarm_ledger.errors import Disputed, OverBudget
from swarm_ledger.metering import Line, Meter, Work
from swarm_ledger.sections import GrantSection

ARREARS: Final = 4  # a voucher is signed when a part in so many of the window has been delivered and not paid


@dataclass(slots=True)
class Budget:
    """What may be spent, in the smallest unit; `limit` None: anything."""

    what: str
    limit: int | None
    spent: int = 0
    symbol: str = ""
    decimals: int = 0

    def reserve(self, amount: int) -> None:
        """Count what a step will cost. Raises OverBudget, with nothing changed."""
        if self.limit is not None and self.spent + amount > self.limit:
            currency = Currency(self.symbol, self.decimals)
            spent, limit = currency.format(self.spent), currency.format(self.limit)
            raise OverBudget(spent=spent, limit=limit, what=self.what)
        self.spent += amount

    def give_back(self, amount: int) -> None:
        """Count what was reserved and is not owed after all."""
        self.spent -= amount


@dataclass(slots=True)
class SpendingChannel:
    """One channel, at the client that pays from it."""

    key: ChannelKey
    id: ChannelId
    signer: Account
    digests: VoucherDigests
    allocated: int
    best: Voucher
    sent: int  # what everything costs that was answered or still may be
    done: int  # what was answered costs
    lost: int  # what was sent by sessions that ended before it was answered: owed if the payee has served it
    ceiling: int  # the highest cumulative that the store knows of
    is_known: bool = True  # that `best` is the last one signed; else the payee is asked

    def sign(self, cumulative: int) -> Voucher:
        """Return the voucher for so much; the highest one if that is less."""
        if cumulative > self.best.cumulative:
            assert cumulative <= min(self.sent, self.allocated, self.ceiling), "signed above what was sent or stored"
            self.best = self.digests.sign(self.id, cumulative, self.signer)
        return self.best

    def adopt(self, grant: GrantSection, peer: str, *, claimed: int = 0) -> int:
        """Take up what the payee knows of this channel; returns the part of its count that is not ours.

        `claimed` is what the ledger says was redeemed: so much was signed. Raises BadSignature for a higher voucher
        that this client has not signed, Disputed where the payee counts so much more that nothing is left of its
        window.
        """
        theirs = Voucher(self.id, int.from_bytes(grant.cumulative, "big"), grant.signature)
        earned, window = int.from_bytes(grant.earned, "big"), int.from_bytes(grant.window, "big")
        if theirs.cumulative > self.best.cumulative:
            if theirs.cumulative > claimed:
                self.digests.check(theirs, self.key.signer)
            self.best = theirs
            self.ceiling = max(self.ceiling, theirs.cumulative)
            self.is_known = False
        if not self.is_known:
            # Of what was sent, only what was signed for is certain; less, if the payee itself says so.
            certain = min(self.best.cumulative, earned)
            self.sent, self.done = max(self.sent, certain), max(self.done, certain)
            self.lost = 0
            self.is_known = True
        served = min(max(0, earned - self.sent), self.lost)
        self.lost -= served
        self.sent += served
        self.done += served
        disputed = max(0, earned - self.sent)
        if disputed > window:
            raise Disputed(peer=peer, claimed=earned, counted=self.sent)
        return disputed


@dataclass(slots=True)
class Purse:
    """Pays one hop for one session."""

    channel: SpendingChannel
    meter: Meter
    budgets: tuple[Budget, ...]
    window: int
    _sent: int = 0
    _done: int = 0
    _paid_here: int = 0  # the highest voucher that went along with this session
    _in_flight: deque[Meter] = field(default_factory=deque)  # as it stood after each step that waits for its answer
    _answered: Meter | None = None

    def begin(self, cached_tokens: int, lease_s: int) -> None:
        """Note what the opening gave, for the first step to count."""
        self.meter.begin(cached_tokens, lease_s)

    def lease(self, seconds: int) -> None:
        """Count a lease that goes on; it is owed with the step that it goes along with. Raises OverBudget."""
        before = self.meter.amount
        self.meter.lease(seconds)
        self._reserve(self.meter.amount - before)

    def cost_of(self, kind: Work, position: int, count: int, draws: int) -> int:
        """Return what a step would cost at this hop."""
        return self.meter.cost_of(kind, position, count, draws)

    def send(self, kind: Work, position: int, count: int, draws: int) -> int:
        """Count a step; returns the cumulative that it has to be sent with, 0 if none. Raises OverBudget."""
        self._reserve(self.cost_of(kind, position, count, draws))
        self.meter.step(kind, position, count, draws)
        self._in_flight.append(self.meter.copy())
        channel = self.channel
        needed = min(channel.sent - self.window, channel.allocated)
        due = channel.done if channel.done - self._paid_here >= self.window // ARREARS else 0
        target = max(needed, due, 0)
        return target if target > self._paid_here else 0

    def voucher(self, cumulative: int) -> Voucher:
        """Sign so much, or more if more was signed already; `ceiling` must be stored before."""
        voucher = self.channel.sign(min(cumulative, self.channel.allocated))
        self._paid_here = voucher.cumulative
        return voucher

    def asked(self, needed: int) -> int:
        """Return the cumulative to answer a hop with that wants so much: never more than was sent to it."""
        channel = self.channel
        served = min(max(0, needed - channel.sent), channel.lost)
        channel.lost -= served
        channel.sent += served
        channel.done += served
        return min(needed, channel.sent, channel.allocated)

    def answered(self) -> None:
        """The oldest step that waits was answered: what it cost is owed."""
        self._settle(self._in_flight.popleft())

    def last(self) -> int:
        """Return the cumulative that pays for everything that was answered, 0 if that was paid."""
        owed = min(self.channel.done, self.channel.allocated)
        return owed if owed > self._paid_here else 0

    def close(self) -> None:
        """End the session: what was sent and never answered is not spent, though it may be asked for later."""
        unanswered = self._sent - self._done
        self.channel.sent -= unanswered
        self.channel.lost += unanswered
        for budget in self.budgets:
            budget.give_back(unanswered)

    @property
    def spent(self) -> int:
        """What this session owes the hop."""
        return self._done

    @property
    def rated_ns(self) -> int:
        """The rated time of all that was answered."""
        return self._answered.rated_ns if self._answered is not None else 0

    @property
    def computed_ns(self) -> int:
        """That without leases of KV, which are paid ahead."""
        return self._answered.computed_ns if self._answered is not None else 0

    @property
    def units(self) -> dict[Line, int]:
        """What was answered, counted."""
        return dict(self._answered.units) if self._answered is not None else {}

    def _reserve(self, cost: int) -> None:
        reserved: list[Budget] = []
        try:
            for budget in self.budgets:
                budget.reserve(cost)
                reserved.append(budget)
        except OverBudget:
            for budget in reserved:
                budget.give_back(cost)
            raise
        self._sent += cost
        self.channel.sent += cost

    def _settle(self, meter: Meter) -> None:
        self.channel.done += meter.amount - self._done
        self._done, self._answered = meter.amount, meter
