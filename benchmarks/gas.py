"""What the contract's transactions cost in gas, against the aims, in one table.

    python benchmarks/gas.py                      some seconds

On eth-tester's EVM (Prague), each transaction sent and mined as a ledger on a chain sends it; `gas` is its receipt's.
Gas depends on the zero bytes in what is sent, so accounts and salts are named: keys 1 to 3 of the chain, a session key
of its own for each channel, salts of 8 bytes as clients choose them. A first balance takes 20,000
gas, which a deposit saves that is all used. Ledgers with a token cost more by what the token's own code takes.
"""

import argparse
import asyncio
import platform
from importlib.metadata import version

from rich.console import Console
from rich.table import Table

from swarm_ledger.accounts import Account, Address, keccak
from swarm_ledger.channels import ChannelKey, Claim, Domain, VoucherDigests
from swarm_ledger.evm import contract
from swarm_ledger.evm.deploying import deploy
from swarm_ledger.evm.endpoints import Endpoint, Endpoints
from swarm_ledger.evm.questions import Call
from swarm_ledger.evm.sending import Sender, Sending
from swarm_ledger.ledger import Opening
from swarm_sim.local_chain import RICH, LocalChain, LocalProvider
from tables import say, show_table

CHANNELS = 20
AMOUNT = 10**15
DELAY_S = 1000
SENDING = Sending(confirmations=1, poll_s=0.01)
PAYER, PAYEE, STRANGER = RICH[:3]
SALTS = [int.from_bytes(keccak(bytes([number]))[:8], "big") for number in range(CHANNELS)]
SIGNERS = [Account(bytes([7]) * 31 + bytes([number + 1])) for number in range(CHANNELS)]


class Bench:
    """A new chain with the contract on it."""

    def __init__(self, chain: LocalChain, endpoints: Endpoints, domain: Domain) -> None:
        self._chain = chain
        self._endpoints = endpoints
        self._domain = domain
        self._digests = VoucherDigests(domain)

    @classmethod
    async def new(cls) -> "Bench":
        chain = LocalChain()
        endpoints = Endpoints([Endpoint("tester", LocalProvider(chain))])
        made = await deploy(endpoints, STRANGER, close_delay_s=DELAY_S, sending=SENDING)
        return cls(chain, endpoints, Domain(await endpoints.chain_id(), made))

    async def gas(self, account: Account, data: bytes, value: int = 0) -> int:
        sender = Sender(self._endpoints, account, self._domain.chain_id, SENDING)
        return (await sender.send(Call(self._domain.contract, data, value))).gas_used

    def key(self, number: int) -> ChannelKey:
        return ChannelKey(PAYER.address, PAYEE.address, SIGNERS[number].address, SALTS[number])

    def claims(self, cumulative: int, count: int = CHANNELS) -> list[Claim]:
        keys = [self.key(number) for number in range(count)]
        return [
            Claim(key, cumulative, self._digests.sign(key.id, cumulative, signer).signature)
            for key, signer in zip(keys, SIGNERS, strict=False)
        ]

    async def measure(self) -> list[tuple[str, int, int | None]]:
        """Return each transaction with its gas, and the aim if there is one."""
        openings = [
            Opening(PAYEE.address, signer.address, salt, AMOUNT) for salt, signer in zip(SALTS, SIGNERS, strict=True)
        ]
        total = CHANNELS * AMOUNT
        rows: list[tuple[str, int, int | None]] = []

        async def add(what: str, account: Account, data: bytes, value: int = 0, aim: int | None = None) -> None:
            rows.append((what, await self.gas(account, data, value), aim))

        what = f"open {CHANNELS} with a first deposit"
        await add(f"{what}, all used", PAYER, contract.deposit_open(total, openings), total, 565_000)
        await add(f"{what}, half left", STRANGER, contract.deposit_open(2 * total, openings), 2 * total)
        await add("deposit", PAYER, contract.deposit(2 * AMOUNT), 2 * AMOUNT)
        await add("redeem one, the payee's first", PAYEE, contract.redeem(self.claims(1000, 1)))
        await add("redeem one", PAYEE, contract.redeem(self.claims(AMOUNT // 3, 1)))
        await self.gas(PAYEE, contract.redeem(self.claims(AMOUNT // 2)))
        claims = self.claims(2 * AMOUNT // 3)
        await add(f"redeem {CHANNELS} of one payee", PAYEE, contract.redeem(claims), aim=320_000)
        await add("top_up", PAYER, contract.top_up(self.key(1), AMOUNT))
        await add("request_close", PAYER, contract.request_close(self.key(1)))
        self._chain.wait(DELAY_S)
        await add("finish_close, by the payer", PAYER, contract.finish_close(self.key(1)))
        await add("finish_close, by the payee", PAYEE, contract.finish_close(self.key(2)))
        await add("withdraw", PAYEE, contract.withdraw(AMOUNT, Address(PAYEE.address)))
        return rows


async def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    console = Console()
    rows = await (await Bench.new()).measure()
    table = Table("transaction", "gas", "aim", title="Gas of the contract")
    for what, gas, aim in rows:
        table.add_row(what, f"{gas:,}", "-" if aim is None else f"<= {aim:,} {'met' if gas <= aim else 'missed'}")
    show_table(console, table)
    runtime = len(contract.shipped().runtime)
    say(
        console,
        f"Contract of {runtime:,} bytes, py-evm {version('py-evm')}, web3 {version('web3')}, "
        f"Python {platform.python_version()}. No chance is involved: each run gives the same figures.",
    )


if __name__ == "__main__":
    asyncio.run(main())
