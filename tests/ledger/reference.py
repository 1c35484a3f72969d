"""What a ledger has to do, in the fewest words: the model that the bank and the contract are compared with.

Written from the rules, not from either of them. It knows no signatures: who compares says which claims are good.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from swarm_ledger.accounts import NOBODY, Address
from swarm_ledger.channels import MAX_AMOUNT, ChannelKey, ChannelState
from swarm_ledger.ledger import Opening


class No(Exception):
    """A refusal, by its code."""


@dataclass
class Pot:
    key: ChannelKey
    allocated: int
    claimed: int = 0
    closes_at_s: int = 0
    is_closed: bool = False


class Reference:
    """Everybody's money, without a file, a signature or an account's key."""

    def __init__(self, contract: Address, close_delay_s: int) -> None:
        self.contract = contract
        self.close_delay_s = close_delay_s
        self.free: defaultdict[Address, int] = defaultdict(int)
        self.pots: dict[bytes, Pot] = {}
        self.deposited = self.withdrawn = 0

    def state(self, key: ChannelKey) -> ChannelState | None:
        pot = self.pots.get(key.id)
        return None if pot is None else ChannelState(pot.allocated, pot.claimed, pot.closes_at_s, pot.is_closed)

    def deposit(self, account: Address, amount: int) -> None:
        need(amount > 0, "amount")
        self.free[account] += amount
        self.deposited += amount

    def open(self, caller: Address, openings: Sequence[Opening]) -> None:
        new: dict[bytes, Pot] = {}
        for opening in openings:
            key = ChannelKey(caller, opening.payee, opening.signer, opening.salt)
            need(opening.payee not in (NOBODY, caller) and opening.signer != NOBODY, "party")
            need(0 < opening.amount <= MAX_AMOUNT, "amount")
            need(key.id not in self.pots and key.id not in new, "exists")
            new[key.id] = Pot(key, opening.amount)
        self.spend(caller, sum(pot.allocated for pot in new.values()))
        self.pots.update(new)

    def top_up(self, caller: Address, key: ChannelKey, amount: int) -> None:
        pot = self.open_pot(key, caller)
        need(0 < amount <= MAX_AMOUNT - pot.allocated, "amount")
        self.spend(caller, amount)
        pot.allocated += amount
        pot.closes_at_s = 0

    def redeem(self, claims: Sequence[tuple[ChannelKey, int, bool]]) -> int:
        need(all(is_good for _, _, is_good in claims), "signature")
        paid = 0
        for key, cumulative, _ in claims:
            pot = self.pots.get(key.id)
            if pot is not None and not pot.is_closed:
                due = max(0, min(cumulative, pot.allocated) - pot.claimed)
                pot.claimed += due
                self.free[key.payee] += due
                paid += due
        need(paid > 0, "nothing to claim")
        return paid

    def request_close(self, caller: Address, key: ChannelKey, now_s: int) -> None:
        pot = self.open_pot(key, caller)
        need(not pot.closes_at_s, "closing")
        pot.closes_at_s = now_s + self.close_delay_s

    def finish_close(self, caller: Address, key: ChannelKey, now_s: int) -> None:
        pot = self.open_pot(key)
        if caller != key.payee:
            need(pot.closes_at_s != 0, "not closing")
            need(now_s >= pot.closes_at_s, "early")
        pot.is_closed = True
        self.free[key.payer] += pot.allocated - pot.claimed

    def withdraw(self, caller: Address, amount: int, to: Address) -> None:
        need(to not in (NOBODY, self.contract), "party")
        need(amount > 0, "amount")
        self.spend(caller, amount)
        self.withdrawn += amount

    def spend(self, caller: Address, amount: int) -> None:
        need(self.free[caller] >= amount, "funds")
        self.free[caller] -= amount

    def open_pot(self, key: ChannelKey, caller: Address | None = None) -> Pot:
        pot = self.pots.get(key.id)
        need(pot is not None and not pot.is_closed and caller in (None, key.payer), "no channel")
        assert pot is not None
        return pot


def need(condition: bool, code: str) -> None:
    if not condition:
        raise No(code)
