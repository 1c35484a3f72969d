"""The bank under any history: the rules of ledgers hold, and its verdicts are those of the reference."""

from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from swarm_ledger.accounts import NOBODY
from swarm_ledger.bank import MAX_SUPPLY, Bank
from swarm_ledger.channels import MAX_AMOUNT, ChannelState, Claim, Domain
from swarm_ledger.currencies import CREDITS, ETHER
from swarm_ledger.errors import (
    BadAmount,
    BadParty,
    BadSignature,
    BrokenStore,
    ChannelExists,
    InsufficientFunds,
    NoChannel,
    NotClosing,
    NothingToClaim,
    TooEarly,
)
from swarm_ledger.ledger import Opening
from tests.ledger.histories import DELAY_S, FLAWS, KEYS, START_S, Draft, History
from tests.ledger.parties import (
    BANK,
    EVERYBODY,
    HERE,
    PAYEES,
    PAYERS,
    SIGNERS,
    STRANGER,
    claim_of,
    key_of,
    twin,
)

accounts = st.sampled_from(EVERYBODY)
keys = st.sampled_from(KEYS)
amounts = st.integers(0, 400) | st.sampled_from([1, MAX_AMOUNT, MAX_AMOUNT + 1])
drafts = st.builds(Draft, keys, st.integers(0, 600), st.sampled_from(["", "", "", *FLAWS]))


class LedgerHistory(RuleBasedStateMachine):
    """What may happen to a ledger, in any order; compared with the reference after each step."""

    history: History

    @initialize()
    def begin(self) -> None:
        self.history = History(Bank(None, BANK.address, close_delay_s=DELAY_S))
        for payer in PAYERS:
            self.history.deposit(payer.address, 1000)

    @rule(account=accounts, amount=amounts)
    def deposit(self, account: bytes, amount: int) -> None:
        self.history.deposit(account, min(amount, 2**100))  # type: ignore[arg-type]

    @rule(key=keys, others=st.lists(st.tuples(keys, amounts), max_size=2), amount=amounts)
    def open(self, key, others, amount) -> None:  # type: ignore[no-untyped-def]
        openings = [(key, amount), *others]
        self.history.open(key.payer, [Opening(each.payee, each.signer, each.salt, much) for each, much in openings])

    @rule(key=keys, caller=accounts, own=st.booleans(), amount=amounts)
    def top_up(self, key, caller, own, amount) -> None:  # type: ignore[no-untyped-def]
        self.history.top_up(key.payer if own else caller, key, amount)

    @rule(some=st.lists(drafts, min_size=1, max_size=4))
    def redeem(self, some: list[Draft]) -> None:
        self.history.redeem(some)

    @rule(key=keys, caller=accounts, own=st.booleans())
    def request_close(self, key, caller, own) -> None:  # type: ignore[no-untyped-def]
        self.history.request_close(key.payer if own else caller, key)

    @rule(key=keys, caller=accounts)
    def finish_close(self, key, caller) -> None:  # type: ignore[no-untyped-def]
        self.history.finish_close(caller, key)

    @rule(caller=accounts, amount=amounts, to=st.sampled_from([*EVERYBODY, NOBODY]))
    def withdraw(self, caller, amount, to) -> None:  # type: ignore[no-untyped-def]
        self.history.withdraw(caller, amount, to)

    @rule(key=keys, amount=st.integers(1, 400), cumulative=st.integers(1, 500), by_payee=st.booleans())
    def life(self, key, amount, cumulative, by_payee) -> None:  # type: ignore[no-untyped-def]
        self.history.life(key, amount, cumulative, by_payee=by_payee)

    @rule(seconds=st.sampled_from([1, 500, DELAY_S]))
    def wait(self, seconds: int) -> None:
        self.history.wait(seconds)


class BankHistory(LedgerHistory):
    """And the bank's own books, which are kept apart from balances and channels."""

    @invariant()
    def the_books_balance(self) -> None:
        bank = self.history.ledger
        assert isinstance(bank, Bank)
        totals = bank.totals()
        assert totals.free + totals.in_channels == totals.minted - totals.withdrawn
        assert totals.minted == self.history.reference.deposited
        assert totals.withdrawn == self.history.reference.withdrawn


TestBankHistory = BankHistory.TestCase
TestBankHistory.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)

KEY = KEYS[0]
PAYER, PAYEE = KEY.payer, KEY.payee


@pytest.fixture
def bank() -> Bank:
    """A bank where a channel holds 100, and its payer 900 more."""
    bank = Bank(None, BANK.address, close_delay_s=DELAY_S)
    bank.deposit(PAYER, 1000, START_S)
    bank.open(PAYER, [Opening(PAYEE, KEY.signer, KEY.salt, 100)], START_S)
    return bank


