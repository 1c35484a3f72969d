"""The same history on the bank and on the contract: the same verdicts, the same money.

On pyrevm many histories, where there are wheels of it; on eth-tester, which makes blocks, some.
"""

import importlib.util
import json
from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis.stateful import initialize, invariant

from swarm_ledger.accounts import Address
from swarm_ledger.bank import Bank
from swarm_ledger.channels import ChannelId, ChannelKey, ChannelState, Claim, Domain, VoucherDigests
from swarm_ledger.errors import Refused
from swarm_ledger.ledger import Opening
from tests.ledger import contract_on_tester
from tests.ledger.contract_driver import SHIPPED, ContractDriver
from tests.ledger.contract_on_tester import ContractOnTester
from tests.ledger.histories import DELAY_S, START_S, History, random_history
from tests.ledger.parties import PAYERS
from tests.ledger.test_bank import LedgerHistory

HAS_REVM = importlib.util.find_spec("pyrevm") is not None
_Found = TypeVar("_Found")


class BankOnChain(Bank):
    """A bank that takes the vouchers of a contract."""

    def __init__(self, domain: Domain) -> None:
        super().__init__(None, domain.contract, close_delay_s=DELAY_S)
        self.domain = domain
        self._digests = VoucherDigests(domain)


class Pair:
    """The contract and a bank in its place; every call goes to both, and must come to the same."""

    def __init__(self, contract: ContractDriver) -> None:
        self.contract = contract
        self.domain = contract.domain
        self.bank = BankOnChain(self.domain)

    def balance(self, account: Address) -> int:
        return self._same(lambda: self.bank.balance(account), lambda: self.contract.balance(account))

    def channel(self, channel: ChannelId) -> ChannelState | None:
        return self._same(lambda: self.bank.channel(channel), lambda: self.contract.channel(channel))

    def deposit(self, account: Address, amount: int, now_s: float) -> None:
        self._same(
            lambda: self.bank.deposit(account, amount, now_s), lambda: self.contract.deposit(account, amount, now_s)
        )

    def open(self, caller: Address, openings: Sequence[Opening], now_s: float) -> None:
        self._same(lambda: self.bank.open(caller, openings, now_s), lambda: self.contract.open(caller, openings, now_s))

    def top_up(self, caller: Address, key: ChannelKey, amount: int, now_s: float) -> None:
        self._same(
            lambda: self.bank.top_up(caller, key, amount, now_s),
            lambda: self.contract.top_up(caller, key, amount, now_s),
        )

    def redeem(self, claims: Sequence[Claim], now_s: float) -> int:
        return self._same(lambda: self.bank.redeem(claims, now_s), lambda: self.contract.redeem(claims, now_s))

    def request_close(self, caller: Address, key: ChannelKey, now_s: float) -> None:
        self._same(
            lambda: self.bank.request_close(caller, key, now_s), lambda: self.contract.request_close(caller, key, now_s)
        )

    def finish_close(self, caller: Address, key: ChannelKey, now_s: float) -> None:
        self._same(
            lambda: self.bank.finish_close(caller, key, now_s), lambda: self.contract.finish_close(caller, key, now_s)
        )

    def withdraw(self, caller: Address, amount: int, to: Address, now_s: float) -> None:
        self._same(
            lambda: self.bank.withdraw(caller, amount, to, now_s),
            lambda: self.contract.withdraw(caller, amount, to, now_s),
        )

    def _same(self, bank: Callable[[], _Found], contract: Callable[[], _Found]) -> _Found:
        found, refusal = outcome(bank)
        found_there, refusal_there = outcome(contract)
        assert (type(refusal), found) == (type(refusal_there), found_there), "the bank's outcome, then the contract's"
        if refusal is not None:
            raise refusal
        return found  # type: ignore[return-value]


def outcome(call: Callable[[], _Found]) -> tuple[_Found | None, Refused | None]:
    """Return what a call returns, or why it was refused."""
    try:
        return call(), None
    except Refused as refusal:
        return None, refusal


class PairHistory(LedgerHistory):
    """The bank's histories, on both; subclasses say where the contract runs."""

    start_s, tick_s = START_S, 0

    def deployed(self) -> ContractDriver:
        """Deploy the contract as it is shipped."""
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        self.pair = Pair(self.deployed())
        self.history = History(self.pair, start_s=self.start_s, tick_s=self.tick_s)
        for payer in PAYERS:
            self.history.deposit(payer.address, 1000)

    @invariant()
    def the_contract_holds_what_it_owes(self) -> None:
        reference = self.history.reference
        assert self.pair.contract.held == reference.deposited - reference.withdrawn


class HistoryOnRevm(PairHistory):
    """On pyrevm."""

    def deployed(self) -> ContractDriver:
        from tests.ledger.contract_on_revm import ContractOnRevm

        return ContractOnRevm(bytecode())


class HistoryOnTester(PairHistory):
    """On eth-tester."""

    start_s, tick_s = contract_on_tester.START_S, 1

    def deployed(self) -> ContractDriver:
        return ContractOnTester(bytecode())


@pytest.mark.skipif(not HAS_REVM, reason="there are no wheels of pyrevm for this machine")
class TestHistoryOnRevm(HistoryOnRevm.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


class TestHistoryOnTester(HistoryOnTester.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(max_examples=8, stateful_step_count=20, deadline=None)


@pytest.mark.skipif(not HAS_REVM, reason="there are no wheels of pyrevm for this machine")
def test_both_compute_the_same_domain() -> None:
    contract = HistoryOnRevm().deployed()
    assert contract.separator == contract.domain.separator


def test_both_compute_the_same_domain_on_another_chain() -> None:
    contract = ContractOnTester(bytecode())
    assert contract.separator == contract.domain.separator


def test_some_histories_on_a_chain_with_blocks() -> None:
    refused: set[str] = set()
    for seed in range(4):
        pair = Pair(ContractOnTester(bytecode()))
        history = random_history(pair, seed, steps=40, start_s=contract_on_tester.START_S, tick_s=1)
        assert history.paid > 0
        assert pair.contract.held == history.reference.deposited - history.reference.withdrawn
        refused |= history.refused
    assert len(refused) >= 6


def bytecode() -> str:
    """Return the contract as it is shipped."""
    return str(json.loads(SHIPPED.read_text())["bytecode"])
