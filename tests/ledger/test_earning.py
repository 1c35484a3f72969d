"""What a node serves, for whom, and what a client that cheats can get of it."""

import pytest

from swarm_ledger.channels import ChannelKey, ChannelState, Domain, Voucher, VoucherDigests
from swarm_ledger.earning import GROWTH, MOST_WINDOWS, EarningChannel, Earnings, Tab
from swarm_ledger.errors import AllocationTooSmall, BadSignature, NoChannel, PaymentMissing
from swarm_ledger.metering import Meter, Place
from swarm_ledger.quotes import Quote
from tests.ledger.parties import HERE, PAYEES, PAYERS, SIGNERS, STRANGER, key_of
from tests.ledger.sessions import quote_of

DIGESTS = VoucherDigests(HERE)
PLACE = Place(blocks=2, is_first=False, is_last=False, pages=1)
QUOTE = quote_of()
WINDOW = QUOTE.amount(QUOTE.window_ns)
TOKEN = 2 * QUOTE.rates.decode[0]
KEY = key_of()


def earnings() -> Earnings:
    return Earnings(DIGESTS, PAYEES[0].address)


def nothing(key: ChannelKey = KEY) -> Voucher:
    return Voucher(key.id, 0, b"")


def paid(cumulative: int, key: ChannelKey = KEY) -> Voucher:
    return DIGESTS.sign(key.id, cumulative, SIGNERS[0])


def opened(node: Earnings, allocated: int = 100 * WINDOW, quote: Quote = QUOTE) -> tuple[Tab, EarningChannel]:
    channel = node.learn(KEY, ChannelState(allocated, 0))
    return node.open(channel, channel.best, Meter(quote, PLACE)), channel


def serve(tab: Tab, count: int = 1, position: int = 0) -> None:
    tab.check("prefill", position, count, 0)
    tab.charge("prefill", position, count, 0)


def decode_until_refused(tab: Tab) -> None:
    for position in range(10**6):
        tab.check("decode", position, 1, 0)
        tab.charge("decode", position, 1, 0)


def test_a_client_that_stops_paying_gets_the_window_and_no_more() -> None:
    node = earnings()
    tab, channel = opened(node)
    with pytest.raises(PaymentMissing) as caught:
        decode_until_refused(tab)
    assert WINDOW - TOKEN < channel.earned == channel.unpaid <= WINDOW
    refusal = caught.value
    assert refusal.earned + refusal.cost - refusal.window - refusal.paid > 0
    assert "more has to be paid" in str(refusal)
    position = tab.meter.units["decode"] // 2
    node.pay(tab, paid(channel.earned + TOKEN - WINDOW - 1))
    with pytest.raises(PaymentMissing):
        tab.check("decode", position, 1, 0)
    node.pay(tab, paid(channel.earned + TOKEN - WINDOW))
    tab.check("decode", position, 1, 0)


def test_a_lease_is_given_no_longer_than_it_is_paid_for() -> None:
    tab, channel = opened(earnings())

    def lease_on() -> None:
        for _ in range(10**6):
            tab.lease(3600)

    with pytest.raises(PaymentMissing):
        lease_on()
    assert 0 < channel.earned == channel.unpaid <= WINDOW


def test_a_piece_larger_than_the_window_is_paid_ahead() -> None:
    node = earnings()
    tab, channel = opened(node)
    cost = tab.meter.cost_of("prefill", 0, 3000, 0)
    assert cost > WINDOW
    with pytest.raises(PaymentMissing):
        tab.check("prefill", 0, 3000, 0)
    node.pay(tab, paid(cost - WINDOW))
    serve(tab, 3000)
    assert (channel.earned, channel.unpaid) == (cost, WINDOW)


def test_nothing_is_served_beyond_what_the_channel_holds() -> None:
    node = earnings()
    tab, channel = opened(node, allocated=10 * TOKEN)
    node.pay(tab, paid(10**9))
    with pytest.raises(PaymentMissing, match="it holds"):
        decode_until_refused(tab)
    assert tab.meter.units == {"decode": 20}
    assert channel.redeemable == 10 * TOKEN


def test_dust_is_not_worth_a_session() -> None:
    node, quote = earnings(), quote_of(min_allocation_ns=5 * TOKEN)
    with pytest.raises(AllocationTooSmall) as caught:
        opened(node, allocated=5 * TOKEN - 1, quote=quote)
    assert caught.value.least == 5 * TOKEN
    opened(node, allocated=5 * TOKEN, quote=quote)
    with pytest.raises(AllocationTooSmall):
        opened(earnings(), allocated=0)


def test_a_channel_that_is_being_closed_is_served_no_more() -> None:
    node = earnings()
    tab, channel = opened(node)
    node.pay(tab, paid(50))
    serve(tab)
    for state in (ChannelState(100 * WINDOW, 0, closes_at_s=5), ChannelState(100 * WINDOW, 0, is_closed=True)):
        node.learn(KEY, state)
        with pytest.raises(NoChannel):
            tab.check("decode", 1, 1, 0)
        with pytest.raises(NoChannel):
            node.open(channel, nothing(), Meter(QUOTE, PLACE))
    assert channel.redeemable == 0  # it was finished
    node.learn(KEY, ChannelState(100 * WINDOW, 0, closes_at_s=5))
    assert channel.redeemable == 50
    node.learn(KEY, ChannelState(100 * WINDOW, 0))
    tab.check("decode", 1, 1, 0)  # a top-up has taken the close back