def test_a_voucher_redeemed_twice_pays_once(bank: Bank) -> None:
    assert bank.redeem([claim_of(KEY, 60)], START_S) == 60
    with pytest.raises(NothingToClaim):
        bank.redeem([claim_of(KEY, 60)], START_S)
    assert bank.redeem([claim_of(KEY, 70), claim_of(KEY, 70)], START_S) == 10
    assert bank.balance(PAYEE) == 70


def test_an_older_voucher_pays_nothing_and_stops_no_batch(bank: Bank) -> None:
    bank.redeem([claim_of(KEY, 60)], START_S)
    assert bank.redeem([claim_of(KEY, 10), claim_of(KEY, 65), claim_of(KEY, 20)], START_S) == 5
    assert bank.channel(KEY.id) == ChannelState(100, 65)


def test_a_voucher_above_the_allocation_pays_the_rest_after_a_top_up(bank: Bank) -> None:
    assert bank.redeem([claim_of(KEY, 150)], START_S) == 100
    bank.top_up(PAYER, KEY, 30, START_S)
    assert bank.redeem([claim_of(KEY, 150)], START_S) == 30
    assert bank.balance(PAYEE) == 130


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(Claim(KEY, 61, claim_of(KEY, 60).signature), id="altered amount"),
        pytest.param(claim_of(KEY, 60, signer=SIGNERS[1]), id="foreign key"),
        pytest.param(claim_of(KEY, 60, signer=PAYERS[0]), id="the wallet instead of the session key"),
        pytest.param(Claim(KEY, 60, twin(claim_of(KEY, 60).signature)), id="s in the upper half"),
        pytest.param(Claim(key_of(payee=1), 60, claim_of(KEY, 60).signature), id="swapped payee"),
        pytest.param(Claim(KEY, 60, claim_of(KEY, 60, Domain(1, BANK.address)).signature), id="another chain"),
        pytest.param(Claim(KEY, 60, claim_of(KEY, 60, Domain(0, PAYER)).signature), id="another bank"),
        pytest.param(Claim(KEY, 60, b""), id="unsigned"),
    ],
)
def test_a_claim_that_was_not_signed_exactly_so_changes_nothing(bank: Bank, claim: Claim) -> None:
    bank.open(PAYER, [Opening(PAYEES[1].address, KEY.signer, KEY.salt, 100)], START_S)
    with pytest.raises(BadSignature):
        bank.redeem([claim_of(KEY, 10), claim], START_S)
    assert bank.channel(KEY.id) == ChannelState(100, 0)
    assert bank.balance(PAYEE) == 0


def test_a_payer_cannot_finish_before_the_payee_had_time_to_redeem(bank: Bank) -> None:
    with pytest.raises(NotClosing):
        bank.finish_close(PAYER, KEY, START_S)
    bank.request_close(PAYER, KEY, START_S)
    for caller in (PAYER, STRANGER.address):
        with pytest.raises(TooEarly):
            bank.finish_close(caller, KEY, START_S + DELAY_S - 1)
    assert bank.redeem([claim_of(KEY, 60)], START_S + DELAY_S - 1) == 60
    bank.finish_close(PAYER, KEY, START_S + DELAY_S)
    assert bank.balance(PAYER) == 940
    with pytest.raises(NothingToClaim):
        bank.redeem([claim_of(KEY, 100)], START_S + DELAY_S)


def test_a_top_up_takes_a_close_back(bank: Bank) -> None:
    bank.request_close(PAYER, KEY, START_S)
    bank.top_up(PAYER, KEY, 1, START_S + 1)
    with pytest.raises(NotClosing):
        bank.finish_close(PAYER, KEY, START_S + 2 * DELAY_S)


def test_an_id_is_never_used_again(bank: Bank) -> None:
    bank.redeem([claim_of(KEY, 60)], START_S)
    bank.finish_close(PAYEE, KEY, START_S)
    with pytest.raises(ChannelExists):
        bank.open(PAYER, [Opening(PAYEE, KEY.signer, KEY.salt, 100)], START_S)
    with pytest.raises(NoChannel):
        bank.top_up(PAYER, KEY, 100, START_S)


def test_openings_are_all_made_or_none(bank: Bank) -> None:
    openings = [Opening(PAYEE, KEY.signer, salt, 500) for salt in (10, 11)]
    with pytest.raises(InsufficientFunds):
        bank.open(PAYER, openings, START_S)
    assert bank.channel(key_of(salt=10).id) is None
    assert bank.balance(PAYER) == 900


