"""Up to where a client signs, and what a node that cheats can get of it."""

import pytest

from swarm_ledger.channels import Domain, Voucher, VoucherDigests
from swarm_ledger.errors import BadSignature, Disputed, OverBudget
from swarm_ledger.metering import Meter, Place
from swarm_ledger.sections import GrantSection, amount_bytes
from swarm_ledger.spending import Budget, Purse, SpendingChannel
from tests.ledger.parties import HERE, SIGNERS, STRANGER, key_of
from tests.ledger.sessions import quote_of

DIGESTS = VoucherDigests(HERE)
PLACE = Place(blocks=2, is_first=False, is_last=False, pages=1)
QUOTE = quote_of()
WINDOW = QUOTE.amount(QUOTE.window_ns)
TOKEN = 2 * QUOTE.rates.decode[0]
KEY = key_of()


def channel_of(allocated: int = 100 * WINDOW) -> SpendingChannel:
    return SpendingChannel(
        key=KEY,
        id=KEY.id,
        signer=SIGNERS[0],
        digests=DIGESTS,
        allocated=allocated,
        best=Voucher(KEY.id, 0, b""),
        sent=0,
        done=0,
        lost=0,
        ceiling=allocated,
    )


def purse_of(channel: SpendingChannel, *budgets: Budget, window: int = WINDOW) -> Purse:
    return Purse(channel, Meter(QUOTE, PLACE), budgets, window)


def grant(best: Voucher, *, earned: int, window: int = WINDOW) -> GrantSection:
    return GrantSection(amount_bytes(window), amount_bytes(earned), amount_bytes(best.cumulative), best.signature)


def run(purse: Purse, tokens: int) -> int:
    """Decode so many tokens, each answered, and return the highest voucher."""
    highest = 0
    for position in range(tokens):
        target = purse.send("decode", position, 1, 0)
        if target:
            highest = purse.voucher(target).cumulative
        purse.answered()
    return highest


def test_a_node_that_takes_payment_and_stalls_gets_one_piece() -> None:
    channel = channel_of()
    purse = purse_of(channel)
    cost = purse.cost_of("prefill", 0, 3000, 0)
    target = purse.send("prefill", 0, 3000, 0)
    assert target == cost - WINDOW > 0
    purse.voucher(target)
    purse.close()  # it never answered
    assert (channel.sent, channel.done, channel.lost) == (0, 0, cost)
    assert channel.best.cumulative <= cost
    # The next session signs nothing more before more was delivered.
    again = purse_of(channel)
    assert run(again, 10) <= channel.best.cumulative


def test_vouchers_follow_what_was_delivered_within_a_quarter_of_the_window() -> None:
    channel = channel_of()
    purse = purse_of(channel)
    for position in range(500):
        target = purse.send("decode", position, 1, 0)
        if target:
            purse.voucher(target)
        assert channel.best.cumulative <= channel.done
        purse.answered()
        assert channel.done - channel.best.cumulative <= WINDOW // 4 + TOKEN
    assert purse.last() == purse.spent == channel.done == 500 * TOKEN
    purse.voucher(purse.last())
    assert purse.last() == 0


def test_a_node_that_counts_more_is_not_paid_for_it() -> None:
    channel = channel_of()
    purse = purse_of(channel)
    best = run(purse, 100)
    purse.voucher(purse.last())
    purse.close()
    true = channel.done
    assert best <= true == channel.best.cumulative
    assert channel.adopt(grant(channel.best, earned=true + WINDOW), "node") == WINDOW
    with pytest.raises(Disputed) as caught:
        channel.adopt(grant(channel.best, earned=true + WINDOW + 1), "node")
    assert (caught.value.claimed, caught.value.counted) == (true + WINDOW + 1, true)
    assert channel.sent == true
    assert purse_of(channel, window=0).last() == true


@pytest.mark.parametrize("claimed", [0, 10**6 - 1])
def test_an_amount_that_nobody_signed_is_not_believed(claimed: int) -> None:
    channel = channel_of()
    for signature in (b"", bytes(64), DIGESTS.sign(KEY.id, 10**6, STRANGER).signature):
        with pytest.raises(BadSignature):
            channel.adopt(grant(Voucher(KEY.id, 10**6, signature), earned=10**6), "node", claimed=claimed)
    other = VoucherDigests(Domain(1, HERE.contract)).sign(KEY.id, 10**6, SIGNERS[0])
    with pytest.raises(BadSignature):
        channel.adopt(grant(other, earned=10**6), "node", claimed=claimed)
    assert (channel.best.cumulative, channel.sent) == (0, 0)


