"""A client and a node that both keep to the rules, on wires that do not, and machines that die.

Real purses, tabs, stores and a real bank; only the network is played: what is lost, doubled and late is the caller's
choice. What both have truly done is counted on the side, and `check` compares it with what they believe.
"""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from swarm_ledger.bank import Bank
from swarm_ledger.channels import Claim, Voucher, VoucherDigests
from swarm_ledger.client_store import ClientStore, Raise
from swarm_ledger.earning import Earnings, Tab
from swarm_ledger.errors import AllocationTooSmall, PaymentMissing
from swarm_ledger.ledger import Opening
from swarm_ledger.metering import Meter, Place, Work
from swarm_ledger.node_store import NodeStore, Redemption
from swarm_ledger.sections import grant_section, pay_section, read_grant, read_pay
from swarm_ledger.spending import Budget, Purse
from tests.ledger.histories import START_S
from tests.ledger.parties import BANK, HERE, SIGNERS, key_of
from tests.ledger.sessions import quote_of

KEY = key_of()
PLACE = Place(blocks=2, is_first=True, is_last=True, pages=3)
QUOTE = quote_of(window_ns=1_000_000)
WINDOW = QUOTE.amount(QUOTE.window_ns)
ALLOCATION = 40 * WINDOW
DAY, LIMIT = 19_000, 10_000 * WINDOW


@dataclass
class Session:
    """One session, its two ends and the wires between them."""

    purse: Purse
    tab: Tab
    disputed: int
    position: int = 0
    outgoing: deque[tuple[Work, int, int, bytes]] = field(default_factory=deque)  # kind, position, count, payment
    answers: int = 0  # on their way back
    in_flight: int = 0  # what the steps that were not answered cost


