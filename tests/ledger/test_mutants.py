"""Each of these mistakes in a ledger is caught by the histories that the real ones pass.

A mutant is the real source with one place changed. It counts as caught when a bounded history, always the same,
deviates from the reference: a mutant that survives says that the tests would not have noticed.
"""

import importlib.resources
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
from coincurve import PrivateKey

import swarm_ledger
from swarm_ledger.accounts import HALF_ORDER, Account, Address, signer_of
from swarm_ledger.bank import Bank
from swarm_ledger.bank_messages import Nothing, WithdrawBody, encode, read_reply, write_request
from swarm_ledger.bank_service import BankService
from swarm_ledger.errors import BadSignature, BrokenStore, LedgerError
from swarm_ledger.sections import amount_bytes
from swarm_ledger.starting_credit import StartingCredit
from tests.ledger.histories import DELAY_S, START_S, Under, random_history
from tests.ledger.parties import BANK, ORDER, PAYERS, STRANGER, twin

HISTORIES, STEPS = 12, 60  # what every mutant has to survive; most fall in the first

BANK_MUTANTS = {
    "pays the cumulative, not the delta": ("paid = claimed - state.claimed\n", "paid = claimed\n"),
    "an older voucher takes back": ("if paid <= 0:", "if paid == 0:"),
    "pays more than the allocation": ("min(claim.cumulative, state.allocated)", "claim.cumulative"),
    "does not look at signatures": (
        "self._digests.check(Voucher(channel, claim.cumulative, claim.signature), key.signer)",
        "_ = Voucher",
    ),
    "takes the wallet's key for the session's": ("claim.signature), key.signer)", "claim.signature), key.payer)"),
    "pays from closed channels": (
        "if state is None or state.is_closed:\n            return 0",
        "if state is None:\n            return 0",
    ),
    "pays the payer": ("self._add(key.payee, paid)", "self._add(key.payer, paid)"),
    "forgets the delay": ("if now_s < state.closes_at_s:", "if now_s < 0:"),
    "anybody may finish": ("if caller != key.payee:", "if caller == key.payer:"),
    "needs no request to close": (
        "if not state.closes_at_s:\n                    raise NotClosing",
        "if False:\n                    raise NotClosing",
    ),
    "anybody may ask to close": ("caller not in (None, key.payer)", "caller == b''"),
    "restarts the delay": (
        "if state.closes_at_s:\n                raise AlreadyClosing",
        "if False:\n                raise AlreadyClosing",
    ),
    "forgets the tombstone": (
        "self._put(key.id, replace(state, is_closed=True))",
        "self.store.execute('DELETE FROM channels WHERE id = ?', key.id)",
    ),
    "refunds what was claimed": ("refund = state.allocated - state.claimed", "refund = state.allocated"),
    "a top-up leaves the close standing": (", closes_at_s=0))", "))"),
    "a top-up costs nothing": ("self._add(caller, -amount)\n            self._put", "self._put"),
    "debits the first opening only": (
        "-sum(opening.amount for opening in openings)",
        "-sum(opening.amount for opening in openings[:1])",
    ),
    "opens some of several": (
        "with self.store.transaction():\n            for opening in openings",
        "if True:\n            for opening in openings",
    ),
    "keeps what a refused batch has paid": (
        "with self.store.transaction():\n            paid = sum(",
        "if True:\n            paid = sum(",
    ),
    "withdraws without debit": ("self._add(caller, -amount)\n            row", "row"),
    "opens channels to nobody": (
        "if NOBODY in (key.payee, key.signer) or key.payee == caller:",
        "if key.payee == caller:",
    ),
}

SERVICE_MUTANTS = {
    "does a request again when it is repeated": ("if known is not None:", "if known is None and known:"),
    "takes another request with a known id": ("if known[0] != digest:", "if False:"),
    "does what has expired": (
        "if request.expires_s <= now_s or self._answered.is_forgotten(request.expires_s):",
        "if self._answered.is_forgotten(request.expires_s):",
    ),
    "does what it has forgotten": (" or self._answered.is_forgotten(request.expires_s)", ""),
    "lets requests live for ever": ("if request.expires_s > now_s + MAX_LIFETIME_S:", "if False:"),
    "serves who signs nothing": ("if verb.needs_account and not request.account:", "if False:"),
    "gives credit without counting": (
        "count_starting_credit(self.bank.store, offer, asked.account, asked.origin, asked.now_s)\n",
        "pass\n",
    ),
    "does not count a network's requests": ("if count > self._most_per_minute:", "if False:"),
}

