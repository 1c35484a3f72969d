"""One story that every ledger tells alike: channels are opened, paid from, redeemed, topped up and closed.

`tell` takes two accounts' ledgers, whichever they are; the payer has at least `NEEDED` free and nothing open.
"""

from collections.abc import Awaitable, Callable

import pytest

from swarm_ledger.accounts import Account, Address
from swarm_ledger.channels import ChannelKey, ChannelState, Claim, VoucherDigests
from swarm_ledger.errors import (
    AlreadyClosing,
    BadAmount,
    BadParty,
    BadSignature,
    ChannelExists,
    InsufficientFunds,
    NoChannel,
    NotClosing,
    NothingToClaim,
    TooEarly,
)
from swarm_ledger.ledger import Ledger, Opening

NEEDED = 1100
SIGNER = Account(bytes(range(1, 33)))
STRANGER = Account(bytes(range(2, 34)))
SOMEBODY = Address(bytes(range(20)))

Later = Callable[[int], Awaitable[None]]


async def tell(payer: Ledger, payee: Ledger, later: Later) -> None:
    """Tell the story, and check each word of it; `later` lets so many seconds pass."""
    story = Story(payer, payee)
    free = await payer.balance()
    await story.refused_openings(free)
    await payer.open([story.opening(1, 600), story.opening(2, 300)])
    assert await payer.balance() == free - 900
    assert await payer.channel(story.key(1).id) == ChannelState(600, 0)
    assert await payer.channel(story.key(3).id) is None
    for ledger in (payer, payee):
        entries = {entry.key: entry.state for entry in await ledger.channels()}
        assert entries == {story.key(1): ChannelState(600, 0), story.key(2): ChannelState(300, 0)}

    await story.refused_claims()
    assert await payee.redeem([story.claim(1, 250)]) == 250
    for cumulative in (250, 249):
        with pytest.raises(NothingToClaim):
            await payee.redeem([story.claim(1, cumulative)])
    assert (
        await payer.redeem([story.claim(1, 100), story.claim(1, 900), story.claim(2, 0)]) == 350
    )  # up to what it holds
    assert await payee.balance() == 600
    await payer.top_up(story.key(1), 100)
    assert await payee.redeem([story.claim(1, 900)]) == 100
    assert await payee.channel(story.key(1).id) == ChannelState(700, 700)

    await story.closed_by_payer(later)
    await story.closed_by_payee()
    assert await payer.balance() == free - 100 - 600 - 40
    assert await payee.balance() == 740
    assert await payer.channels() == await payee.channels() == []
    await story.withdrawn()
    await story.remembered()


class Story:
    """The two accounts and their channels."""

    def __init__(self, payer: Ledger, payee: Ledger) -> None:
        self.payer = payer
        self.payee = payee
        self.digests = VoucherDigests(payer.domain)

    def key(self, salt: int) -> ChannelKey:
        return ChannelKey(self.payer.address, self.payee.address, SIGNER.address, salt)

    def opening(self, salt: int, amount: int) -> Opening:
        return Opening(self.payee.address, SIGNER.address, salt, amount)

    def claim(self, salt: int, cumulative: int, signer: Account = SIGNER) -> Claim:
        key = self.key(salt)
        return Claim(key, cumulative, self.digests.sign(key.id, cumulative, signer).signature)

    async def refused_openings(self, free: int) -> None:
        good = self.opening(1, 600)
        for bad, refusal in (
            (Opening(self.payer.address, SIGNER.address, 1, 5), BadParty),
            (Opening(Address(bytes(20)), SIGNER.address, 1, 5), BadParty),
            (Opening(self.payee.address, Address(bytes(20)), 1, 5), BadParty),
            (self.opening(2, 0), BadAmount),
            (self.opening(2, 2**104), BadAmount),
            (good, ChannelExists),
            (self.opening(2, free), InsufficientFunds),
        ):
            with pytest.raises(refusal):
                await self.payer.open([good, bad])
        assert await self.payer.balance() == free
        assert await self.payer.channels() == []

    async def refused_claims(self) -> None:
        good = self.claim(1, 100)
        elsewhere = ChannelKey(self.payer.address, SOMEBODY, SIGNER.address, 1)
        for bad in (
            self.claim(1, 100, STRANGER),
            Claim(good.key, 101, good.signature),
            Claim(self.key(2), 100, good.signature),
            Claim(elsewhere, 100, good.signature),
            Claim(good.key, 100, good.signature[:-1]),
            Claim(good.key, 100, bytes(64)),
        ):
            with pytest.raises(BadSignature):
                await self.payee.redeem([self.claim(2, 100), bad])
        with pytest.raises(NothingToClaim):
            await self.payee.redeem([self.claim(3, 100)])
        assert await self.payee.balance() == 0

    async def closed_by_payer(self, later: Later) -> None:
        key = self.key(2)
        with pytest.raises(NotClosing):
            await self.payer.finish_close(key)
        with pytest.raises(NoChannel):
            await self.payee.request_close(key)
        await self.payer.request_close(key)
        with pytest.raises(AlreadyClosing):
            await self.payer.request_close(key)
        with pytest.raises(TooEarly):
            await self.payer.finish_close(key)
        state = await self.payee.channel(key.id)
        assert state is not None
        assert state.closes_at_s > 0
        await self.payer.top_up(key, 5)  # takes it back
        assert await self.payee.channel(key.id) == ChannelState(305, 0)
        await self.payer.request_close(key)
        await later(self.payer.close_delay_s - 100)
        with pytest.raises(TooEarly):
            await self.payer.finish_close(key)
        assert await self.payee.redeem([self.claim(2, 40)]) == 40
        await later(101)
        await self.payer.finish_close(key)
        for again in (self.payer.finish_close(key), self.payer.request_close(key), self.payer.top_up(key, 1)):
            with pytest.raises(NoChannel):
                await again
        with pytest.raises(ChannelExists):
            await self.payer.open([self.opening(2, 10)])
        with pytest.raises(NothingToClaim):
            await self.payee.redeem([self.claim(2, 300)])
        closed = await self.payee.channel(key.id)
        assert closed is not None
        assert (closed.is_closed, closed.claimed) == (True, 40)

    async def closed_by_payee(self) -> None:
        await self.payee.finish_close(self.key(1))
        with pytest.raises(NoChannel):
            await self.payee.finish_close(self.key(1))

    async def withdrawn(self) -> None:
        with pytest.raises(InsufficientFunds):
            await self.payee.withdraw(741, SOMEBODY)
        with pytest.raises(BadAmount):
            await self.payee.withdraw(0, SOMEBODY)
        await self.payee.withdraw(700, SOMEBODY)
        assert await self.payee.balance() == 40

    async def remembered(self) -> None:
        payer = [(event.kind, event.amount) for event in await self.payer.history()][::-1]
        assert payer == [
            ("deposited", payer[0][1]),
            ("opened", 600),
            ("opened", 300),
            ("claimed", 250),
            ("claimed", 350),
            ("topped up", 100),
            ("claimed", 100),
            ("closing", 0),
            ("topped up", 5),
            ("closing", 0),
            ("claimed", 40),
            ("closed", 265),
            ("closed", 0),
        ]
        payee = await self.payee.history(4)
        assert [(event.kind, event.amount) for event in payee] == [
            ("withdrawn", 700),
            ("closed", 0),
            ("closed", 265),
            ("claimed", 40),
        ]
        assert [event.other for event in payee] == [SOMEBODY, *[self.payer.address] * 3]
        assert [event.channel for event in payee] == [None, self.key(1).id, self.key(2).id, self.key(2).id]
