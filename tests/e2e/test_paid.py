"""Real processes that are paid, at a bank or on a chain: the same story, one option apart."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from swarm_client import AsyncRemoteModel
from swarm_client.bank_access import open_bank
from swarm_client.errors import NotOffered
from swarm_client.money import WalletOptions
from swarm_ledger.access import Access
from swarm_ledger.accounts import Account
from swarm_ledger.currencies import CREDITS
from swarm_ledger.evm import opening
from swarm_ledger.evm.evm_ledger import EvmLedger
from swarm_ledger.ledger import Ledger
from swarm_net.session_errors import ComputeFailed, PaymentRefused
from swarm_node.operator import ask_mint, ask_status
from swarm_sim.demo_model import demo_model_path
from swarm_sim.local_money import DEPOSIT, local_money
from swarm_sim.local_swarm import LocalSwarm, LocalSwarmPlan
from swarm_sim.splits import split_checkpoint

NODES = 3
STARTING_CREDIT = 100 * 10**9


@asynccontextmanager
async def paid_swarm(kind: str, folder: Path) -> AsyncIterator[tuple[LocalSwarm, WalletOptions, AsyncExitStack]]:
    """Start nodes that are paid, and say what from."""
    async with AsyncExitStack() as stack:
        model = demo_model_path()
        plan = LocalSwarmPlan(model=model, splits=split_checkpoint(model, NODES), price="", arguments=("--dht", "off"))
        wallet = WalletOptions(folder=folder / "wallet")
        if kind == "evm":
            money = await stack.enter_async_context(local_money(folder, NODES))
            own = tuple(money.arguments(number, "") for number in range(NODES))
            plan, wallet = LocalSwarmPlan(model=model, splits=plan.splits, price="", own_arguments=own), money.wallet
        yield await stack.enter_async_context(LocalSwarm(plan)), wallet, stack


@asynccontextmanager
async def ledger_of(swarm: LocalSwarm, wallet: WalletOptions, contract: str) -> AsyncIterator[Ledger]:
    """Open the client's own account."""
    if not wallet.rpc:
        assert wallet.folder is not None
        access = Access("embedded", bootstrap=tuple(swarm.bootstrap), account=wallet.folder / "account.key")
        async with open_bank(access) as ledger:
            yield ledger
        return
    access = Access(
        "evm", rpc=wallet.rpc, contract=contract, keystore=wallet.keystore, password_file=wallet.password_file
    )
    async with opening.open_evm(access) as chain:
        assert isinstance(chain, EvmLedger)
        yield chain


@pytest.mark.parametrize("kind", ["embedded", "evm"])
async def test_what_the_client_pays_is_what_the_nodes_have_to_the_last_unit(kind: str, tmp_path: Path) -> None:
    async with paid_swarm(kind, tmp_path) as (swarm, wallet, _):
        async with AsyncRemoteModel.connect(str(swarm.plan.model), swarm.bootstrap, wallet=wallet) as model:
            generations = await model.generate([[1, 2, 3], [4, 5, 6, 7]], max_new_tokens=30, temperature=0)
        rows = [await ask_status(node, redeem=True) for node in swarm.running()]
        earned = {row["peer_id"]: row["price"] for row in rows}
        for node in swarm.nodes:
            paid = sum(hop.paid for each in generations for hop in each.receipt.hops if hop.peer == node.peer)
            price = earned[node.peer]
            assert 0 < paid == price["earned"] == price["redeemed"]
            assert price["unclaimed"] == 0
        contract = rows[0]["price"]["ledger"].partition(":")[2]
        async with ledger_of(swarm, wallet, contract) as ledger:
            assert {price["ledger"] for price in earned.values()} == {str(ledger.domain)}
            put_aside = sum(entry.state.allocated - entry.state.claimed for entry in await ledger.channels())
            everything = await ledger.balance() + put_aside + sum(price["redeemed"] for price in earned.values())
            assert everything == (DEPOSIT if kind == "evm" else STARTING_CREDIT)


async def test_the_operator_of_the_bank_mints(tmp_path: Path) -> None:
    model = demo_model_path()
    plan = LocalSwarmPlan(model=model, splits=split_checkpoint(model, 2), price="1", arguments=("--dht", "off"))
    account = Account.generate(os.urandom)
    async with LocalSwarm(plan) as swarm:
        host, other = swarm.running()
        minted = await ask_mint(host, account.address, CREDITS.parse("2.5"))
        assert (minted["minted"], minted["balance"]) == (str(CREDITS.parse("2.5")), str(CREDITS.parse("2.5")))
        minted = await ask_mint(host, account.address, CREDITS.parse("0.5"))
        assert minted["balance"] == str(CREDITS.parse("3"))
        with pytest.raises(ComputeFailed, match="no bank"):
            await ask_mint(other, account.address, 1)
        with pytest.raises(ComputeFailed, match="amount"):
            await ask_mint(host, account.address, 0)
        assert ("bank" in host.state, "bank" in other.state) == (True, False)


async def test_a_free_node_and_a_priced_one_serve_one_route(tmp_path: Path) -> None:
    model = demo_model_path()
    splits = split_checkpoint(model, 2)
    plan = LocalSwarmPlan(model=model, splits=splits, price="", own_arguments=(("--price", "2"), ("--price", "0")))
    async with LocalSwarm(plan) as swarm:
        wallet = WalletOptions(folder=tmp_path / "wallet")
        async with AsyncRemoteModel.connect(str(model), swarm.bootstrap, wallet=wallet) as remote:
            generation = await remote.generate([1, 2, 3], max_new_tokens=10, temperature=0)
        assert [hop.peer for hop in generation.receipt.hops] == [swarm.nodes[0].peer]


async def test_who_brings_no_voucher_is_not_served(tmp_path: Path) -> None:
    """An older client that knows nothing of payments gets a typed error, and so does one without a wallet."""
    model = demo_model_path()
    plan = LocalSwarmPlan(model=model, splits=split_checkpoint(model, 1), price="1", arguments=("--dht", "off"))
    async with LocalSwarm(plan) as swarm:
        async with AsyncRemoteModel.connect(str(model), swarm.bootstrap, wallet="none") as remote:
            with pytest.raises((NotOffered, PaymentRefused)) as caught:
                await remote.generate([1, 2, 3], max_new_tokens=10, temperature=0)
        assert caught.value.remedy()