CONTRACT_MUTANTS = {
    "pays the cumulative, not the delta": ("unsafe_sub(reached, claimed)", "reached"),
    "pays more than the allocation": (
        "min(convert(claim.cumulative, uint256), slot & AMOUNT_MASK)",
        "convert(claim.cumulative, uint256) & AMOUNT_MASK",
    ),
    "does not look at signatures": ("signer != empty(address) and signer == claim.signer", "signer != empty(address)"),
    "pays from closed channels": ("if slot == 0 or slot >> CLOSED_SHIFT != 0:", "if slot == 0:"),
    "an older voucher takes back": ("if reached <= claimed:", "if reached == claimed:"),
    "forgets the delay": ("assert block.timestamp >= closes_at", "assert block.timestamp >= 0"),
    "anybody may finish": ("if msg.sender != payee:", "if msg.sender == payer:"),
    "forgets the tombstone": ("self.slots[id] = slot | CLOSED", "self.slots[id] = 0"),
    "refunds what was claimed": (
        "(slot & AMOUNT_MASK) - ((slot >> CLAIMED_SHIFT) & AMOUNT_MASK)",
        "slot & AMOUNT_MASK",
    ),
    "a top-up leaves the close standing": ("allocated | (slot & CLAIMED_MASK)", "allocated | (slot & ~AMOUNT_MASK)"),
    "a top-up forgets what was claimed": ("allocated | (slot & CLAIMED_MASK)", "allocated"),
    "debits the last opening only": ("total += opening.amount", "total = opening.amount"),
    "pays a batch to its last payee": ("self.balance_of[payee] += due\n            payee", "payee"),
    "withdraws without debit": ("    self._spend(amount)\n    log Withdrawn", "    log Withdrawn"),
}


def test_the_bank_itself_survives() -> None:
    refused: set[str] = set()
    paid = 0
    for seed in range(HISTORIES):
        history = random_history(Bank(None, BANK.address, close_delay_s=DELAY_S), seed, STEPS)
        refused |= history.refused
        paid += history.paid
    assert refused == {
        *("party", "amount", "funds", "exists", "no channel", "signature"),
        *("nothing to claim", "not closing", "early", "closing"),
    }
    assert paid > 0


@pytest.mark.parametrize("name", BANK_MUTANTS)
def test_mutants_of_the_bank_are_caught(name: str) -> None:
    with mutant("bank", *BANK_MUTANTS[name]) as module:
        assert is_caught(lambda: module.Bank(None, BANK.address, close_delay_s=DELAY_S))


@pytest.mark.parametrize("name", CONTRACT_MUTANTS)
def test_mutants_of_the_contract_are_caught(name: str) -> None:
    pytest.importorskip("pyrevm", reason="there are no wheels of pyrevm for this machine")
    from tests.ledger.contract_driver import SOURCE
    from tests.ledger.contract_on_revm import ContractOnRevm

    bytecode = compiled(changed(SOURCE.read_text(), *CONTRACT_MUTANTS[name]))
    assert is_caught(lambda: ContractOnRevm(bytecode))


def test_the_contract_itself_survives() -> None:
    pytest.importorskip("pyrevm", reason="there are no wheels of pyrevm for this machine")
    from tests.ledger.contract_driver import SOURCE
    from tests.ledger.contract_on_revm import ContractOnRevm

    bytecode = compiled(SOURCE.read_text())
    for seed in range(HISTORIES):
        random_history(ContractOnRevm(bytecode), seed, STEPS)


@pytest.mark.parametrize("name", SERVICE_MUTANTS)
def test_mutants_of_the_service_are_caught(name: str) -> None:
    with mutant("bank_service", *SERVICE_MUTANTS[name]) as module, pytest.raises((AssertionError, LedgerError)):
        check_service(module.BankService)


def test_the_service_itself_survives() -> None:
    check_service(BankService)


def test_a_mutant_that_takes_both_signatures_of_one_is_caught() -> None:
    digest, signature, address = signature_with_a_twin()
    with mutant("accounts", "if s > HALF_ORDER:", "if s > 1 << 255:") as module:
        assert module.signer_of(digest, signature) == address
        assert module.signer_of(digest, twin(signature)) == address
    assert signer_of(digest, signature) == address
    with pytest.raises(BadSignature):
        signer_of(digest, twin(signature))