def test_what_the_ledger_has_paid_was_signed() -> None:
    channel = channel_of()
    assert channel.adopt(grant(Voucher(KEY.id, 500, b""), earned=500), "node", claimed=500) == 0
    assert (channel.best.cumulative, channel.sent, channel.done) == (500, 500, 500)


def test_a_client_that_lost_its_state_adopts_its_own_voucher() -> None:
    channel = channel_of()
    channel.is_known = False
    channel.lost = 77
    theirs = DIGESTS.sign(KEY.id, 5000, SIGNERS[0])
    assert channel.adopt(grant(theirs, earned=5300), "node") == 300
    assert (channel.best, channel.sent, channel.done, channel.lost) == (theirs, 5000, 5000, 0)
    assert channel.is_known
    # What was paid ahead is not written off, if the node says so itself.
    ahead = channel_of()
    ahead.is_known = False
    assert ahead.adopt(grant(theirs, earned=4000), "node") == 0
    assert ahead.sent == 4000


def test_steps_whose_answers_were_lost_are_paid_once_if_they_were_served() -> None:
    channel = channel_of()
    purse = purse_of(channel)
    purse.send("decode", 0, 1, 0)
    purse.send("decode", 1, 1, 0)
    purse.close()
    assert (channel.sent, channel.lost) == (0, 2 * TOKEN)
    assert channel.adopt(grant(channel.best, earned=TOKEN), "node") == 0
    assert (channel.sent, channel.done, channel.lost) == (TOKEN, TOKEN, TOKEN)
    assert channel.adopt(grant(channel.best, earned=TOKEN), "node") == 0
    assert (channel.sent, channel.lost) == (TOKEN, TOKEN)
    assert channel.adopt(grant(channel.best, earned=3 * TOKEN), "node") == TOKEN


def test_a_hop_that_asks_gets_no_more_than_was_sent_to_it() -> None:
    channel = channel_of()
    purse = purse_of(channel)
    purse.send("decode", 0, 1, 0)
    assert purse.asked(5) == 5
    assert purse.asked(10**9) == TOKEN
    purse.close()
    assert (channel.sent, channel.lost) == (0, TOKEN)
    # It may have served what this client never saw an answer of, once.
    again = purse_of(channel)
    again.send("decode", 0, 1, 0)
    assert again.asked(10**9) == 2 * TOKEN
    assert again.asked(10**9) == 2 * TOKEN
    assert channel.lost == 0


def test_answers_belong_to_steps_in_their_order() -> None:
    channel = channel_of()
    purse = purse_of(channel)
    purse.send("decode", 0, 1, 0)
    purse.send("prefill", 1, 1000, 0)
    purse.answered()
    assert (purse.spent, channel.done) == (TOKEN, TOKEN)
    purse.answered()
    assert purse.spent == channel.done == channel.sent


def test_budgets_stop_a_step_before_it_is_sent() -> None:
    channel = channel_of()
    request, day = Budget("of the request", 10 * TOKEN), Budget("of the day", 5 * TOKEN, TOKEN, "credits")
    purse = purse_of(channel, request, day)
    with pytest.raises(OverBudget, match="of the day"):
        run(purse, 10)
    assert purse.spent == 4 * TOKEN
    assert (request.spent, day.spent) == (4 * TOKEN, 5 * TOKEN)
    assert channel.sent == 4 * TOKEN
    purse.close()
    assert (request.spent, day.spent) == (4 * TOKEN, 5 * TOKEN)


def test_what_was_not_delivered_is_given_back_to_the_budget() -> None:
    budget = Budget("of the request", None)
    purse = purse_of(channel_of(), budget)
    purse.begin(10, 5)
    opening = 20 * QUOTE.rates.cached + 5 * QUOTE.rates.page_second
    assert budget.spent == 0
    purse.send("decode", 0, 1, 0)
    assert budget.spent == opening + TOKEN
    purse.answered()
    purse.send("decode", 1, 1, 0)
    purse.close()
    assert budget.spent == opening + TOKEN == purse.spent


def test_nothing_is_signed_above_what_the_channel_holds() -> None:
    channel = channel_of(allocated=3 * TOKEN)
    purse = purse_of(channel, window=0)
    assert run(purse, 10) == 3 * TOKEN
    assert purse.last() == 0


def test_nothing_is_signed_above_what_the_store_knows() -> None:
    channel = channel_of()
    channel.ceiling = 5
    channel.sent = 100
    assert channel.sign(5).cumulative == 5
    with pytest.raises(AssertionError):
        channel.sign(6)
    assert channel.sign(2).cumulative == 5