def test_parties_and_amounts_that_cannot_be(bank: Bank) -> None:
    for payee, signer in ((NOBODY, KEY.signer), (PAYER, KEY.signer), (PAYEE, NOBODY)):
        with pytest.raises(BadParty):
            bank.open(PAYER, [Opening(payee, signer, 9, 1)], START_S)
    for amount in (0, -1, MAX_AMOUNT + 1):
        with pytest.raises(BadAmount):
            bank.open(PAYER, [Opening(PAYEE, KEY.signer, 9, amount)], START_S)
        with pytest.raises(BadAmount):
            bank.top_up(PAYER, KEY, amount, START_S)
    for amount in (0, -1):
        with pytest.raises(BadAmount):
            bank.withdraw(PAYER, amount, PAYER, START_S)
        with pytest.raises(BadAmount):
            bank.deposit(PAYER, amount, START_S)
    with pytest.raises(BadAmount):
        bank.deposit(PAYER, MAX_SUPPLY, START_S)
    assert bank.balance(PAYER) == 900


def test_dust_is_kept_to_the_last_unit(bank: Bank) -> None:
    dust = [Opening(PAYEE, KEY.signer, salt, 1) for salt in range(100, 140)]
    bank.open(PAYER, dust, START_S)
    for opening in dust:
        key = key_of(salt=opening.salt)
        assert bank.redeem([claim_of(key, 2)], START_S) == 1
        bank.finish_close(PAYEE, key, START_S)
    assert (bank.balance(PAYER), bank.balance(PAYEE)) == (860, 40)


def test_amounts_beyond_64_bits_are_exact() -> None:
    bank = Bank(None, BANK.address)
    bank.deposit(PAYER, MAX_AMOUNT + 5, START_S)
    bank.open(PAYER, [Opening(PAYEE, KEY.signer, KEY.salt, MAX_AMOUNT)], START_S)
    assert bank.redeem([claim_of(KEY, 2**128 - 1)], START_S) == MAX_AMOUNT
    assert (bank.balance(PAYER), bank.balance(PAYEE)) == (5, MAX_AMOUNT)


def test_channels_are_listed_for_both_parties_page_by_page(bank: Bank) -> None:
    bank.open(PAYER, [Opening(PAYEE, KEY.signer, salt, 1) for salt in range(20, 25)], START_S)
    bank.finish_close(PAYEE, key_of(salt=20), START_S)
    everything = bank.channels(PAYEE, limit=100)
    assert {entry.key.salt for entry in everything} == {0, 21, 22, 23, 24}
    assert bank.channels(PAYER, limit=100) == everything
    assert bank.channels(STRANGER.address, limit=100) == []
    pages = bank.channels(PAYER, limit=2)
    while page := bank.channels(PAYER, after=pages[-1].key.id, limit=2):
        pages += page
    assert pages == everything


def test_history_tells_both_parties_newest_first(bank: Bank) -> None:
    bank.redeem([claim_of(KEY, 60)], START_S + 1)
    bank.request_close(PAYER, KEY, START_S + 2)
    bank.finish_close(PAYEE, KEY, START_S + 3)
    bank.withdraw(PAYEE, 60, STRANGER.address, START_S + 4)
    told = [(event.kind, event.amount, event.other) for event in bank.history(PAYEE, limit=10)]
    assert told == [
        ("withdrawn", 60, STRANGER.address),
        ("closed", 40, PAYER),
        ("closing", 0, PAYER),
        ("claimed", 60, PAYER),
        ("opened", 100, PAYER),
    ]
    assert [event.kind for event in bank.history(PAYER, limit=2)] == ["closed", "closing"]
    assert bank.history(PAYER, limit=10)[-1].kind == "deposited"


def test_a_bank_is_the_same_after_a_restart_and_refuses_another_key(tmp_path: Path) -> None:
    file = tmp_path / "bank.db"
    bank = Bank(file, BANK.address)
    bank.deposit(PAYER, 1000, START_S)
    bank.open(PAYER, [Opening(PAYEE, KEY.signer, KEY.salt, 100)], START_S)
    bank.close()
    with pytest.raises(BrokenStore, match="another key"):
        Bank(file, STRANGER.address)
    with pytest.raises(BrokenStore, match="currency"):
        Bank(file, BANK.address, currency=ETHER)
    again = Bank(file, BANK.address, currency=CREDITS)
    assert again.domain == HERE
    assert again.channel(KEY.id) == ChannelState(100, 0)
    assert again.balance(PAYER) == 900
    again.close()
