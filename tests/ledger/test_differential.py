"""The same history on the bank and on the contract: the same verdicts, the same money."""

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis.stateful import initialize, invariant

from swarm_ledger.accounts import Address
from swarm_ledger.bank import Bank
from swarm_ledger.channels import ChannelId, ChannelKey, ChannelState, Claim
from swarm_ledger.errors import Refused
from swarm_ledger.ledger import Opening
from tests.ledger.histories import DELAY_S, History
from tests.ledger.parties import PAYERS
from tests.ledger.test_bank import LedgerHistory

pytest.importorskip("pyrevm", reason="there are no wheels of pyrevm for this machine")

from tests.ledger.contract_on_revm import SHIPPED, ContractOnRevm

_Found = TypeVar("_Found")


class Pair:
    """The contract and a bank with its address; every call goes to both, and must come to the same."""

    def __init__(self, bytecode: str) -> None:
        self.contract = ContractOnRevm(bytecode)
        self.domain = self.contract.domain
        self.bank = Bank(None, self.domain.contract, close_delay_s=DELAY_S)

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
    """The bank's histories, on both."""

    @initialize()
    def begin(self) -> None:
        self.pair = Pair(json.loads(SHIPPED.read_text())["bytecode"])
        self.history = History(self.pair)
        for payer in PAYERS:
            self.history.deposit(payer.address, 1000)

    @invariant()
    def the_contract_holds_what_it_owes(self) -> None:
        reference = self.history.reference
        assert self.pair.contract.held == reference.deposited - reference.withdrawn


TestPairHistory = PairHistory.TestCase
TestPairHistory.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


def test_both_compute_the_same_domain() -> None:
    contract = ContractOnRevm(json.loads(SHIPPED.read_text())["bytecode"])
    assert contract.separator == contract.domain.separator
