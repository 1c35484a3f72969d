"""A chain in virtual time with the contract on it, and accounts that use it. For the tests of the ledger on a chain."""

import asyncio
import contextlib
import importlib.util
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from web3 import AsyncWeb3

from swarm_ledger.accounts import Account, Address, address_text
from swarm_ledger.channels import ChannelKey, Claim, VoucherDigests
from swarm_ledger.evm.contract import Abi
from swarm_ledger.evm.deploying import deploy
from swarm_ledger.evm.endpoints import Endpoint, Endpoints
from swarm_ledger.evm.evm_ledger import EvmLedger
from swarm_ledger.evm.questions import Call
from swarm_ledger.evm.sending import Sender, Sending
from swarm_ledger.ledger import Opening
from swarm_sim.local_chain import RICH, LocalChain, LocalProvider

CONTRACTS = Path(__file__).with_name("contracts")
DELAY_S = 1000
PAYER, PAYEE, OTHER = RICH[:3]
SIGNER = Account(b"s" * 32)
SENDING = Sending(confirmations=1)


@dataclass
class World:
    """A chain, and where the contract is."""

    chain: LocalChain
    contract: Address
    sending: Sending = SENDING

    async def ledger(self, account: Account, sending: Sending | None = None) -> EvmLedger:
        return await EvmLedger.connect(endpoints(self.chain), self.contract, account, sending or self.sending)

    async def later(self, seconds: int) -> None:
        self.chain.wait(seconds)


async def new_world(token: Address | None = None, chain: LocalChain | None = None) -> World:
    """Deploy the contract, on a new chain if none is given."""
    chain = chain or LocalChain()
    made = await deploy(endpoints(chain), OTHER, token=token, close_delay_s=DELAY_S, sending=SENDING)
    return World(chain, made)


def endpoints(chain: LocalChain, chain_id: int | None = None) -> Endpoints:
    return Endpoints([Endpoint("tester", LocalProvider(chain))], chain_id=chain_id)


@contextlib.asynccontextmanager
async def blocks(chain: LocalChain, every_s: float = 12) -> AsyncIterator[None]:
    """Let the chain make a block so often, whatever waits."""

    async def mine() -> None:
        while True:
            await asyncio.sleep(every_s)
            chain.mine()

    chain.is_mining = False
    async with asyncio.TaskGroup() as group:
        miner = group.create_task(mine())
        yield
        miner.cancel()
    chain.is_mining = True


def opening(salt: int, amount: int, payee: Account = PAYEE) -> Opening:
    return Opening(payee.address, SIGNER.address, salt, amount)


def key_of(salt: int, payee: Account = PAYEE) -> ChannelKey:
    return ChannelKey(PAYER.address, payee.address, SIGNER.address, salt)


def claim(ledger: EvmLedger, salt: int, cumulative: int) -> Claim:
    key = key_of(salt)
    return Claim(key, cumulative, VoucherDigests(ledger.domain).sign(key.id, cumulative, SIGNER).signature)


@dataclass
class Token:
    """One of the contracts beside this file, deployed by an account that owns all of it."""

    chain: LocalChain
    owner: Account
    abi: Abi
    address: Address

    @classmethod
    async def deploy(cls, chain: LocalChain, name: str, owner: Account = PAYER, supply: int = 10**9) -> "Token":
        compiled = compiler().compile_contract(CONTRACTS / f"{name}.vy")
        abi = Abi(compiled["abi"])
        sender = await sender_of(chain, owner)
        code = bytes.fromhex(compiled["bytecode"][2:]) + abi.constructor(supply)
        receipt = await sender.send(Call(None, code))
        assert receipt.contract is not None
        return cls(chain, owner, abi, receipt.contract)

    async def send(self, function: str, *arguments: Any) -> None:
        sender = await sender_of(self.chain, self.owner)
        await sender.send(Call(self.address, self.abi.call(function, *arguments)))

    async def read(self, function: str, *arguments: Any) -> Any:
        fields: Any = {"to": address_text(self.address), "data": self.abi.call(function, *arguments)}
        answer = await AsyncWeb3(LocalProvider(self.chain)).eth.call(fields)
        return self.abi.result(function, bytes(answer))

    async def of(self, holder: Address) -> int:
        return int(await self.read("balanceOf", holder))


async def sender_of(chain: LocalChain, account: Account) -> Sender:
    all_of_them = endpoints(chain)
    return Sender(all_of_them, account, await all_of_them.chain_id(), SENDING)


def compiler() -> Any:
    """Return the module that compiles contracts, which is no part of a package."""
    file = Path(__file__).parents[2] / "ledger" / "contracts" / "compile.py"
    spec = importlib.util.spec_from_file_location("compile_contracts", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
