"""The bank's client: what it believes, and how it asks again."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_ledger.accounts import Account
from swarm_ledger.bank import Bank
from swarm_ledger.bank_messages import MAX_CHANNELS
from swarm_ledger.bank_service import BankService
from swarm_ledger.channels import ChannelState
from swarm_ledger.collector import Collector
from swarm_ledger.currencies import CREDITS
from swarm_ledger.embedded import MAX_LISTED, Call, EmbeddedLedger, in_process
from swarm_ledger.errors import (
    BadAmount,
    BankRefused,
    ChannelExists,
    InsufficientFunds,
    LedgerUnreachable,
    NoStartingCredit,
    NothingToClaim,
    OnlyMinted,
    TooEarly,
)
from swarm_ledger.ledger import Ledger, Opening
from swarm_ledger.redeeming import Cost
from swarm_ledger.starting_credit import StartingCredit
from tests.ledger import scenario
from tests.ledger.histories import DELAY_S, KEYS, START_S
from tests.ledger.parties import BANK, HERE, PAYEES, PAYERS, STRANGER, claim_of, counting, key_of

KEY = KEYS[0]
OPENING = Opening(KEY.payee, KEY.signer, KEY.salt, 100)


class World:
    """A bank, its clock, and a wire to it that can break."""

    def __init__(self, funds: int = 1000) -> None:
        self.now_s = float(START_S)
        self.bank = Bank(None, BANK.address, close_delay_s=DELAY_S)
        offer = StartingCredit(amount=50, most_per_network_and_day=60, most_in_total=100)
        self.service = BankService(self.bank, BANK, offer)
        self.bank.deposit(PAYERS[0].address, funds, START_S)
        self.loses_answers = 0
        self.sent: list[tuple[str, bytes]] = []
        self.alter: Callable[[bytes], bytes] = bytes

    async def call(self, method: str, request: bytes) -> bytes:
        self.sent.append((method, request))
        reply = self.service.handle(method, request, origin="192.0.2.1", now_s=self.now_s)
        if self.loses_answers:
            self.loses_answers -= 1
            raise TimeoutError
        return self.alter(reply)

    async def ledger(self, account: Account = PAYERS[0], ahead_s: float = 0.0) -> EmbeddedLedger:
        call: Call = self.call
        return await EmbeddedLedger.connect(
            account, BANK.address, call, clock=lambda: self.now_s + ahead_s, entropy=counting()
        )


async def test_a_channel_from_its_opening_to_the_last_unit() -> None:
    world = World()
    payer: Ledger = await world.ledger()
    payee: Ledger = await EmbeddedLedger.connect(
        PAYEES[0], BANK.address, in_process(world.service, lambda: world.now_s), clock=lambda: world.now_s
    )
    assert (payer.domain, payer.currency, payer.close_delay_s) == (HERE, CREDITS, DELAY_S)
    await payer.open([OPENING])
    await payer.top_up(KEY, 20)
    assert await payee.channel(KEY.id) == ChannelState(120, 0)
    assert await payee.redeem([claim_of(KEY, 60)]) == 60
    await payer.request_close(KEY)
    with pytest.raises(TooEarly):
        await payer.finish_close(KEY)
    assert [entry.key for entry in await payee.channels()] == [KEY]
    await payee.finish_close(KEY)
    await payee.withdraw(60, STRANGER.address)
    assert (await payer.balance(), await payee.balance()) == (940, 0)
    kinds = [event.kind for event in await payer.history()]
    assert kinds == ["closed", "closing", "claimed", "topped up", "opened", "deposited"]
    assert await payer.history(1) == (await payer.history())[:1]
    assert await payer.channel(key_of(salt=77).id) is None


async def test_the_story_of_every_ledger() -> None:
    world = World(funds=scenario.NEEDED)
    payer, payee = await world.ledger(), await world.ledger(PAYEES[0])

    async def later(seconds: int) -> None:
        world.now_s += seconds

    await scenario.tell(payer, payee, later)
    totals = world.bank.totals()
    assert totals.free + totals.in_channels == scenario.NEEDED - 700


async def test_channels_by_the_thousand_hide_none_from_its_payee() -> None:
    world = World()
    payee = await world.ledger(PAYEES[0])
    dust = [Opening(KEY.payee, KEY.signer, salt, 1) for salt in range(2 * MAX_LISTED)]
    world.bank.deposit(STRANGER.address, len(dust), START_S)
    world.bank.open(STRANGER.address, dust, START_S)
    keys = [key_of(salt=salt) for salt in range(40)]
    world.bank.open(PAYERS[0].address, [Opening(key.payee, key.signer, key.salt, 20) for key in keys], START_S)
    assert len(await payee.channels()) <= MAX_LISTED + MAX_CHANNELS

    async def free_of_charge() -> Cost:
        return Cost()

    collector = Collector(
        payee,
        lambda: [claim_of(key, 20) for key in keys],
        free_of_charge,
        observe=lambda channel, state: None,
        collected=lambda claims, amount: None,
    )
    assert await collector.look() == 800


async def test_refusals_arrive_as_what_they_are() -> None:
    ledger = await World().ledger()
    await ledger.open([OPENING])
    with pytest.raises(ChannelExists):
        await ledger.open([OPENING])
    with pytest.raises(InsufficientFunds):
        await ledger.withdraw(10_000, STRANGER.address)
    with pytest.raises(NothingToClaim):
        await ledger.redeem([])
    for amount in (0, -1, 2**128):
        with pytest.raises(BadAmount):
            await ledger.top_up(KEY, amount)
    with pytest.raises(BadAmount):
        await ledger.open([])
    with pytest.raises(OnlyMinted):
        await ledger.deposit(1)


async def test_many_claims_are_redeemed_in_several_requests() -> None:
    world = World()
    ledger = await world.ledger()
    keys = [key_of(salt=salt) for salt in range(130)]
    for start in range(0, 130, 64):
        some = keys[start : start + 64]
        await ledger.open([Opening(key.payee, key.signer, key.salt, 2) for key in some])
    stale = claim_of(keys[0], 1)
    assert await ledger.redeem([stale]) == 1
    claims = [stale] * 64 + [claim_of(key, 1) for key in keys[1:]]
    assert await ledger.redeem(claims) == 129
    assert len(await ledger.channels()) == 130 > MAX_CHANNELS


async def test_a_change_whose_answer_was_lost_is_made_once() -> None:
    world = World()
    ledger = await world.ledger()
    await ledger.open([OPENING])
    world.loses_answers = 2
    for _ in range(2):
        with pytest.raises(LedgerUnreachable):
            await ledger.top_up(KEY, 10)
    await ledger.top_up(KEY, 10)
    assert await ledger.channel(KEY.id) == ChannelState(110, 0)
    assert len({request for method, request in world.sent if method == "top_up"}) == 1
    # Once it was answered, the same again is another one.
    await ledger.top_up(KEY, 10)
    assert await ledger.channel(KEY.id) == ChannelState(120, 0)


@given(
    changes=st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.sampled_from(["request lost", "answer lost", "both ways twice"]))),
        max_size=8,
    )
)
def test_whatever_is_lost_or_doubled_each_change_is_made_once(changes: list[tuple[int, list[str]]]) -> None:
    async def main() -> None:
        world = World()
        fates: list[str] = []

        async def call(method: str, request: bytes) -> bytes:
            fate = fates.pop(0) if fates else ""
            if fate == "request lost":
                raise TimeoutError
            reply = await world.call(method, request)
            if fate == "both ways twice":
                reply = await world.call(method, request)
            if fate == "answer lost":
                raise ConnectionResetError
            return reply

        ledger = await EmbeddedLedger.connect(PAYERS[0], BANK.address, call, clock=lambda: world.now_s)
        await ledger.open([OPENING])
        for amount, fate in changes:
            fates[:] = fate
            while True:
                world.now_s += 30
                try:
                    await ledger.top_up(KEY, amount)
                except LedgerUnreachable:
                    continue
                break
        fates.clear()
        total = sum(amount for amount, _ in changes)
        assert await ledger.channel(KEY.id) == ChannelState(100 + total, 0)
        assert await ledger.balance() == 900 - total

    asyncio.run(main())


async def test_an_answer_lost_for_longer_than_the_request_lives_is_still_found() -> None:
    world = World()
    ledger = await world.ledger()
    world.loses_answers = 1
    with pytest.raises(LedgerUnreachable):
        await ledger.withdraw(100, STRANGER.address)
    world.now_s += 1800
    await ledger.withdraw(100, STRANGER.address)
    assert await ledger.balance() == 900


async def test_a_client_whose_clock_is_wrong_is_served() -> None:
    for ahead_s in (-1e6, 1e6):
        ledger = await World().ledger(ahead_s=ahead_s)
        await ledger.open([OPENING])
        assert await ledger.balance() == 900


async def test_a_client_that_has_slept_asks_for_the_time_again() -> None:
    world = World()
    stopped_s = world.now_s
    ledger = await EmbeddedLedger.connect(PAYERS[0], BANK.address, world.call, clock=lambda: stopped_s)
    world.now_s += 10_000
    await ledger.open([OPENING])
    assert await ledger.balance() == 900


async def test_what_another_key_has_signed_is_not_believed() -> None:
    world = World()
    liar = BankService(Bank(None, STRANGER.address), STRANGER)
    with pytest.raises(LedgerUnreachable, match="bank's key"):
        await EmbeddedLedger.connect(PAYERS[0], BANK.address, in_process(liar, lambda: START_S))
    ledger = await world.ledger()
    before: list[bytes] = []

    def replay(reply: bytes) -> bytes:
        before.append(reply)
        return before[0]

    world.alter = replay
    assert await ledger.balance() == 1000
    with pytest.raises(LedgerUnreachable, match="not for this request"):
        await ledger.balance()


async def test_a_wire_that_is_down_is_told_as_such() -> None:
    async def down(method: str, request: bytes) -> bytes:
        raise ConnectionResetError("connection reset")

    with pytest.raises(LedgerUnreachable, match="connection reset"):
        await EmbeddedLedger.connect(PAYERS[0], BANK.address, down)


async def test_a_bank_that_rejects_says_why() -> None:
    world = World()
    ledger = await world.ledger()
    world.service = BankService(world.bank, BANK, most_per_minute=0)
    with pytest.raises(BankRefused, match="too many requests"):
        await ledger.balance()


async def test_starting_credit_once() -> None:
    world = World()
    first, second = await world.ledger(STRANGER), await world.ledger(PAYERS[1])
    assert await first.claim_starting_credit() == 50
    with pytest.raises(NoStartingCredit, match="before"):
        await first.claim_starting_credit()
    with pytest.raises(NoStartingCredit, match="share of today"):
        await second.claim_starting_credit()
    assert await first.balance() == 50
