"""Histories of a ledger: what may happen, done to a ledger and to the reference, and compared after each step.

A history rarely redeems on an open channel unless the parties are few and some steps do a channel's whole life, so the
channels are eight and `life` is a step. Used with hypothesis (`test_bank.py`, `test_differential.py`) and, where it
must be quick and always the same, with seeds (`test_mutants.py`).
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from swarm_ledger.accounts import NOBODY, Address
from swarm_ledger.channels import MAX_AMOUNT, ChannelId, ChannelKey, ChannelState, Claim, Domain
from swarm_ledger.errors import Refused
from swarm_ledger.ledger import Opening
from tests.ledger.parties import EVERYBODY, PAYERS, SIGNERS, STRANGER, claim_of, key_of, twin
from tests.ledger.reference import No, Reference

KEYS = [key_of(payer, payee, 0, salt) for payer in (0, 1) for payee in (0, 1) for salt in (0, 1)]
DELAY_S = 1000
START_S = 1_700_000_000
Flaw = Literal["", "foreign", "altered", "twin", "other chain", "other contract", "other channel", "short"]
FLAWS: tuple[Flaw, ...] = ("foreign", "altered", "twin", "other chain", "other contract", "other channel", "short")


class Under(Protocol):
    """The ledger that is tested: the bank has these methods, and so has the contract's driver."""

    @property
    def domain(self) -> Domain: ...
    def balance(self, account: Address) -> int: ...
    def channel(self, channel: ChannelId) -> ChannelState | None: ...
    def deposit(self, account: Address, amount: int, now_s: float) -> None: ...
    def open(self, caller: Address, openings: Sequence[Opening], now_s: float) -> None: ...
    def top_up(self, caller: Address, key: ChannelKey, amount: int, now_s: float) -> None: ...
    def redeem(self, claims: Sequence[Claim], now_s: float) -> int: ...
    def request_close(self, caller: Address, key: ChannelKey, now_s: float) -> None: ...
    def finish_close(self, caller: Address, key: ChannelKey, now_s: float) -> None: ...
    def withdraw(self, caller: Address, amount: int, to: Address, now_s: float) -> None: ...


@dataclass(frozen=True)
class Draft:
    """A claim that is still to be signed, and what is wrong with it."""

    key: ChannelKey
    cumulative: int
    flaw: Flaw = ""

    def claim(self, domain: Domain) -> Claim:
        key, cumulative = self.key, self.cumulative
        if self.flaw == "foreign":
            return claim_of(key, cumulative, domain, SIGNERS[1])
        if self.flaw == "other chain":
            return Claim(key, cumulative, claim_of(key, cumulative, Domain(77, domain.contract)).signature)
        if self.flaw == "other contract":
            return Claim(key, cumulative, claim_of(key, cumulative, Domain(domain.chain_id, EVERYBODY[0])).signature)
        if self.flaw == "other channel":
            other = ChannelKey(key.payer, key.payee, key.signer, key.salt + 100)
            return Claim(key, cumulative, claim_of(other, cumulative, domain).signature)
        claim = claim_of(key, cumulative, domain)
        if self.flaw == "altered":
            return Claim(key, cumulative + 1, claim.signature)
        if self.flaw == "twin":
            return Claim(key, cumulative, twin(claim.signature))
        if self.flaw == "short":
            return Claim(key, cumulative, bytes(64))
        return claim


