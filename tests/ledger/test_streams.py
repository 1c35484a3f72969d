"""Whatever wires and machines do: the node is owed no more than its window, the client has paid for no more than a
piece that was not delivered, and both go on after a crash."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from swarm_ledger.errors import NoChannel
from swarm_ledger.metering import Work
from tests.ledger.histories import START_S
from tests.ledger.streams import KEY, WINDOW, Stream

pieces: st.SearchStrategy[tuple[Work, int]] = st.one_of(
    st.tuples(st.just("decode"), st.just(1)),
    st.tuples(st.just("verify"), st.integers(1, 8)),
    st.tuples(st.sampled_from(["prefill", "replay"]), st.integers(1, 3000)),  # up to thrice the window
)


class StreamHistory(RuleBasedStateMachine):
    """Sessions on one channel, and everything that can happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.stream = Stream(Path(self._folder.name))

    def teardown(self) -> None:
        self.stream.close()
        self._folder.cleanup()

    def has_session(self) -> bool:
        return bool(self.stream.sessions)

    def pick(self, which: int) -> int:
        numbers = sorted(self.stream.sessions)
        return numbers[which % len(numbers)]

    @precondition(lambda self: len(self.stream.sessions) < 3)
    @rule(lease_s=st.sampled_from([0, 10, 5000]), loses_grant=st.integers(0, 5).map(lambda n: n == 0))
    def open(self, lease_s: int, loses_grant: bool) -> None:
        self.stream.open(lease_s=lease_s, loses_grant=loses_grant)

    @precondition(has_session)
    @rule(which=st.integers(0, 2), piece=pieces)
    def send(self, which: int, piece: tuple[Work, int]) -> None:
        self.stream.send(self.pick(which), *piece)

    @precondition(has_session)
    @rule(which=st.integers(0, 2), loses_payment=st.booleans(), repeats_old=st.booleans())
    def deliver(self, which: int, loses_payment: bool, repeats_old: bool) -> None:
        self.stream.deliver(self.pick(which), loses_payment=loses_payment, repeats_old=repeats_old)

    @precondition(has_session)
    @rule(which=st.integers(0, 2))
    def answer(self, which: int) -> None:
        self.stream.answer(self.pick(which))

    @precondition(has_session)
    @rule(which=st.integers(0, 2), pieces=st.lists(pieces, min_size=1, max_size=6), loses_payment=st.booleans())
    def whole_steps(self, which: int, pieces: list[tuple[Work, int]], loses_payment: bool) -> None:
        number = self.pick(which)
        for piece in pieces:
            self.stream.send(number, *piece)
            while self.stream.sessions[number].outgoing:
                self.stream.deliver(number, loses_payment=loses_payment, repeats_old=False)
            while self.stream.sessions[number].answers:
                self.stream.answer(number)

    @precondition(has_session)
    @rule(which=st.integers(0, 2), loses_payment=st.booleans())
    def pay_up(self, which: int, loses_payment: bool) -> None:
        self.stream.pay_up(self.pick(which), loses_payment=loses_payment)

    @precondition(has_session)
    @rule(which=st.integers(0, 2))
    def lose(self, which: int) -> None:
        self.stream.lose(self.pick(which))

    @rule()
    def crash_client(self) -> None:
        self.stream.crash_client()

    @rule()
    def crash_node(self) -> None:
        self.stream.crash_node()

    @rule()
    def redeem(self) -> None:
        self.stream.redeem()

    @invariant()
    def nobody_loses_more_than_the_window(self) -> None:
        self.stream.check()


def test_a_channel_that_is_closed_while_it_is_served_pays_what_was_promised(tmp_path: Path) -> None:
    stream = Stream(tmp_path)
    stream.open(lease_s=10, loses_grant=False)
    for _ in range(100):
        stream.send(1, "decode", 1)
        stream.deliver(1, loses_payment=False, repeats_old=False)
        stream.answer(1)
    stream.send(1, "decode", 1)
    stream.bank.request_close(KEY.payer, KEY, START_S)
    served = stream.served
    with pytest.raises(NoChannel):
        stream.deliver(1, loses_payment=False, repeats_old=False)
    assert stream.served == served
    promised = stream.earnings.channels[KEY.id].best.cumulative
    assert served - WINDOW <= promised == stream.signed
    stream.redeem()
    stream.bank.finish_close(KEY.payer, KEY, START_S + stream.bank.close_delay_s)
    assert stream.bank.balance(KEY.payee) == promised
    assert stream.bank.totals().in_channels == 0
    stream.close()


TestStreamHistory = StreamHistory.TestCase
TestStreamHistory.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
