"""A chain for a swarm on one machine: started, with a contract and accounts that have money, and gone with the swarm.

Owns what `swarm-sim local --ledger evm` needs before its nodes start: anvil where it is installed, else eth-tester's
EVM; the contract; an account for each node and for the client, in key files whose password means nothing: this is play
money. What is then paid is paid by the same code as on any chain.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swarm_client.money import WalletOptions
from swarm_ledger import keystore
from swarm_ledger.accounts import Account, Address, address_text
from swarm_ledger.evm.deploying import deploy
from swarm_ledger.evm.endpoints import Endpoints
from swarm_ledger.evm.evm_ledger import EvmLedger
from swarm_ledger.evm.questions import Call
from swarm_ledger.evm.sending import Sender, Sending
from swarm_sim import anvil

ETHER: Final = 10**18
GAS_MONEY: Final = ETHER
DEPOSIT: Final = 1000 * ETHER
PRICE: Final = "100"  # ETH for an hour: play money, and enough for a hundred tokens to be worth redeeming
PASSWORD: Final = "play money"  # noqa: S105
WEAK: Final = 2  # scrypt's work factor, for the same reason
AT_ONCE: Final = Sending(confirmations=1, poll_s=0.02)
ANVILS_FIRST = bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")  # known to everybody


@dataclass(frozen=True, slots=True)
class LocalMoney:
    """A chain, and who has what on it."""

    kind: str  # anvil or eth-tester
    url: str
    contract: Address
    folder: Path
    nodes: tuple[Account, ...]
    client: Account

    def arguments(self, node: int, price: str) -> tuple[str, ...]:
        """Return what `swarm-node start` has to be told."""
        return (
            *("--currency", "ETH", "--price", price or PRICE, "--rpc", self.url, "--confirmations", "1"),
            *("--contract", address_text(self.contract), "--keystore", str(self.folder / f"node-{node}.json")),
            *("--password-file", str(self.folder / "password")),
        )

    @property
    def wallet(self) -> WalletOptions:
        """What the client pays from."""
        return WalletOptions(
            folder=self.folder / "wallet",
            rpc=(self.url,),
            keystore=self.folder / "client.json",
            password_file=self.folder / "password",
        )


@asynccontextmanager
async def local_money(folder: Path, nodes: int) -> AsyncIterator[LocalMoney]:
    """Start a chain, deploy, fund; `folder` is for the keys. Raises LedgerError, TimeoutError."""
    with _chain() as (kind, url, rich):
        accounts = tuple(Account.generate(secrets.token_bytes) for _ in range(nodes))
        client = Account.generate(secrets.token_bytes)
        await asyncio.to_thread(_write_keys, folder, accounts, client)
        endpoints = Endpoints.of_urls([url])
        try:
            contract = await deploy(endpoints, rich, sending=AT_ONCE)
            bank = Sender(endpoints, rich, await endpoints.chain_id(), AT_ONCE)
            for account in accounts:
                await bank.send(Call(account.address, value=GAS_MONEY))
            await bank.send(Call(client.address, value=DEPOSIT + GAS_MONEY))
            await (await EvmLedger.connect(endpoints, contract, client, AT_ONCE)).deposit(DEPOSIT)
        finally:
            await endpoints.close()
        yield LocalMoney(kind, url, contract, folder, accounts, client)


@contextmanager
def _chain() -> Iterator[tuple[str, str, Account]]:
    """Run a chain; gives what it is, its URL, and an account that has plenty."""
    if (binary := anvil.find()) is not None:
        with anvil.running(binary) as url:
            yield "anvil", url, Account(ANVILS_FIRST)
        return
    from swarm_sim.local_chain import RICH, LocalChain, served

    with served(LocalChain()) as url:
        yield "eth-tester", url, RICH[0]


def _write_keys(folder: Path, nodes: tuple[Account, ...], client: Account) -> None:
    (folder / "password").write_text(PASSWORD + "\n")
    for number, account in enumerate(nodes):
        keystore.create(folder / f"node-{number}.json", account, PASSWORD, work_factor=WEAK)
    keystore.create(folder / "client.json", client, PASSWORD, work_factor=WEAK)