class History:
    """One history on a ledger and on the reference; every method is a step, and ends with both compared."""

    def __init__(self, ledger: Under, *, start_s: int = START_S, tick_s: int = 0) -> None:
        """`tick_s` passes before each call: blocks of a chain are never of one time."""
        self.ledger = ledger
        self.tick_s = tick_s
        self.reference = Reference(ledger.domain.contract, DELAY_S)
        self.now_s = start_s
        self.claimed: dict[bytes, int] = {}
        self.refused: set[str] = set()
        self.paid = 0

    def deposit(self, account: Address, amount: int) -> None:
        self._both(
            lambda: self.ledger.deposit(account, amount, self.now_s), lambda: self.reference.deposit(account, amount)
        )

    def open(self, caller: Address, openings: Sequence[Opening]) -> None:
        self._both(
            lambda: self.ledger.open(caller, openings, self.now_s), lambda: self.reference.open(caller, openings)
        )

    def top_up(self, caller: Address, key: ChannelKey, amount: int) -> None:
        self._both(
            lambda: self.ledger.top_up(caller, key, amount, self.now_s),
            lambda: self.reference.top_up(caller, key, amount),
        )

    def redeem(self, drafts: Sequence[Draft]) -> None:
        claims = [draft.claim(self.ledger.domain) for draft in drafts]
        plain = [(draft.key, draft.cumulative, not draft.flaw) for draft in drafts]
        self._both(lambda: self.ledger.redeem(claims, self.now_s), lambda: self.reference.redeem(plain))

    def request_close(self, caller: Address, key: ChannelKey) -> None:
        self._both(
            lambda: self.ledger.request_close(caller, key, self.now_s),
            lambda: self.reference.request_close(caller, key, self.now_s),
        )

    def finish_close(self, caller: Address, key: ChannelKey) -> None:
        self._both(
            lambda: self.ledger.finish_close(caller, key, self.now_s),
            lambda: self.reference.finish_close(caller, key, self.now_s),
        )

    def withdraw(self, caller: Address, amount: int, to: Address) -> None:
        self._both(
            lambda: self.ledger.withdraw(caller, amount, to, self.now_s),
            lambda: self.reference.withdraw(caller, amount, to),
        )

    def wait(self, seconds: int) -> None:
        self.now_s += seconds

    def life(self, key: ChannelKey, amount: int, cumulative: int, *, by_payee: bool) -> None:
        """Open a channel, redeem twice, close it, and try to come back."""
        opening = Opening(key.payee, key.signer, key.salt, amount)
        self.open(key.payer, [opening])
        self.redeem([Draft(key, cumulative)])
        self.redeem([Draft(key, cumulative // 2), Draft(key, cumulative)])
        if by_payee:
            self.finish_close(key.payee, key)
        else:
            self.request_close(key.payer, key)
            self.finish_close(key.payer, key)
            self.wait(DELAY_S)
            self.finish_close(key.payer, key)
        self.redeem([Draft(key, cumulative + 1)])
        self.open(key.payer, [opening])

    def check(self) -> None:
        """Compare every balance and channel; what follows from the rules is asserted as well."""
        reference = self.reference
        for account in EVERYBODY:
            assert self.ledger.balance(account) == reference.free[account]
        held = 0
        for key in KEYS:
            state = self.ledger.channel(key.id)
            assert state == reference.state(key)
            if state is None:
                continue
            assert 0 <= state.claimed <= state.allocated
            assert state.claimed >= self.claimed.get(key.id, 0), "what was claimed has shrunk"
            self.claimed[key.id] = state.claimed
            held += 0 if state.is_closed else state.allocated - state.claimed
        assert sum(reference.free.values()) + held == reference.deposited - reference.withdrawn

    def _both(self, real: Callable[[], int | None], model: Callable[[], int | None]) -> None:
        self.now_s += self.tick_s
        try:
            expected: object = model()
        except No as refusal:
            expected = str(refusal)
        try:
            found: object = real()
        except Refused as refusal:
            found = refusal.code
            self.refused.add(refusal.code)
        assert found == expected
        if isinstance(found, int):
            self.paid += found
        self.check()


def random_history(ledger: Under, seed: int, steps: int, *, start_s: int = START_S, tick_s: int = 0) -> History:
    """Run a history that is always the same. Raises AssertionError where the ledger deviates."""
    chance = random.Random(seed)
    history = History(ledger, start_s=start_s, tick_s=tick_s)
    for payer in PAYERS:
        history.deposit(payer.address, 1000)
    for _ in range(steps):
        _random_step(history, chance)
    return history


def _random_step(history: History, chance: random.Random) -> None:
    key, amount = chance.choice(KEYS), chance.randint(0, 400)
    caller = chance.choice(EVERYBODY) if chance.random() < 0.3 else key.payer
    match chance.randrange(10):
        case 0:
            history.deposit(caller, amount)
        case 1:
            some = chance.sample(KEYS, chance.randint(1, 3))
            most = MAX_AMOUNT + 1 if chance.random() < 0.05 else 300
            openings = [Opening(each.payee, each.signer, each.salt, chance.randint(0, most)) for each in some]
            if chance.random() < 0.1:
                nobody = chance.choice([(key.payer, key.signer), (NOBODY, key.signer), (key.payee, NOBODY)])
                openings.append(Opening(*nobody, 0, 1))
            history.open(key.payer, openings)
        case 2:
            history.top_up(caller, key, amount)
        case 3 | 4:
            flaw: Flaw = chance.choice(FLAWS) if chance.random() < 0.2 else ""
            drafts = [Draft(chance.choice(KEYS), chance.randint(0, 500)) for _ in range(chance.randint(0, 3))]
            history.redeem([*drafts, Draft(key, 2**128 - 2 if chance.random() < 0.05 else amount, flaw)])
        case 5:
            history.request_close(caller, key)
        case 6:
            history.finish_close(chance.choice([key.payer, key.payee, STRANGER.address]), key)
        case 7:
            history.withdraw(chance.choice([caller, key.payee]), amount // 4, caller)
        case 8:
            history.wait(chance.choice([1, 400, DELAY_S]))
        case _:
            history.life(key, chance.randint(1, 400), chance.randint(1, 500), by_payee=chance.random() < 0.5)
