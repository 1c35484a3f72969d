"""A node's side of its channels: what sessions have earned, what was paid, and whether the next step is served; pure.

    Earnings            all channels of a node, and what each payer owes
      EarningChannel    one channel: earned by all its sessions, the best voucher, what the ledger says
        Tab             one session: its meter, and the window that it may be behind

Invariants, for every channel: the best voucher only grows; nothing is served that would bring what is earned more than
the window above it, or above what the channel holds. Storing vouchers is the caller's: those in `unsaved`.

Called by the node program for each opening, step and voucher. The bank or chain is asked elsewhere.
"""

from dataclasses import dataclass, field
from typing import Final

from swarm_ledger.accounts import Address
from swarm_ledger.channels import ChannelId, ChannelKey, ChannelState, Voucher, VoucherDigests
from swarm_ledger.errors import AllocationTooSmall, NoChannel, PaymentMissing
from swarm_ledger.metering import Meter, Work
from swarm_ledger.quotes import Quote

GROWTH: Final = 10  # a payer may owe one part in so many of what it has paid before
MOST_WINDOWS: Final = 20  # strangers' windows that the best known payer may owe


@dataclass(slots=True)
class EarningChannel:
    """One channel, at the node that it pays."""

    key: ChannelKey
    id: ChannelId
    state: ChannelState
    best: Voucher
    earned: int  # by all sessions; at first what was paid before
    was_opened: bool = False  # since it was taken up

    @property
    def is_ending(self) -> bool:
        """Whether it was closed, or its payer has asked for that: nothing is served on it."""
        return self.state.is_closed or self.state.closes_at_s != 0

    @property
    def unpaid(self) -> int:
        """What was served and is not covered by a voucher."""
        return max(0, self.earned - self.best.cumulative)

    @property
    def redeemable(self) -> int:
        """What the ledger would pay for the best voucher now."""
        if self.state.is_closed:
            return 0
        return max(0, min(self.best.cumulative, self.state.allocated) - self.state.claimed)


@dataclass(slots=True)
class Tab:
    """What one session owes, as it goes on."""

    meter: Meter
    channel: EarningChannel
    window: int  # that the payer may owe in this channel
    _charged: int = 0

    def check(self, kind: Work, position: int, count: int, draws: int) -> None:
        """Raise PaymentMissing if a step costs more than is paid for, NoChannel if the channel is being closed."""
        if self.channel.is_ending:
            raise NoChannel
        self._check(self.meter.cost_of(kind, position, count, draws))

    def charge(self, kind: Work, position: int, count: int, draws: int) -> None:
        """Count a step that was accepted."""
        self.meter.step(kind, position, count, draws)
        self._book()

    def lease(self, seconds: int) -> None:
        """Count a lease that goes on. Raises PaymentMissing if it is not paid for."""
        trial = self.meter.copy()
        trial.lease(seconds)
        self._check(trial.amount - self.meter.amount)
        self.meter.lease(seconds)
        self._book()

    def begin(self, cached_tokens: int, lease_s: int) -> None:
        """Note what the opening gives, for the first step to count: a session that never runs costs nothing."""
        self.meter.begin(cached_tokens, lease_s)

    def _check(self, cost: int) -> None:
        channel = self.channel
        due = channel.earned + cost - self.window
        if due > channel.best.cumulative or channel.earned + cost > channel.state.allocated:
            raise PaymentMissing(
                earned=channel.earned,
                cost=cost,
                paid=channel.best.cumulative,
                window=self.window,
                allocated=channel.state.allocated,
            )

    def _book(self) -> None:
        amount = self.meter.amount
        self.channel.earned += amount - self._charged
        self._charged = amount


@dataclass(slots=True)
class Earnings:
    """The channels of one node on one ledger."""

    digests: VoucherDigests
    payee: Address
    channels: dict[ChannelId, EarningChannel] = field(default_factory=dict)
    unsaved: dict[ChannelId, EarningChannel] = field(default_factory=dict)
    _by_payer: dict[Address, list[EarningChannel]] = field(default_factory=dict)

    def restore(self, key: ChannelKey, best: Voucher, state: ChannelState) -> EarningChannel:
        """Take a channel up as it was stored: what was earned beyond its voucher is forgiven."""
        channel = EarningChannel(key, key.id, state, best, earned=best.cumulative)
        self.channels[channel.id] = channel
        self._by_payer.setdefault(key.payer, []).append(channel)
        return channel

    def learn(self, key: ChannelKey, state: ChannelState) -> EarningChannel:
        """Note what the ledger says of a channel to this node. Raises NoChannel for one that cannot pay it."""
        if key.payee != self.payee:
            raise NoChannel
        channel = self.channels.get(key.id)
        if channel is None:
            channel = self.restore(key, Voucher(key.id, 0, b""), state)
        channel.state = state
        # What was claimed before this node lost its vouchers was earned, and paid.
        if state.claimed > channel.best.cumulative:
            channel.best = Voucher(channel.id, state.claimed, b"")
            channel.earned = max(channel.earned, state.claimed)
        return channel

    def open(self, channel: EarningChannel, voucher: Voucher, meter: Meter) -> Tab:
        """Begin a session that is paid from a channel, with the voucher that its client says is the last one.

        Raises NoChannel for one that is closing, BadSignature, AllocationTooSmall.
        """
        if channel.is_ending:
            raise NoChannel
        self._take(channel, voucher)
        if not channel.was_opened:
            # Paid for before this node forgot. Later on, more than was earned is paid for a step on its way.
            channel.earned = max(channel.earned, channel.best.cumulative)
            channel.was_opened = True
        left = channel.state.allocated - max(channel.earned, channel.best.cumulative)
        least = meter.quote.amount(meter.quote.min_allocation_ns)
        if left < least or left <= 0:
            raise AllocationTooSmall(left=left, least=max(1, least))
        return Tab(meter, channel, self.window(channel, meter.quote))

    def pay(self, tab: Tab, voucher: Voucher) -> None:
        """Take a voucher that came with a session. Raises BadSignature; an older one is ignored."""
        self._take(tab.channel, voucher)

    def window(self, channel: EarningChannel, quote: Quote) -> int:
        """Return what a payer may owe in a channel: more with what it has paid, less by what it owes in others."""
        stranger = quote.amount(quote.window_ns)
        paid = owed_elsewhere = 0
        for other in self._by_payer[channel.key.payer]:
            paid += other.state.claimed
            owed_elsewhere += other.unpaid if other is not channel else 0
        return max(0, min(stranger + paid // GROWTH, MOST_WINDOWS * stranger) - owed_elsewhere)

    def _take(self, channel: EarningChannel, voucher: Voucher) -> None:
        if voucher.cumulative <= channel.best.cumulative:
            return
        self.digests.check(voucher, channel.key.signer)
        channel.best = voucher
        self.unsaved[channel.id] = channel