@pytest.mark.parametrize(
    "voucher",
    [
        pytest.param(DIGESTS.sign(KEY.id, 60, SIGNERS[1]), id="foreign key"),
        pytest.param(DIGESTS.sign(KEY.id, 60, PAYERS[0]), id="the wallet's key"),
        pytest.param(Voucher(KEY.id, 61, DIGESTS.sign(KEY.id, 60, SIGNERS[0]).signature), id="altered"),
        pytest.param(VoucherDigests(Domain(1, HERE.contract)).sign(KEY.id, 60, SIGNERS[0]), id="another chain"),
        pytest.param(VoucherDigests(Domain(0, STRANGER.address)).sign(KEY.id, 60, SIGNERS[0]), id="another bank"),
        pytest.param(Voucher(KEY.id, 60, DIGESTS.sign(key_of(salt=1).id, 60, SIGNERS[0]).signature), id="elsewhere"),
        pytest.param(Voucher(KEY.id, 60, b""), id="unsigned"),
    ],
)
def test_vouchers_that_the_ledger_would_refuse_are_refused(voucher: Voucher) -> None:
    node = earnings()
    tab, channel = opened(node)
    with pytest.raises(BadSignature):
        node.pay(tab, voucher)
    with pytest.raises(BadSignature):
        node.open(channel, voucher, Meter(QUOTE, PLACE))
    assert channel.best.cumulative == 0
    assert node.unsaved == {}


def test_an_older_voucher_changes_nothing() -> None:
    node = earnings()
    tab, channel = opened(node)
    node.pay(tab, paid(60))
    assert node.unsaved == {KEY.id: channel}
    node.unsaved.clear()
    for cumulative in (0, 59, 60):
        node.pay(tab, paid(cumulative))
    assert channel.best == paid(60)
    assert node.unsaved == {}


def test_a_channel_to_somebody_else_pays_nothing_here() -> None:
    with pytest.raises(NoChannel):
        earnings().learn(key_of(payee=1), ChannelState(100, 0))


def test_sessions_of_one_channel_share_its_window() -> None:
    node = earnings()
    first, channel = opened(node)
    second, same = opened(node)
    assert channel is same
    step = WINDOW // (2 * QUOTE.rates.prefill[0]) // 2
    serve(first, step)
    serve(second, step)
    with pytest.raises(PaymentMissing):
        serve(first, step, step)
    # A session that was ended in debt leaves it to those that follow.
    third, _ = opened(node)
    with pytest.raises(PaymentMissing):
        serve(third, step)


def test_an_opening_that_is_not_paid_for_counts_nothing() -> None:
    tab, channel = opened(earnings())
    tab.begin(0, WINDOW)
    with pytest.raises(PaymentMissing):
        tab.check("decode", 0, 1, 0)
    assert (channel.earned, tab.meter.units) == (0, {})
    tab.begin(10, 5)
    assert channel.earned == 0  # a session that never runs costs nothing
    tab.charge("decode", 10, 1, 0)
    assert channel.earned - TOKEN == 20 * QUOTE.rates.cached + 5 * QUOTE.rates.page_second


def test_who_has_paid_before_may_owe_more_up_to_a_limit() -> None:
    node = earnings()
    _, channel = opened(node)
    assert node.window(channel, QUOTE) == WINDOW
    node.learn(KEY, ChannelState(1000 * WINDOW, GROWTH * WINDOW))
    assert node.window(channel, QUOTE) == 2 * WINDOW
    node.learn(KEY, ChannelState(1000 * WINDOW, 900 * WINDOW))
    assert node.window(channel, QUOTE) == MOST_WINDOWS * WINDOW


def test_what_a_payer_owes_in_one_channel_it_may_not_owe_in_another() -> None:
    node = earnings()
    tab, _ = opened(node)
    serve(tab, 500)
    other = node.learn(key_of(salt=1), ChannelState(100 * WINDOW, 0))
    assert node.window(other, QUOTE) == WINDOW - tab.channel.unpaid
    stranger = node.learn(key_of(payer=1), ChannelState(100 * WINDOW, 0))
    assert node.window(stranger, QUOTE) == WINDOW


def test_a_node_that_lost_its_vouchers_takes_the_ledgers_word_and_the_clients() -> None:
    node = earnings()
    channel = node.learn(KEY, ChannelState(100 * WINDOW, 70))
    assert (channel.best.cumulative, channel.earned, channel.redeemable) == (70, 70, 0)
    node.open(channel, paid(90), Meter(QUOTE, PLACE))
    assert (channel.earned, channel.redeemable) == (90, 20)
    # Restored from an old copy, it learns as well.
    old = Earnings(DIGESTS, PAYEES[0].address)
    restored = old.restore(KEY, paid(10), ChannelState(100 * WINDOW, 0))
    old.learn(KEY, ChannelState(100 * WINDOW, 70))
    assert (restored.best.cumulative, restored.earned) == (70, 70)


def test_one_allocation_cannot_pay_two_nodes() -> None:
    other = Earnings(DIGESTS, PAYEES[1].address)
    with pytest.raises(NoChannel):
        other.learn(KEY, ChannelState(100 * WINDOW, 0))
    elsewhere = key_of(payee=1)
    channel = other.learn(elsewhere, ChannelState(100 * WINDOW, 0))
    with pytest.raises(BadSignature):
        other.open(channel, Voucher(elsewhere.id, 60, paid(60).signature), Meter(QUOTE, PLACE))
