"""Transactions that get stuck, vanish, collide or cost too much; in virtual time."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from swarm_ledger.accounts import Account
from swarm_ledger.errors import ChannelExists, GasTooExpensive, NoGasMoney, NotConfirmed
from swarm_ledger.evm.fees import GWEI
from swarm_ledger.evm.questions import Call
from swarm_ledger.evm.sending import Sender, Sending, Verdict, verdict_on
from swarm_sim.local_chain import LocalChain
from swarm_sim.virtual_loop import run
from tests.ledger.evm_world import OTHER, PAYER, blocks, endpoints, new_world, opening, sender_of

SENDING = Sending(confirmations=2)


async def new_sender(chain: LocalChain, sending: Sending = SENDING, account: Account = PAYER) -> Sender:
    all_of_them = endpoints(chain)
    return Sender(all_of_them, account, await all_of_them.chain_id(), sending)


def gift(amount: int) -> Call:
    return Call(Account(b"g" * 32).address, value=amount)


async def given(chain: LocalChain) -> int:
    return await (await new_sender(chain, account=Account(b"g" * 32))).coins()


def tell(story: Coroutine[Any, Any, None]) -> None:
    run(story)


def test_a_transaction_that_pays_too_little_is_replaced_until_it_gets_through_once() -> None:
    async def main() -> None:
        chain = LocalChain()
        chain.least_fee = 5 * GWEI
        sender = await new_sender(chain)
        async with blocks(chain):
            receipt = await sender.send(gift(7))
        assert receipt.gas_used == 21_000
        assert await given(chain) == 7
        assert sender.waiting == 0
        assert chain.requests["eth_sendRawTransaction"] > 3

    tell(main())


def test_the_operators_limit_is_never_exceeded() -> None:
    async def main() -> None:
        chain = LocalChain()
        chain.least_fee = 50 * GWEI
        sender = await new_sender(chain, Sending(most_fee=4 * GWEI))
        async with blocks(chain):
            with pytest.raises(GasTooExpensive):
                await sender.send(gift(7))
            chain.least_fee = 4 * GWEI + 1
            await asyncio.sleep(600)
            assert await given(chain) == 0

    tell(main())


def test_gas_beyond_the_limit_is_refused_before_anything_is_signed() -> None:
    async def main() -> None:
        chain = LocalChain()
        with pytest.raises(GasTooExpensive):
            await (await new_sender(chain, Sending(most_fee=1000))).send(gift(7))
        assert "eth_sendRawTransaction" not in chain.requests

    tell(main())


def test_a_transaction_that_the_mempool_forgot_is_sent_again() -> None:
    async def main() -> None:
        chain = LocalChain()
        chain.is_mining = False
        sender = await new_sender(chain)
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(sender.send(gift(7)))
            await asyncio.sleep(1)
            assert len(chain.offers) == 1
            chain.forget()
            await asyncio.sleep(SENDING.stuck_after_s + 10)
            assert len(chain.offers) == 1
            chain.mine(2)
        assert (await sending).block == 1
        assert await given(chain) == 7

    tell(main())


@pytest.mark.parametrize("keeps", [True, False])
def test_a_transaction_that_a_reorganisation_takes_back_is_sent_again_and_happens_once(keeps: bool) -> None:
    async def main() -> None:
        chain = LocalChain()
        chain.is_mining = False
        sender = await new_sender(chain, Sending(confirmations=4))
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(sender.send(gift(7)))
            await asyncio.sleep(1)
            chain.mine(3)
            await asyncio.sleep(10)
            assert await given(chain) == 7
            chain.reorganize(3, keeps=keeps)
            assert await given(chain) == 0
            await asyncio.sleep(10)
            assert not sending.done()
            chain.mine(4)
        assert (await sending).block == 1
        assert await given(chain) == 7

    tell(main())


@pytest.mark.parametrize("tells", [True, False])
def test_several_in_flight_keep_their_order_of_nonces(tells: bool) -> None:
    async def main() -> None:
        chain = LocalChain()
        chain.tells_what_waits = tells
        sender = await new_sender(chain)
        async with blocks(chain):
            receipts = await asyncio.gather(*(sender.send(gift(1 << number)) for number in range(5)))
        assert len({receipt.transaction for receipt in receipts}) == 5
        assert await given(chain) == 31
        assert sender.waiting == 0

    tell(main())


def test_only_the_one_that_holds_up_the_others_is_raised() -> None:
    async def main() -> None:
        chain = LocalChain()
        chain.is_mining, chain.least_fee = False, 100 * GWEI
        sender = await new_sender(chain)
        async with asyncio.TaskGroup() as group:
            sending = [group.create_task(sender.send(gift(1))) for _ in range(2)]
            await asyncio.sleep(3 * SENDING.stuck_after_s)
            first, second = chain.offers
            assert first > second
            for each in sending:
                each.cancel()

    tell(main())


def test_what_another_process_has_sent_is_not_replaced_where_the_node_does_not_tell() -> None:
    async def main() -> None:
        chain = LocalChain()
        chain.is_mining = chain.tells_what_waits = False
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task((await new_sender(chain)).send(gift(1 << number)))
                await asyncio.sleep(1)
            assert len(chain.offers) == 3
            chain.mine(2)
        assert await given(chain) == 7

    tell(main())


def test_a_nonce_that_nothing_is_known_of_is_filled() -> None:
    """Another process has sent something too cheap, and died."""

    async def main() -> None:
        chain = LocalChain()
        chain.is_mining = False
        dead = asyncio.create_task((await new_sender(chain)).send(gift(1000)))
        await asyncio.sleep(1)
        dead.cancel()
        chain.least_fee = 4 * GWEI
        sender = await new_sender(chain)
        async with blocks(chain):
            await sender.send(gift(7))
        assert await given(chain) == 7
        assert sender.waiting == 0

    tell(main())


def test_a_gap_that_a_mempool_left_is_filled() -> None:
    async def main() -> None:
        chain = LocalChain()
        chain.is_mining = False
        dead = asyncio.create_task((await new_sender(chain)).send(gift(1000)))
        await asyncio.sleep(1)
        dead.cancel()
        sender = await new_sender(chain)
        async with asyncio.TaskGroup() as group:
            group.create_task(sender.send(gift(7)))
            await asyncio.sleep(1)
            chain.forget()
            async with blocks(chain):
                await asyncio.sleep(400)
        assert await given(chain) == 7

    tell(main())


def test_two_processes_with_one_account_get_along() -> None:
    async def main() -> None:
        chain = LocalChain()
        senders = [await new_sender(chain) for _ in range(3)]
        async with blocks(chain):
            await asyncio.gather(*(sender.send(gift(1 << number)) for number, sender in enumerate(senders)))
            await asyncio.gather(*(sender.send(gift(8 << number)) for number, sender in enumerate(senders)))
        assert await given(chain) == 63

    tell(main())


def test_one_whose_nonce_another_process_has_used_is_sent_again() -> None:
    async def main() -> None:
        chain = LocalChain()
        chain.is_mining = False
        first, second = await new_sender(chain), await new_sender(chain)
        async with asyncio.TaskGroup() as group:
            group.create_task(first.send(gift(1)))
            await asyncio.sleep(1)
            chain.forget()  # so that the second one takes the same nonce
            group.create_task(second.send(gift(2)))
            await asyncio.sleep(1)
            async with blocks(chain):
                await asyncio.sleep(300)
        assert await given(chain) == 3

    tell(main())


def test_a_wait_that_was_cancelled_leaves_nothing_stuck() -> None:
    async def main() -> None:
        chain = LocalChain()
        chain.is_mining = False
        sender = await new_sender(chain)
        cancelled = asyncio.create_task(sender.send(gift(1)))
        await asyncio.sleep(1)
        cancelled.cancel()
        chain.forget()
        async with blocks(chain):
            await sender.send(gift(2))
        assert await given(chain) in (2, 3)
        assert sender.waiting == 0

    tell(main())


def test_who_gives_up_is_told_that_it_may_still_happen() -> None:
    async def main() -> None:
        chain = LocalChain()
        chain.is_mining = False
        with pytest.raises(NotConfirmed, match="0x"):
            await (await new_sender(chain)).send(gift(1))

    tell(main())


def test_an_account_without_coins_is_told_how_many_it_needs() -> None:
    async def main() -> None:
        chain = LocalChain()
        poor = Account(b"p" * 32)
        with pytest.raises(NoGasMoney) as raised:
            await (await new_sender(chain, account=poor)).send(Call(PAYER.address))
        assert raised.value.balance == 0
        assert raised.value.needed > 0
        await (await sender_of(chain, OTHER)).send(Call(poor.address, value=raised.value.needed // 2))
        with pytest.raises(NoGasMoney):
            await (await new_sender(chain, account=poor)).send(Call(PAYER.address))

    tell(main())


def test_what_reverts_only_when_it_runs_is_refused_with_its_reason() -> None:
    async def main() -> None:
        world = await new_world()
        ledger = await world.ledger(PAYER)
        await ledger.deposit(1000)
        async with blocks(world.chain):
            results = await asyncio.gather(*(ledger.open([opening(1, 100)]) for _ in range(2)), return_exceptions=True)
        assert {type(result) for result in results} == {ChannelExists, type(None)}
        assert await ledger.balance() == 900

    tell(main())


@pytest.mark.parametrize(
    ("saying", "verdict"),
    [
        ("already known", Verdict.TAKEN),
        ("nonce too low: next nonce 5, tx nonce 4", Verdict.NONCE_USED),
        ("replacement transaction underpriced", Verdict.OUTBID),
        ("transaction underpriced: tip needed 1, tip permitted 0", Verdict.TOO_CHEAP),
        ("max fee per gas less than block base fee: address 0x, maxFeePerGas: 1", Verdict.TOO_CHEAP),
        ("insufficient funds for gas * price + value: balance 0", Verdict.NO_MONEY),
        ("Insufficient funds for gas * price + value", Verdict.NO_MONEY),
        ("too many requests", None),
        ("internal error", None),
    ],
)
def test_what_nodes_say_to_transactions(saying: str, verdict: Verdict | None) -> None:
    assert verdict_on(saying) == verdict
