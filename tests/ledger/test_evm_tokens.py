"""Tokens of every kind: what is credited is what came, and what leaves is what was owed."""

import pytest

from swarm_ledger.errors import ContractReverted, InsufficientFunds
from swarm_ledger.evm import contract
from swarm_ledger.evm.evm_ledger import EvmLedger
from swarm_ledger.evm.questions import Call
from swarm_sim.local_chain import LocalChain
from swarm_sim.virtual_loop import run
from tests.ledger.evm_world import PAYEE, PAYER, Token, World, claim, new_world, opening, sender_of


async def world_of(name: str) -> tuple[World, Token, EvmLedger]:
    chain = LocalChain()
    token = await Token.deploy(chain, name)
    world = await new_world(token.address, chain)
    return world, token, await world.ledger(PAYER)


async def is_solvent(world: World, token: Token, *ledgers: EvmLedger) -> bool:
    free = sum([await ledger.balance() for ledger in ledgers])
    held = sum(entry.state.allocated - entry.state.claimed for entry in await ledgers[0].channels())
    return await token.of(world.contract) >= free + held


def test_an_ordinary_token() -> None:
    async def main() -> None:
        world, token, payer = await world_of("plain_token")
        payee = await world.ledger(PAYEE)
        await payer.open([opening(1, 600)], deposit=1000)
        await payee.redeem([claim(payee, 1, 250)])
        await payee.withdraw(250, PAYEE.address)
        assert await token.of(PAYEE.address) == 250
        assert await token.of(world.contract) == 750
        assert await token.read("allowance", PAYER.address, world.contract) == 0
        with pytest.raises(ContractReverted):
            await payee.deposit(251)
        with pytest.raises(ContractReverted, match="value"):  # coins in a ledger of tokens would be lost
            await (await sender_of(world.chain, PAYER)).send(Call(world.contract, contract.deposit(5), 1))

    run(main())


def test_a_token_that_takes_a_fee_is_credited_by_what_came() -> None:
    async def main() -> None:
        world, token, payer = await world_of("fee_token")
        await payer.deposit(1000)
        assert await payer.balance() == 990 == await token.of(world.contract)
        with pytest.raises(InsufficientFunds):
            await payer.open([opening(1, 991)])
        assert await is_solvent(world, token, payer)
        await payer.withdraw(200, PAYEE.address)
        assert await token.of(PAYEE.address) == 198

    run(main())


def test_a_token_that_takes_its_fee_from_the_ledger_cannot_be_withdrawn_with_others_money() -> None:
    async def main() -> None:
        world, token, payer = await world_of("fee_token")
        await payer.deposit(1000)
        await token.send("charge_on_top")
        with pytest.raises(ContractReverted, match="token"):
            await payer.withdraw(500, PAYEE.address)
        assert await payer.balance() == 990
        await payer.withdraw(99, PAYEE.address)  # so little that there is no fee
        assert await is_solvent(world, token, payer)

    run(main())


def test_a_token_that_grows_stays_solvent_and_one_that_shrinks_is_short_at_the_end() -> None:
    async def main() -> None:
        world, token, payer = await world_of("fee_token")
        await payer.deposit(1000)
        await token.send("rebase", world.contract, 200)
        assert await payer.balance() == 990
        await payer.deposit(100)
        assert await payer.balance() == 1089
        await token.send("rebase", world.contract, 25)
        with pytest.raises(ContractReverted):
            await payer.withdraw(1089, PAYEE.address)
        await payer.withdraw(500, PAYEE.address)
        assert await payer.balance() == 589

    run(main())


def test_a_token_that_returns_nothing_and_is_fussy_about_allowances() -> None:
    async def main() -> None:
        world, token, payer = await world_of("silent_token")
        assert (payer.currency.symbol, payer.currency.decimals) == ("SILENT", 6)
        await token.send("approve", world.contract, 5)  # less than is needed: it has to be taken back first
        await payer.deposit(1000)
        assert await payer.balance() == 1000 == await token.of(world.contract)
        await payer.withdraw(400, PAYEE.address)
        assert await token.of(PAYEE.address) == 400

    run(main())


@pytest.mark.parametrize("name", ["deposit", "withdraw"])
def test_a_token_that_calls_back_gets_nowhere(name: str) -> None:
    async def main() -> None:
        world, token, payer = await world_of("reentrant_token")
        await token.send("aim", world.contract, "")
        await token.send("deposit_own", 500)
        await payer.deposit(1000)
        await token.send("aim", world.contract, name)
        await payer.deposit(500)
        assert await token.read("tried")
        assert not await token.read("succeeded")
        await payer.open([opening(1, 1)], deposit=500)
        assert not await token.read("succeeded")
        await payer.withdraw(300, PAYEE.address)
        assert not await token.read("succeeded")
        assert await payer.balance() == 1699
        assert await token.of(world.contract) == 2200

    run(main())
