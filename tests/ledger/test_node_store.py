"""What a node still knows after it was killed."""

from pathlib import Path

import pytest

from swarm_ledger.channels import ChannelState, Domain, Voucher, VoucherDigests
from swarm_ledger.earning import EarningChannel, Earnings
from swarm_ledger.errors import BrokenStore
from swarm_ledger.node_store import EarnedTotals, NodeStore, Redemption
from tests.ledger.histories import START_S
from tests.ledger.parties import HERE, PAYEES, SIGNERS, STRANGER, key_of

PAYEE = PAYEES[0].address
DIGESTS = VoucherDigests(HERE)


def paid(earnings: Earnings, salt: int, cumulative: int, allocated: int = 10_000) -> EarningChannel:
    """Let a voucher come in."""
    key = key_of(salt=salt)
    channel = earnings.learn(key, ChannelState(allocated, 0))
    channel.best = DIGESTS.sign(key.id, cumulative, SIGNERS[0])
    earnings.unsaved[key.id] = channel
    return channel


def restored(file: Path) -> Earnings:
    """Return what the next process finds."""
    store = NodeStore(file, HERE, PAYEE)
    earnings = Earnings(DIGESTS, PAYEE)
    store.restore(earnings)
    store.close()
    return earnings


def test_all_channels_of_a_step_are_found_again(tmp_path: Path) -> None:
    file = tmp_path / "node.db"
    store, earnings = NodeStore(file, HERE, PAYEE), Earnings(DIGESTS, PAYEE)
    for salt in range(20):
        paid(earnings, salt, 100 + salt)
    store.save(earnings, most_at_risk=10**9)
    assert earnings.unsaved == {}
    store.close()
    again = restored(file)
    assert {channel.key: channel.best for channel in again.channels.values()} == {
        channel.key: channel.best for channel in earnings.channels.values()
    }
    channel = again.channels[key_of(salt=3).id]
    assert (channel.earned, channel.state) == (103, ChannelState(10_000, 0))


def test_a_lower_voucher_never_replaces_a_higher_one(tmp_path: Path) -> None:
    file = tmp_path / "node.db"
    store, earnings = NodeStore(file, HERE, PAYEE), Earnings(DIGESTS, PAYEE)
    for cumulative in (500, 300, 2**100, 7):
        paid(earnings, 0, cumulative)
        store.save(earnings, most_at_risk=10**9)
    store.close()
    best = restored(file).channels[key_of().id].best
    assert best == DIGESTS.sign(key_of().id, 2**100, SIGNERS[0])


def test_the_file_is_synchronized_when_a_window_would_be_lost() -> None:
    store, earnings = NodeStore(None, HERE, PAYEE), Earnings(DIGESTS, PAYEE)
    synchronized = []
    for salt, cumulative in ((0, 40), (1, 40), (0, 60), (0, 90), (1, 100), (0, 159), (1, 131)):
        paid(earnings, salt, cumulative)
        synchronized.append(store.save(earnings, most_at_risk=100))
    # 40, 80, 100!, 30, 90, 159!, 31
    assert synchronized == [False, False, True, False, False, True, False]
    assert store.save(earnings, most_at_risk=0)
    assert not store.save(earnings, most_at_risk=1)


def test_closed_channels_are_not_taken_up_but_stay_in_the_totals(tmp_path: Path) -> None:
    file = tmp_path / "node.db"
    store, earnings = NodeStore(file, HERE, PAYEE), Earnings(DIGESTS, PAYEE)
    first, second = paid(earnings, 0, 100), paid(earnings, 1, 700, allocated=500)
    store.save(earnings, most_at_risk=0)
    assert store.totals() == EarnedTotals(paid=800, redeemed=0, unclaimed=600)
    first.state = ChannelState(10_000, 100, is_closed=True)
    second.state = ChannelState(500, 200)
    store.record(Redemption(START_S, 300, 2, "0xabc"), [first, second])
    store.record(Redemption(START_S + 1, 5, 1), [])
    assert store.totals() == EarnedTotals(paid=800, redeemed=300, unclaimed=300)
    assert store.redemptions() == [Redemption(START_S + 1, 5, 1), Redemption(START_S, 300, 2, "0xabc")]
    assert store.redemptions(limit=1) == [Redemption(START_S + 1, 5, 1)]
    store.close()
    assert list(restored(file).channels) == [second.id]


def test_a_top_up_is_saved_with_the_next_voucher(tmp_path: Path) -> None:
    file = tmp_path / "node.db"
    store, earnings = NodeStore(file, HERE, PAYEE), Earnings(DIGESTS, PAYEE)
    for cumulative, allocated in ((700, 500), (800, 500), (900, 850), (910, 850)):
        paid(earnings, 0, cumulative, allocated)
        store.save(earnings, most_at_risk=10**9)
        assert store.totals().unclaimed == min(cumulative, allocated)
    store.close()
    channel = restored(file).channels[key_of().id]
    assert (channel.best.cumulative, channel.state) == (910, ChannelState(850, 0))


def test_what_was_claimed_without_a_known_voucher_is_kept_as_claimed(tmp_path: Path) -> None:
    file = tmp_path / "node.db"
    store, earnings = NodeStore(file, HERE, PAYEE), Earnings(DIGESTS, PAYEE)
    channel = earnings.learn(key_of(), ChannelState(100, 60))
    store.record(Redemption(START_S, 60, 1), [channel])
    store.close()
    assert restored(file).channels[channel.id].best == Voucher(channel.id, 60, b"")


@pytest.mark.parametrize(("domain", "payee"), [(Domain(1, HERE.contract), PAYEE), (HERE, STRANGER.address)])
def test_vouchers_of_another_ledger_or_account_are_not_mixed_in(tmp_path: Path, domain: Domain, payee: bytes) -> None:
    file = tmp_path / "node.db"
    NodeStore(file, HERE, PAYEE).close()
    with pytest.raises(BrokenStore, match="another ledger or another account"):
        NodeStore(file, domain, payee)  # type: ignore[arg-type]