class Stream:
    """Everything between one client and one node, on one channel."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.bank = Bank(None, BANK.address)
        self.bank.deposit(KEY.payer, 1000 * ALLOCATION, START_S)
        self.bank.open(KEY.payer, [Opening(KEY.payee, KEY.signer, KEY.salt, ALLOCATION)], START_S)
        self.client_store = ClientStore(folder / "client.db")
        self.channel = self.client_store.add(KEY, SIGNERS[0], HERE)
        self.client_store.allocate(self.channel, ALLOCATION)
        self.node_store = NodeStore(folder / "node.db", HERE, KEY.payee)
        self.earnings = Earnings(VoucherDigests(HERE), KEY.payee)
        self.sessions: dict[int, Session] = {}
        self.opened = 0
        self.signed = self.served = 0  # the truth
        self.most_in_flight = 0
        self.node_crashes = 0
        self.old_payments: list[bytes] = []

    def close(self) -> None:
        self.client_store.close()
        self.node_store.close()

    def open(self, *, lease_s: int, loses_grant: bool) -> None:
        """Begin a session: the voucher there, the grant back."""
        if self.channel.is_known:
            self._sign(min(self.channel.done, self.channel.allocated))
        state = self.bank.channel(KEY.id)
        assert state is not None
        earning = self.earnings.learn(KEY, state)
        try:
            tab = self.earnings.open(earning, self.channel.best, Meter(QUOTE, PLACE))
        except AllocationTooSmall:
            self.top_up(ALLOCATION)
            return
        tab.begin(0, lease_s)
        self._save()
        if loses_grant:
            return
        grant = read_grant(grant_section(window=tab.window, earned=earning.earned, best=earning.best, lease_s=lease_s))
        disputed = self.channel.adopt(grant, "node")
        day = Budget("of the day", LIMIT, self.client_store.spent(DAY, "credits"), "credits")
        purse = Purse(self.channel, Meter(QUOTE, PLACE), (day,), tab.window - disputed)
        purse.begin(0, lease_s)
        self.opened += 1
        self.sessions[self.opened] = Session(purse, tab, disputed)

    def send(self, number: int, kind: Work, count: int) -> None:
        """Send a step, with the voucher that it needs."""
        session = self.sessions[number]
        cost = session.purse.cost_of(kind, session.position, count, 1)
        if self.channel.sent + cost + session.disputed > self.channel.allocated:
            self.top_up(cost + ALLOCATION)
        target = session.purse.send(kind, session.position, count, 1)
        payment = b""
        if target:
            self._raise(target)
            payment = self._pay(session.purse.voucher(target))
        session.outgoing.append((kind, session.position, count, payment))
        session.position += count
        session.in_flight += cost
        self.most_in_flight = max(self.most_in_flight, sum(each.in_flight for each in self.sessions.values()))

    def deliver(self, number: int, *, loses_payment: bool, repeats_old: bool) -> None:
        """Let a step arrive; the node serves it, after asking for the voucher if that was lost on its way."""
        session = self.sessions[number]
        if not session.outgoing:
            return
        kind, position, count, payment = session.outgoing.popleft()
        if repeats_old and self.old_payments:
            self.earnings.pay(session.tab, read_pay(self.old_payments[0], KEY.id)[0])
        if payment and not loses_payment:
            for _ in range(2):
                self.earnings.pay(session.tab, read_pay(payment, KEY.id)[0])
        state = self.bank.channel(KEY.id)
        assert state is not None
        self.earnings.learn(KEY, state)
        try:
            session.tab.check(kind, position, count, 1)
        except PaymentMissing as refusal:
            target = session.purse.asked(refusal.needed)
            self._raise(target)
            self.earnings.pay(session.tab, read_pay(self._pay(session.purse.voucher(target)), KEY.id)[0])
            session.tab.check(kind, position, count, 1)  # who keeps to the rules is served
        before = session.tab.meter.amount
        session.tab.charge(kind, position, count, 1)
        self.served += session.tab.meter.amount - before
        session.answers += 1
        self._save()

    def answer(self, number: int) -> None:
        """Let an answer arrive."""
        session = self.sessions[number]
        if session.answers:
            session.answers -= 1
            before = session.purse.spent
            session.purse.answered()
            session.in_flight -= session.purse.spent - before

    def pay_up(self, number: int, *, loses_payment: bool) -> None:
        """Send what is owed, in a frame of its own."""
        session = self.sessions[number]
        target = session.purse.last()
        if target:
            self._raise(target)
            payment = self._pay(session.purse.voucher(target))
            if not loses_payment:
                self.earnings.pay(session.tab, read_pay(payment, KEY.id)[0])
                self._save()

    def lose(self, number: int) -> None:
        """Break a session's link."""
        session = self.sessions.pop(number)
        session.purse.close()
        if not self.sessions:
            self.client_store.put_away([self.channel])

    def crash_client(self) -> None:
        """Kill the client; it starts again with what its store knows."""
        self.sessions.clear()
        self.client_store.close()
        self.client_store = ClientStore(self._folder / "client.db")
        (self.channel,) = self.client_store.channels(HERE)

    def crash_node(self) -> None:
        """Kill the node; it starts again with what its store knows."""
        for session in self.sessions.values():
            session.purse.close()
        self.sessions.clear()
        best = self.earnings.channels[KEY.id].best.cumulative if self.earnings.channels else 0
        self.node_store.close()
        self.node_store = NodeStore(self._folder / "node.db", HERE, KEY.payee)
        self.earnings = Earnings(VoucherDigests(HERE), KEY.payee)
        self.node_store.restore(self.earnings)
        restored = self.earnings.channels.get(KEY.id)
        assert (restored.best.cumulative if restored else 0) == best, "a saved voucher was forgotten"
        self.node_crashes += 1

    def redeem(self) -> None:
        """Collect what the best voucher is worth."""
        earning = self.earnings.channels.get(KEY.id)
        if earning is None or not earning.redeemable:
            return
        expected = earning.redeemable
        claim = Claim(KEY, earning.best.cumulative, earning.best.signature)
        assert self.bank.redeem([claim], START_S) == expected
        state = self.bank.channel(KEY.id)
        assert state is not None
        self.earnings.learn(KEY, state)
        self.node_store.record(Redemption(START_S, expected, 1), [earning])

    def top_up(self, amount: int) -> None:
        self.bank.top_up(KEY.payer, KEY, amount, START_S)
        self.client_store.allocate(self.channel, self.channel.allocated + amount)

    def check(self) -> None:
        """Compare what both believe with what happened."""
        earning = self.earnings.channels.get(KEY.id)
        if earning is not None:
            assert earning.earned - earning.best.cumulative <= self._widest(), "more than the window is owed"
            assert earning.earned <= earning.state.allocated
            # A node that died has forgotten what was owed, no more than a window each time.
            lost = self._widest() * (1 + self.node_crashes)
            assert self.served - earning.best.cumulative <= lost
            assert earning.best.cumulative <= self.signed
        # A node that died counts what was paid ahead as earned.
        assert self.signed - self.served <= self.most_in_flight * (1 + self.node_crashes), (
            "paid for what was not delivered"
        )
        assert self.channel.best.cumulative <= self.channel.ceiling
        assert self.signed <= self.client_store.spent(DAY, "credits") <= LIMIT

    def _widest(self) -> int:
        earning = self.earnings.channels[KEY.id]
        return max([self.earnings.window(earning, QUOTE), *(session.tab.window for session in self.sessions.values())])

    def _raise(self, target: int) -> None:
        self.client_store.raise_ceilings([Raise(self.channel, target)], day=DAY, currency="credits", limit=LIMIT)

    def _sign(self, target: int) -> None:
        if target > self.channel.best.cumulative:
            self._raise(target)
            self._pay(self.channel.sign(target))

    def _pay(self, voucher: Voucher) -> bytes:
        self.signed = max(self.signed, voucher.cumulative)
        payment = pay_section(voucher)
        self.old_payments = [*self.old_payments[-3:], payment]
        return payment

    def _save(self) -> None:
        self.node_store.save(self.earnings, most_at_risk=WINDOW)
