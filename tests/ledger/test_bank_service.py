"""A bank as others reach it: who may do what, what is done once, and what forgers and crowds get."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_ledger.accounts import Account
from swarm_ledger.bank import Bank
from swarm_ledger.bank_messages import (
    MAX_BATCH,
    MAX_REQUEST_BYTES,
    AmountResult,
    ChannelBody,
    Nothing,
    OpenBody,
    RedeemBody,
    Request,
    WithdrawBody,
    decode,
    encode,
    raw_claim,
    raw_opening,
    read_reply,
    write_request,
)
from swarm_ledger.bank_service import METHODS, BankService
from swarm_ledger.errors import BankRefused, BrokenStore
from swarm_ledger.ledger import Opening
from swarm_ledger.sections import amount_bytes
from swarm_ledger.starting_credit import StartingCredit, network_of
from tests.ledger.histories import KEYS, START_S
from tests.ledger.parties import BANK, PAYEES, PAYERS, STRANGER, claim_of, key_of

KEY = KEYS[0]
PAYER = PAYERS[0]
HOME = "192.0.2.1"


class Counter:
    """A bank with one rich account, and somebody who talks to it."""

    def __init__(self, offer: StartingCredit | None = None) -> None:
        self.bank = Bank(None, BANK.address)
        self.bank.deposit(PAYER.address, 1000, START_S)
        self.service = BankService(self.bank, BANK, offer)
        self.asked = 0

    def request(
        self, method: str, body: msgspec.Struct, account: Account | None = PAYER, *, expires_s: int = START_S + 60
    ) -> bytes:
        self.asked += 1
        request_id = self.asked.to_bytes(16, "big")
        return write_request(
            method, encode(body), bank=BANK.address, account=account, request_id=request_id, expires_s=expires_s
        )

    def send(self, method: str, data: bytes, *, origin: str = HOME, now_s: float = START_S) -> tuple[str, bytes]:
        reply = self.service.handle(method, data, origin=origin, now_s=now_s)
        answer = read_reply(method, data, reply, BANK.address)
        return answer.verdict, answer.result

    def ask(self, method: str, body: msgspec.Struct, account: Account | None = PAYER, *, origin: str = HOME) -> str:
        return self.send(method, self.request(method, body, account), origin=origin)[0]


WITHDRAW = WithdrawBody(amount_bytes(100), STRANGER.address)


def test_a_request_that_is_repeated_is_done_once_and_answered_alike() -> None:
    counter = Counter()
    data = counter.request("withdraw", WITHDRAW)
    assert counter.send("withdraw", data) == counter.send("withdraw", data) == ("ok", encode(Nothing()))
    # Even after it has expired, who has lost the answer gets it.
    assert counter.send("withdraw", data, now_s=START_S + 1000)[0] == "ok"
    assert counter.bank.balance(PAYER.address) == 900


def test_a_refusal_stays_one_for_the_same_request() -> None:
    counter = Counter()
    data = counter.request("withdraw", WithdrawBody(amount_bytes(1100), STRANGER.address))
    assert counter.send("withdraw", data) == ("refused", b"funds")
    counter.bank.deposit(PAYER.address, 1000, START_S)
    assert counter.send("withdraw", data) == ("refused", b"funds")
    assert counter.bank.balance(PAYER.address) == 2000


def test_an_expired_request_is_not_carried_out() -> None:
    counter = Counter()
    data = counter.request("withdraw", WITHDRAW, expires_s=START_S)
    assert counter.send("withdraw", data)[0] == "expired"
    assert counter.send("balance", counter.request("balance", Nothing(), expires_s=START_S))[0] == "expired"
    assert counter.bank.balance(PAYER.address) == 1000


def test_a_request_counts_for_its_method_its_bank_and_its_account_only() -> None:
    counter = Counter()
    data = counter.request("request_close", Nothing())
    assert counter.send("claim_credit", data)[0] == "rejected"
    elsewhere = write_request(
        *("withdraw", encode(WITHDRAW)),
        bank=STRANGER.address,
        account=PAYER,
        request_id=bytes(16),
        expires_s=START_S + 60,
    )
    assert counter.send("withdraw", elsewhere)[0] == "rejected"
    mine = msgspec.msgpack.decode(counter.request("withdraw", WITHDRAW, STRANGER), type=Request)
    stolen = Request(PAYER.address, mine.id, mine.expires_s, mine.body, mine.signature)
    assert counter.send("withdraw", encode(stolen))[0] == "rejected"
    assert counter.bank.balance(PAYER.address) == 1000


@given(place=st.integers(0, 10_000), change=st.integers(1, 255))
def test_a_request_with_any_byte_changed_moves_nothing(place: int, change: int) -> None:
    counter = Counter()
    meant = counter.request("withdraw", WITHDRAW)
    data = bytearray(meant)
    data[place % len(data)] ^= change
    if reads_the_same(data, meant):
        return
    assert counter.send("withdraw", bytes(data))[0] in ("rejected", "expired")
    assert counter.bank.balance(PAYER.address) == 1000


def reads_the_same(data: bytes, other: bytes) -> bool:
    """Tell whether this is only another spelling: MessagePack has several for one number."""
    try:
        return decode(bytes(data), Request) == decode(other, Request)
    except BankRefused:
        return False


@given(method=st.sampled_from([*sorted(METHODS), "deposit", "mint", ""]), data=st.binary(max_size=300))
def test_noise_is_rejected_with_a_signature(method: str, data: bytes) -> None:
    assert Counter().send(method, data)[0] == "rejected"


@given(method=st.sampled_from(sorted(METHODS)), body=st.binary(max_size=100))
def test_a_signed_request_with_noise_inside_changes_nothing(method: str, body: bytes) -> None:
    counter = Counter()
    data = write_request(method, body, bank=BANK.address, account=PAYER, request_id=bytes(16), expires_s=START_S + 60)
    before = counter.bank.totals()
    verdict, _ = counter.send(method, data)
    assert verdict in ("ok", "rejected", "refused", "no credit")
    assert counter.bank.totals() == before


@given(place=st.integers(0, 10_000), change=st.integers(1, 255))
def test_a_reply_with_any_byte_changed_is_not_believed(place: int, change: int) -> None:
    counter = Counter()
    data = counter.request("balance", Nothing())
    reply = bytearray(counter.service.handle("balance", data, origin=HOME, now_s=START_S))
    reply[place % len(reply)] ^= change
    with pytest.raises(BankRefused):
        read_reply("balance", data, bytes(reply), BANK.address)


def test_a_reply_belongs_to_one_request_and_one_bank() -> None:
    counter = Counter()
    old, new = (counter.request("balance", Nothing()) for _ in range(2))
    reply = counter.service.handle("balance", old, origin=HOME, now_s=START_S)
    for method, data, bank in (("balance", new, BANK), ("history", old, BANK), ("balance", old, STRANGER)):
        with pytest.raises(BankRefused):
            read_reply(method, data, reply, bank.address)
    with pytest.raises(BankRefused):
        read_reply("balance", old, b"", BANK.address)


def test_lengths_have_limits() -> None:
    counter = Counter()
    assert counter.send("balance", bytes(MAX_REQUEST_BYTES + 1))[0] == "rejected"
    raw = raw_opening(Opening(KEY.payee, KEY.signer, 1, 1))
    assert counter.ask("open", OpenBody((raw,) * (MAX_BATCH + 1))) == "rejected"
    assert counter.ask("open", OpenBody(())) == "rejected"
    claim = raw_claim(claim_of(KEY, 1))
    assert counter.ask("redeem", RedeemBody((claim,) * (MAX_BATCH + 1))) == "rejected"
    many = [Opening(KEY.payee, KEY.signer, 2**255 + salt, 2**90) for salt in range(MAX_BATCH)]
    assert counter.ask("open", OpenBody(tuple(raw_opening(each) for each in many))) == "refused"
    claims = [raw_claim(claim_of(key_of(salt=2**255 + salt), 2**128 - 1)) for salt in range(MAX_BATCH)]
    assert counter.ask("redeem", RedeemBody(tuple(claims))) == "refused"


def test_anybody_may_look_at_a_channel_but_not_at_an_account() -> None:
    counter = Counter()
    assert counter.ask("channel", ChannelBody(KEY.id), None) == "ok"
    assert counter.ask("info", Nothing(), None) == "ok"
    for method in sorted(METHODS - {"channel", "info"}):
        assert counter.ask(method, Nothing(), None) == "rejected"


def test_minting_is_no_method() -> None:
    counter = Counter()
    for method in ("deposit", "mint", "credit", "__init__"):
        assert counter.ask(method, Nothing(), BANK) == "rejected"
    assert not METHODS & {"deposit", "mint"}


def test_one_network_cannot_take_the_bank_for_itself() -> None:
    counter = Counter()
    service = BankService(counter.bank, BANK, most_per_minute=10)
    data = counter.request("balance", Nothing())

    def verdict(origin: str, now_s: float) -> str:
        return read_reply(
            "balance", data, service.handle("balance", data, origin=origin, now_s=now_s), BANK.address
        ).verdict

    assert [verdict(HOME, START_S) for _ in range(11)] == ["ok"] * 10 + ["rejected"]
    assert verdict("192.0.2.2", START_S) == "ok"
    assert verdict(HOME, START_S + 40) == "ok"


def test_each_opening_and_claim_counts_against_the_pace() -> None:
    counter = Counter()
    service = BankService(counter.bank, BANK, most_per_minute=10)
    openings = tuple(raw_opening(Opening(KEY.payee, KEY.signer, salt, 1)) for salt in range(11))
    data = counter.request("open", OpenBody(openings))
    reply = read_reply("open", data, service.handle("open", data, origin=HOME, now_s=START_S), BANK.address)
    assert reply.verdict == "rejected"
    assert counter.bank.balance(PAYER.address) == 1000


def newcomer(number: int) -> Account:
    return Account((1000 + number).to_bytes(32, "big"))


def test_starting_credit_is_given_once_to_an_account() -> None:
    counter = Counter(StartingCredit(amount=50, most_per_network_and_day=1000, most_in_total=1000))
    verdict, result = counter.send("claim_credit", counter.request("claim_credit", Nothing(), newcomer(0)))
    assert (verdict, decode(result, AmountResult).amount) == ("ok", amount_bytes(50))
    verdict, reason = counter.send(
        "claim_credit", counter.request("claim_credit", Nothing(), newcomer(0)), origin="198.51.100.1"
    )
    assert (verdict, reason) == ("no credit", b"this account had it before")
    assert counter.bank.balance(newcomer(0).address) == 50


def test_starting_credit_is_capped_per_network_and_day() -> None:
    counter = Counter(StartingCredit(amount=50, most_per_network_and_day=100, most_in_total=10_000))

    def claim(number: int, origin: str, now_s: int = START_S) -> tuple[str, bytes]:
        data = counter.request("claim_credit", Nothing(), newcomer(number), expires_s=now_s + 60)
        return counter.send("claim_credit", data, origin=origin, now_s=now_s)

    assert [claim(number, HOME)[0] for number in range(2)] == ["ok", "ok"]
    verdict, reason = claim(2, HOME)
    assert verdict == "no credit"
    assert b"share of today" in reason
    assert claim(2, f"::ffff:{HOME}")[0] == "no credit"
    prefix = "2001:db8:1:2"
    assert [claim(number, f"{prefix}::{number}")[0] for number in (3, 4, 5)] == ["ok", "ok", "no credit"]
    assert claim(2, HOME, START_S + 24 * 3600)[0] == "ok"


def test_starting_credit_is_capped_in_total() -> None:
    counter = Counter(StartingCredit(amount=50, most_per_network_and_day=100, most_in_total=149))
    asks = [counter.ask("claim_credit", Nothing(), newcomer(number), origin=f"192.0.2.{number}") for number in range(4)]
    assert asks == ["ok", "ok", "no credit", "no credit"]
    data = counter.request("claim_credit", Nothing(), newcomer(9))
    assert b"none left" in counter.send("claim_credit", data, origin="198.51.100.1")[1]
    assert counter.bank.totals().minted == 1100


def test_a_bank_may_give_nothing() -> None:
    counter = Counter()
    assert counter.send("claim_credit", counter.request("claim_credit", Nothing())) == (
        "no credit",
        b"this bank gives none",
    )


@pytest.mark.parametrize(
    ("origin", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("this machine", "this machine"),
        ("", "?"),
        ("x" * 1000, "x" * 64),
    ],
)
def test_what_counts_as_one_network(origin: str, network: str) -> None:
    assert network_of(origin) == network


def test_a_payee_redeems_what_its_payer_never_asked_for() -> None:
    counter = Counter()
    counter.bank.open(PAYER.address, [Opening(KEY.payee, KEY.signer, KEY.salt, 100)], START_S)
    body = RedeemBody((raw_claim(claim_of(KEY, 60)),))
    assert counter.ask("redeem", body, STRANGER) == "ok"  # permissionless: it pays nobody else
    assert counter.bank.balance(PAYEES[0].address) == 60
    assert counter.ask("redeem", body, STRANGER) == "refused"


def test_a_bank_whose_file_fails_says_nothing_was_done_by_saying_nothing() -> None:
    counter = Counter()
    data = counter.request("withdraw", WITHDRAW)
    counter.bank.close()
    with pytest.raises(BrokenStore):
        counter.service.handle("withdraw", data, origin=HOME, now_s=START_S)
