"""A payee's channels are looked after: what they owe is redeemed, in time before a close."""

import asyncio
from collections.abc import Sequence

from swarm_ledger.channels import ChannelId, ChannelState, Claim
from swarm_ledger.collector import Collector
from swarm_ledger.redeeming import Cost, Policy
from swarm_sim.virtual_loop import run
from tests.ledger.evm_world import DELAY_S, PAYEE, PAYER, claim, key_of, new_world, opening


async def cheap() -> Cost:
    return Cost(batch=10, claim=1)


def test_it_redeems_when_it_is_worth_it_and_before_a_close_takes_it_away() -> None:
    async def main() -> None:
        world = await new_world()
        payer, payee = await world.ledger(PAYER), await world.ledger(PAYEE)
        await payer.open([opening(1, 500), opening(2, 500)], deposit=1000)
        vouchers = {1: 50, 2: 50}
        seen: dict[ChannelId, ChannelState | None] = {}
        collected: list[tuple[int, int]] = []

        def note(claims: Sequence[Claim], amount: int) -> None:
            collected.append((len(claims), amount))

        collector = Collector(
            payee,
            lambda: [claim(payee, salt, amount) for salt, amount in vouchers.items()],
            cheap,
            observe=seen.__setitem__,
            collected=note,
            policy=Policy(worth=10),
        )
        assert collector.interval_s == DELAY_S / 20
        async with asyncio.TaskGroup() as group:
            running = group.create_task(collector.run())
            await asyncio.sleep(DELAY_S)
            assert collected == []
            assert seen == {key_of(salt).id: ChannelState(500, 0) for salt in (1, 2)}

            await payer.request_close(key_of(2))
            await asyncio.sleep(DELAY_S / 10)
            assert collected == [(1, 50)]
            closing = seen[key_of(2).id]
            assert closing is not None
            assert closing.closes_at_s > 0

            vouchers[1] = 200
            await asyncio.sleep(DELAY_S / 10)
            assert collected == [(1, 50), (1, 200)]

            world.chain.wait(DELAY_S)
            await payer.finish_close(key_of(2))
            await asyncio.sleep(DELAY_S / 10)
            closed = seen[key_of(2).id]
            assert closed is not None
            assert closed.is_closed
            running.cancel()
        assert await payee.balance() == 250

    run(main())


def test_an_unreachable_ledger_is_asked_again() -> None:
    async def main() -> None:
        world = await new_world()
        payer, payee = await world.ledger(PAYER), await world.ledger(PAYEE)
        await payer.open([opening(1, 500)], deposit=500)
        collected: list[int] = []
        collector = Collector(
            payee,
            lambda: [claim(payee, 1, 400)],
            cheap,
            observe=lambda channel, state: None,
            collected=lambda claims, amount: collected.append(amount),
        )
        async with asyncio.TaskGroup() as group:
            world.chain.is_reachable = False
            running = group.create_task(collector.run())
            await asyncio.sleep(10 * collector.interval_s)
            assert collected == []
            world.chain.is_reachable = True
            await asyncio.sleep(2 * collector.interval_s)
            assert collected == [400]
            running.cancel()

    run(main())
