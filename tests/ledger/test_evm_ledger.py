"""The ledger on a chain, on eth-tester's: the same story as everywhere, and what only a chain does."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from web3.types import RPCEndpoint, RPCResponse

from swarm_ledger.accounts import NOBODY, Account
from swarm_ledger.channels import ChannelState
from swarm_ledger.errors import (
    BadAmount,
    BadParty,
    ContractReverted,
    InsufficientFunds,
    NoSuchLedger,
    NothingToClaim,
    WrongChain,
)
from swarm_ledger.evm import contract, questions
from swarm_ledger.evm.endpoints import Endpoint, Endpoints
from swarm_ledger.evm.evm_ledger import EvmLedger
from swarm_ledger.evm.questions import Call
from swarm_ledger.evm.sending import Sending
from swarm_sim.local_chain import LocalChain, LocalProvider
from swarm_sim.virtual_loop import run
from tests.ledger import scenario
from tests.ledger.evm_world import (
    DELAY_S,
    OTHER,
    PAYEE,
    PAYER,
    SENDING,
    Token,
    blocks,
    claim,
    endpoints,
    key_of,
    new_world,
    opening,
    sender_of,
)


def test_the_story_with_the_chains_coin() -> None:
    async def main() -> None:
        world = await new_world()
        payer, payee = await world.ledger(PAYER), await world.ledger(PAYEE)
        assert (payer.currency.symbol, payer.close_delay_s, payer.token) == ("ETH", DELAY_S, None)
        await payer.deposit(scenario.NEEDED)
        await scenario.tell(payer, payee, world.later)

    run(main())


def test_the_story_with_a_token_and_three_confirmations() -> None:
    async def main() -> None:
        chain = LocalChain()
        token = await Token.deploy(chain, "plain_token")
        world = await new_world(token.address, chain)
        sending = Sending(confirmations=3)
        async with blocks(chain):
            payer, payee = await world.ledger(PAYER, sending), await world.ledger(PAYEE, sending)
            assert (payer.currency.symbol, payer.currency.decimals, payer.token) == ("PLAIN", 6, token.address)
            await payer.deposit(scenario.NEEDED)
            assert await token.of(world.contract) == scenario.NEEDED
            await scenario.tell(payer, payee, world.later)
        assert await token.of(world.contract) == scenario.NEEDED - 700
        assert await token.of(scenario.SOMEBODY) == 700

    run(main())


def test_what_the_contract_holds_is_what_the_accounts_have() -> None:
    async def main() -> None:
        world = await new_world()
        payer, payee = await world.ledger(PAYER), await world.ledger(PAYEE)
        await payer.open([opening(1, 700), opening(2, 100)], deposit=1000)
        await payee.redeem([claim(payee, 1, 10**30)])
        await payee.withdraw(500, PAYEE.address)
        held = await endpoints(world.chain).ask(questions.coins(world.contract))
        in_channels = sum(entry.state.allocated - entry.state.claimed for entry in await payer.channels())
        assert (await payer.balance(), await payee.balance(), in_channels) == (200, 200, 100)
        assert held == 500

    run(main())


def test_an_opening_counts_when_it_is_confirmed_and_a_close_at_once() -> None:
    async def main() -> None:
        world = await new_world()
        payer = await world.ledger(PAYER)
        careful = await world.ledger(PAYEE, Sending(confirmations=4))
        await payer.open([opening(1, 700)], deposit=1000)
        for _ in range(3):
            assert await careful.channel(key_of(1).id) is None
            assert await careful.channels() == []
            world.chain.mine()
        assert await careful.channel(key_of(1).id) == ChannelState(700, 0)
        await payer.top_up(key_of(1), 50)
        assert await careful.channel(key_of(1).id) == ChannelState(700, 0)
        await payer.request_close(key_of(1))
        [entry] = await careful.channels()
        assert entry.state.closes_at_s > 0
        assert entry.state.allocated == 700

    run(main())


def test_an_opening_that_a_reorganisation_takes_back_counts_no_more() -> None:
    async def main() -> None:
        world = await new_world()
        payer, payee = await world.ledger(PAYER), await world.ledger(PAYEE)
        await payer.deposit(1000)
        await payer.open([opening(1, 700)])
        assert await payee.channel(key_of(1).id) == ChannelState(700, 0)
        assert len(await payee.channels()) == 1
        world.chain.reorganize(1, keeps=False)
        world.chain.mine()
        assert await payee.channel(key_of(1).id) is None
        assert await payee.channels() == []
        world.chain.reorganize(1)
        await (await world.ledger(PAYER)).open([opening(2, 500)])  # in the block where the other one was
        assert [entry.key for entry in await payee.channels()] == [key_of(2)]
        assert [event.amount for event in await payer.history()] == [500, 1000]

    run(main())


def test_more_vouchers_than_fit_into_one_transaction() -> None:
    async def main() -> None:
        world = await new_world()
        payer, payee = await world.ledger(PAYER), await world.ledger(PAYEE)
        await payer.open([opening(salt, 10) for salt in range(64)], deposit=1000)
        await payer.open([opening(salt, 10) for salt in range(64, 70)])
        claims = [claim(payee, salt, 3) for salt in range(70)]
        assert await payee.redeem(claims[:64]) == 192
        assert await payee.redeem(claims) == 18  # the first transaction has nothing left to claim, the second has
        with pytest.raises(NothingToClaim):
            await payee.redeem(claims)
        assert len(await payee.channels()) == 70

    run(main())


def test_what_is_refused_costs_nothing() -> None:
    async def main() -> None:
        world = await new_world()
        payer = await world.ledger(PAYER)
        coins = await payer.coins()
        with pytest.raises(InsufficientFunds):
            await payer.withdraw(1, PAYER.address)
        for amount in (0, -1, 2**256):
            with pytest.raises(BadAmount):
                await payer.deposit(amount)
        assert await payer.coins() == coins

    run(main())


def test_money_goes_neither_to_nobody_nor_to_the_ledger_itself() -> None:
    async def main() -> None:
        world = await new_world()
        payer = await world.ledger(PAYER)
        await payer.deposit(100)
        for receiver in (NOBODY, world.contract):
            with pytest.raises(BadParty):
                await payer.withdraw(50, receiver)
        assert await payer.balance() == 100

    run(main())


def test_coins_that_do_not_match_what_is_said_are_refused() -> None:
    async def main() -> None:
        world = await new_world()
        sender = await sender_of(world.chain, PAYER)
        for data, value in (
            (contract.deposit(5), 4),
            (contract.deposit(5), 6),
            (contract.deposit_open(0, [opening(1, 1)]), 1),
        ):
            with pytest.raises(ContractReverted, match="value"):
                await sender.send(Call(world.contract, data, value))

    run(main())


def test_events_are_found_where_endpoints_answer_for_few_blocks_at_a_time() -> None:
    async def main() -> None:
        world = await new_world()
        payer = await world.ledger(PAYER)
        for salt in range(3):
            await payer.open([opening(salt, 10)], deposit=10)
            world.chain.mine(60)
        refused = 0

        class ShortProvider(LocalProvider):
            async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
                nonlocal refused
                if method == "eth_getLogs" and int(params[0]["toBlock"], 16) - int(params[0]["fromBlock"], 16) > 70:
                    refused += 1
                    return {"jsonrpc": "2.0", "id": 1, "error": {"code": -32000, "message": "range too large"}}
                return await super().make_request(method, params)

        short = Endpoints([Endpoint("short", ShortProvider(world.chain))])
        ledger = await EvmLedger.connect(short, world.contract, PAYER, SENDING)
        assert len(await ledger.channels()) == 3
        assert refused > 0
        world.chain.mine(70)
        assert len(await ledger.history()) == 6

    run(main())


def test_another_contract_is_no_ledger() -> None:
    async def main() -> None:
        chain = LocalChain()
        token = await Token.deploy(chain, "plain_token")
        for address, reason in ((token.address, "its code"), (Account(b"x" * 32).address, "there is no contract")):
            with pytest.raises(NoSuchLedger, match=reason):
                await EvmLedger.connect(endpoints(chain), address, PAYER)

    run(main())


def test_a_contract_whose_token_is_none_is_refused() -> None:
    async def main() -> None:
        chain = LocalChain()
        world = await new_world(OTHER.address, chain)
        with pytest.raises(NoSuchLedger, match="its token"):
            await world.ledger(PAYER)

    run(main())


def test_nothing_is_signed_for_another_chain() -> None:
    async def main() -> None:
        world = await new_world()
        ledger = await world.ledger(PAYER)
        pinned = endpoints(world.chain, chain_id=ledger.domain.chain_id + 1)
        with pytest.raises(WrongChain):
            await EvmLedger.connect(pinned, world.contract, PAYER, SENDING)

    run(main())


def test_what_redeeming_costs_is_near_what_it_is_estimated_at() -> None:
    async def main() -> None:
        world = await new_world()
        payer, payee = await world.ledger(PAYER), await world.ledger(PAYEE)
        await payer.open([opening(salt, 10) for salt in range(20)], deposit=1000)
        cost, coins = await payee.redeem_cost(), await payee.coins()
        await payee.redeem([claim(payee, salt, 3) for salt in range(20)])
        assert 0.8 < (coins - await payee.coins()) / cost.of(20) < 1.2

    run(main())


def test_many_things_at_once() -> None:
    async def main() -> None:
        world = await new_world()
        payer = await world.ledger(PAYER)
        await asyncio.gather(*(payer.deposit(10 + number) for number in range(6)))
        assert await payer.balance() == 75
        assert [event.kind for event in await payer.history(4)] == ["deposited"] * 4

    run(main())


def test_what_a_chain_needs_leaves_the_limit_of_recursion_alone() -> None:
    code = "import sys; import swarm_sim.local_money, swarm_sim.local_chain; print(sys.getrecursionlimit())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) == 1000
