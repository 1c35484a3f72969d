"""Whatever a node says, a client signs no more than it has sent to it, and stays within its budget of the day."""

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from swarm_ledger.channels import Voucher
from swarm_ledger.client_store import ClientStore, Raise
from swarm_ledger.errors import BadSignature, Disputed, OverBudget
from swarm_ledger.metering import Meter, Work
from swarm_ledger.sections import GrantSection, amount_bytes
from swarm_ledger.spending import Budget, Purse
from tests.ledger.parties import HERE, SIGNERS, STRANGER, key_of
from tests.ledger.streams import DAY, PLACE, QUOTE, WINDOW

KEY = key_of()
ALLOCATED = 30 * WINDOW
LIMIT = 20 * WINDOW  # below what the channel holds

lies = st.integers(0, ALLOCATED) | st.sampled_from([0, 1, WINDOW, 2**127])


class HostileNode(RuleBasedStateMachine):
    """A node that may show any old voucher, name any number and answer or not; and a client that may be killed."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.file = Path(self._folder.name) / "client.db"
        self.store = ClientStore(self.file)
        self.channel = self.store.add(KEY, SIGNERS[0], HERE)
        self.store.allocate(self.channel, ALLOCATED)
        self.day = self.todays_budget()
        self.purse: Purse | None = None
        self.position = 0
        self.unanswered = 0
        self.vouchers = [Voucher(KEY.id, 0, b"")]
        self.sent = 0  # all that ever was

    def teardown(self) -> None:
        self.store.close()
        self._folder.cleanup()

    def todays_budget(self) -> Budget:
        return Budget("of the day", LIMIT, self.store.spent(DAY, "credits"), "credits")

    @precondition(lambda self: self.purse is None)
    @rule(which=st.integers(0, 100), forged=st.booleans(), cumulative=lies, earned=lies, window=lies)
    def open(self, which: int, forged: bool, cumulative: int, earned: int, window: int) -> None:
        voucher = self.vouchers[which % len(self.vouchers)]
        if forged:
            signature = (b"", bytes(64), voucher.signature, STRANGER.sign(bytes(32)))[which % 4]
            voucher = Voucher(KEY.id, cumulative, signature)
        grant = GrantSection(
            amount_bytes(window), amount_bytes(earned), amount_bytes(voucher.cumulative), voucher.signature
        )
        try:
            disputed = self.channel.adopt(grant, "node")
        except (BadSignature, Disputed):
            return
        self.purse = Purse(self.channel, Meter(QUOTE, PLACE), (self.day,), max(0, window - disputed))
        self.purse.begin(0, 10)
        self.position = 0

    @precondition(lambda self: self.purse is not None)
    @rule(kind=st.sampled_from(["prefill", "decode"]), count=st.integers(1, 3000))
    def send(self, kind: Work, count: int) -> None:
        assert self.purse is not None
        cost = self.purse.cost_of(kind, self.position, count, 1)
        try:
            target = self.purse.send(kind, self.position, count, 1)
        except OverBudget:
            return
        self.sent += cost
        self.position += count
        self.unanswered += 1
        self.sign(target)

    @precondition(lambda self: self.unanswered > 0)
    @rule()
    def answer(self) -> None:
        assert self.purse is not None
        self.unanswered -= 1
        self.purse.answered()

    @precondition(lambda self: self.purse is not None)
    @rule(needed=lies)
    def ask(self, needed: int) -> None:
        assert self.purse is not None
        self.sign(self.purse.asked(needed))

    @precondition(lambda self: self.purse is not None)
    @rule(pays=st.booleans())
    def close(self, pays: bool) -> None:
        assert self.purse is not None
        if pays:
            self.sign(self.purse.last())
        self.purse.close()
        self.store.put_away([self.channel])
        self.purse, self.unanswered = None, 0

    @rule()
    def kill(self) -> None:
        self.store.close()
        self.store = ClientStore(self.file)
        (self.channel,) = self.store.channels(HERE)
        self.day = self.todays_budget()
        self.purse, self.unanswered = None, 0

    def sign(self, target: int) -> None:
        """Do as a client does before a voucher leaves it."""
        assert self.purse is not None
        if not target:
            return
        try:
            self.store.raise_ceilings([Raise(self.channel, target)], day=DAY, currency="credits", limit=LIMIT)
        except OverBudget:
            return
        self.vouchers.append(self.purse.voucher(target))

    @invariant()
    def nothing_is_signed_beyond_what_was_sent_or_allowed(self) -> None:
        signed = max(voucher.cumulative for voucher in self.vouchers)
        assert signed <= self.sent
        assert signed <= self.store.spent(DAY, "credits") <= LIMIT
        assert self.day.spent <= LIMIT


TestHostileNode = HostileNode.TestCase
TestHostileNode.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