def check_service(service: type[BankService]) -> None:
    """Ask a bank for what it must do once, or not at all."""
    bank = Bank(None, BANK.address)
    offer = StartingCredit(amount=10, most_per_network_and_day=20, most_in_total=30)
    under = service(bank, BANK, offer, most_per_minute=20)
    payer = PAYERS[0]
    bank.deposit(payer.address, 1000, START_S)
    numbers = itertools.count(1)

    def request(account: Account | None, expires_s: int, method: str = "withdraw", number: int = 0) -> bytes:
        body = WithdrawBody(amount_bytes(100), STRANGER.address) if method == "withdraw" else Nothing()
        request_id = (number or next(numbers) + 1000).to_bytes(16, "big")
        return write_request(
            method, encode(body), bank=BANK.address, account=account, request_id=request_id, expires_s=expires_s
        )

    def verdict(data: bytes, now_s: int = START_S, method: str = "withdraw", origin: str = "192.0.2.1") -> str:
        return read_reply(method, data, under.handle(method, data, origin=origin, now_s=now_s), BANK.address).verdict

    first = request(payer, START_S + 100, number=1)
    assert [verdict(first), verdict(first), bank.balance(payer.address)] == ["ok", "ok", 900]
    assert verdict(request(payer, START_S + 101, number=1)) == "rejected"
    assert verdict(request(payer, START_S - 1)) == "expired"
    assert verdict(request(payer, START_S + 10_000)) == "rejected"
    assert verdict(request(None, START_S + 100)) == "rejected"
    assert verdict(request(None, START_S + 100, "balance"), method="balance") == "rejected"
    assert bank.balance(payer.address) == 900
    origins = ["192.0.2.1", "192.0.2.1", "192.0.2.1", "2001:db8::1", "2001:db8:0:1::1"]
    credited = [Account(bytes([number]) * 32) for number in range(100, 100 + len(origins))]
    asked = [
        (request(account, START_S + 200, "claim_credit"), origin)
        for account, origin in zip(credited, origins, strict=True)
    ]
    given = [verdict(data, START_S + 120, "claim_credit", origin) for data, origin in asked]
    assert given == ["ok", "ok", "no credit", "ok", "no credit"]
    again = request(credited[0], START_S + 200, "claim_credit")
    assert verdict(again, START_S + 120, "claim_credit", "198.51.100.7") == "no credit"
    asks = [request(payer, START_S + 400, "balance") for _ in range(21)]
    assert [verdict(data, START_S + 300, "balance") for data in asks] == ["ok"] * 20 + ["rejected"]
    # Long after, the first request is forgotten, and then the clock is set back.
    assert verdict(request(payer, START_S + 8000), START_S + 7900) == "ok"
    assert [verdict(first), bank.balance(payer.address)] == ["expired", 800]


def is_caught(make: Callable[[], Under]) -> bool:
    """Tell whether one of the histories comes out otherwise than on the reference, or breaks the ledger."""
    for seed in range(HISTORIES):
        try:
            random_history(make(), seed, STEPS)
        except (AssertionError, BrokenStore, OverflowError):
            return True
    return False


@contextmanager
def mutant(name: str, original: str, replacement: str) -> Iterator[ModuleType]:
    """Import a module of the ledger with one place changed, under another name."""
    source = (importlib.resources.files(swarm_ledger) / f"{name}.py").read_text()
    module = ModuleType(f"{name}_mutant")
    sys.modules[module.__name__] = module  # where dataclasses and msgspec look their annotations up
    try:
        exec(compile(changed(source, original, replacement), module.__name__, "exec"), module.__dict__)
        yield module
    finally:
        del sys.modules[module.__name__]


def changed(source: str, original: str, replacement: str) -> str:
    assert source.count(original) == 1, f"{original!r} stands {source.count(original)} times in the source"
    return source.replace(original, replacement)


def compiled(source: str) -> str:
    vyper = pytest.importorskip("vyper")
    code: str = vyper.compile_code(source, output_formats=["bytecode"])["bytecode"]
    return code


def signature_with_a_twin() -> tuple[bytes, bytes, Address]:
    """Return a signature so close to the middle that 64 bytes hold its twin; nobody meets one, but it can be made.

    The secret is computed from the signature: secret = (s * nonce - digest) / r.
    """
    digest, nonce, s = b"\x11" * 32, 12345, HALF_ORDER - 7
    point = PrivateKey(nonce.to_bytes(32, "big")).public_key.point()
    r = point[0] % ORDER
    secret = (s * nonce - int.from_bytes(digest, "big")) * pow(r, -1, ORDER) % ORDER
    parity_and_s = s | (point[1] & 1) << 255
    return digest, r.to_bytes(32, "big") + parity_and_s.to_bytes(32, "big"), Account(secret.to_bytes(32, "big")).address
