"""What a client still knows after it was killed: never less than it has signed."""

from pathlib import Path

import pytest

from swarm_ledger.channels import Domain, Voucher
from swarm_ledger.client_store import STEPS, ClientStore, Raise
from swarm_ledger.errors import OverBudget
from swarm_ledger.spending import SpendingChannel
from tests.ledger.parties import HERE, SIGNERS, key_of

DAY = 19_000


def funded(store: ClientStore, salt: int = 0, allocated: int = 1600) -> SpendingChannel:
    channel = store.add(key_of(salt=salt), SIGNERS[0], HERE)
    store.allocate(channel, allocated)
    channel.sent = allocated
    return channel


def raise_to(store: ClientStore, channel: SpendingChannel, cumulative: int, limit: int | None = None) -> None:
    store.raise_ceilings([Raise(channel, cumulative)], day=DAY, currency="credits", limit=limit)


def spent(store: ClientStore) -> int:
    return store.spent(DAY, "credits")


def test_a_channel_that_was_put_away_is_taken_up_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "client.db"
    store = ClientStore(file)
    channel = funded(store)
    raise_to(store, channel, 500)
    channel.sign(500)
    channel.sent, channel.done, channel.lost = 640, 600, 40
    store.put_away([channel])
    assert channel.ceiling == 500
    store.close()
    store = ClientStore(file)
    (again,) = store.channels(HERE)
    assert again.is_known
    assert again.signer.address == SIGNERS[0].address
    assert (again.key, again.best, again.ceiling) == (channel.key, channel.best, 500)
    assert (again.allocated, again.sent, again.done, again.lost) == (1600, 640, 600, 40)
    assert store.channels(Domain(1, HERE.contract)) == []
    assert spent(store) == 500
    store.close()


def test_most_vouchers_need_no_writing() -> None:
    store = ClientStore(None)
    channel = funded(store)
    ceilings = set()
    for cumulative in range(1, 1601):
        raise_to(store, channel, cumulative)
        channel.sign(cumulative)
        ceilings.add(channel.ceiling)
    assert len(ceilings) <= STEPS
    assert max(ceilings) == 1600


def test_a_channel_that_was_not_put_away_counts_up_to_its_ceiling(tmp_path: Path) -> None:
    file = tmp_path / "client.db"
    store = ClientStore(file)
    channel = funded(store)
    raise_to(store, channel, 100)
    channel.sign(100)
    raise_to(store, channel, 180)
    best = channel.sign(150)
    store.close()  # as if killed: nothing was put away
    store = ClientStore(file)
    (again,) = store.channels(HERE)
    assert not again.is_known
    assert again.best == Voucher(channel.id, 0, b"")
    assert again.ceiling == channel.ceiling >= 180
    assert spent(store) == channel.ceiling
    # The payee may hold back a higher voucher than it shows: what was reserved then stays spent.
    again.best = best
    store.put_away([again])
    assert spent(store) == channel.ceiling
    store.close()


def test_the_budget_of_a_day_holds_for_all_channels_together(tmp_path: Path) -> None:
    file = tmp_path / "client.db"
    store = ClientStore(file)
    first, second = funded(store), funded(store, salt=1)
    store.raise_ceilings([Raise(first, 300), Raise(second, 300)], day=DAY, currency="credits", limit=700)
    assert first.ceiling + second.ceiling == spent(store) == 700
    with pytest.raises(OverBudget, match="700 credits spent, the budget of the day is 700 credits"):
        raise_to(store, first, first.ceiling + 1, limit=700)
    assert spent(store) == 700
    first.sign(300)
    second.sign(300)
    store.put_away([first, second])
    assert spent(store) == 600
    raise_to(store, first, 400, limit=700)
    assert first.ceiling == 400
    store.close()
    store = ClientStore(file)
    assert spent(store) == 700
    store.raise_ceilings([Raise(store.channels(HERE)[0], 500)], day=DAY + 1, currency="credits", limit=700)
    assert spent(store) == 700
    store.close()


def test_money_reserved_on_one_day_is_not_given_back_on_another() -> None:
    store = ClientStore(None)
    channel = funded(store)
    raise_to(store, channel, 100)
    channel.sign(100)
    first_ceiling = channel.ceiling
    store.raise_ceilings([Raise(channel, first_ceiling + 1)], day=DAY + 1, currency="credits")
    channel.sign(first_ceiling)
    store.put_away([channel])
    assert store.spent(DAY, "credits") == first_ceiling
    assert store.spent(DAY + 1, "credits") == 0


def test_nothing_is_reserved_beyond_what_a_channel_holds() -> None:
    store = ClientStore(None)
    channel = funded(store, allocated=100)
    raise_to(store, channel, 10**30)
    assert channel.ceiling == spent(store) == 100


def test_a_channel_is_known_before_it_is_opened_and_forgotten_when_it_is_closed(tmp_path: Path) -> None:
    file = tmp_path / "client.db"
    store = ClientStore(file)
    store.add(key_of(), SIGNERS[0], HERE)
    store.close()
    store = ClientStore(file)
    (channel,) = store.channels(HERE)
    assert (channel.allocated, channel.is_known) == (0, True)
    store.forget(channel.id)
    assert store.channels(HERE) == []
    store.close()
