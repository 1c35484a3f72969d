"""End to end over real HTTP: the story on anvil, where it is installed or npm can fetch it."""

import asyncio
from collections.abc import Iterator

import pytest

from swarm_ledger.accounts import Account
from swarm_ledger.errors import NoGasMoney
from swarm_ledger.evm.deploying import deploy
from swarm_ledger.evm.endpoints import Endpoints
from swarm_ledger.evm.evm_ledger import EvmLedger
from swarm_ledger.evm.questions import Call
from swarm_ledger.evm.sending import Sender, Sending
from swarm_sim import anvil
from tests.ledger import scenario
from tests.ledger.evm_world import DELAY_S

PAYER = Account(bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"))  # anvil's own
PAYEE = Account(bytes.fromhex("59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d"))
AT_ONCE = Sending(confirmations=1, poll_s=0.02)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    if (binary := anvil.fetch()) is None:
        pytest.skip("anvil is not installed, and npm cannot fetch it")
    with anvil.running(binary) as url:
        yield url


def test_the_story_on_anvil(url: str) -> None:
    async def later(seconds: int) -> None:
        anvil.call(url, "evm_increaseTime", seconds)
        anvil.call(url, "evm_mine")

    async def main() -> None:
        endpoints = Endpoints.of_urls(["http://127.0.0.1:9", url], chain_id=anvil.CHAIN_ID)
        try:
            made = await deploy(endpoints, PAYER, close_delay_s=DELAY_S, sending=AT_ONCE)
            payer = await EvmLedger.connect(endpoints, made, PAYER, AT_ONCE)
            payee = await EvmLedger.connect(endpoints, made, PAYEE, AT_ONCE)
            await payer.deposit(scenario.NEEDED)
            await scenario.tell(payer, payee, later)
        finally:
            await endpoints.close()

    asyncio.run(main())


def test_anvil_says_what_we_understand(url: str) -> None:
    """Nodes word their refusals differently: a stuck transaction is replaced here, too."""

    async def main() -> None:
        endpoints = Endpoints.of_urls([url])
        try:
            poor = Account(b"p" * 32)
            with pytest.raises(NoGasMoney):
                await Sender(endpoints, poor, anvil.CHAIN_ID, AT_ONCE).send(Call(PAYEE.address))
            anvil.call(url, "evm_setAutomine", False)
            hasty = Sending(confirmations=1, poll_s=0.02, stuck_after_s=0.05)
            sender = Sender(endpoints, PAYER, anvil.CHAIN_ID, hasty)
            async with asyncio.TaskGroup() as group:
                sending = [group.create_task(sender.send(Call(poor.address, value=1 << bit))) for bit in range(3)]
                await asyncio.sleep(0.5)
                anvil.call(url, "evm_mine")
            receipts = [each.result() for each in sending]
            assert len({receipt.transaction for receipt in receipts}) == 3
            assert await Sender(endpoints, poor, anvil.CHAIN_ID, AT_ONCE).coins() == 7
        finally:
            anvil.call(url, "evm_setAutomine", True)
            await endpoints.close()

    asyncio.run(main())


def test_a_reorganisation_on_anvil(url: str) -> None:
    async def main() -> None:
        endpoints = Endpoints.of_urls([url])
        receiver = Account(b"r" * 32)
        try:
            sender = Sender(endpoints, PAYER, anvil.CHAIN_ID, Sending(confirmations=3, poll_s=0.02, stuck_after_s=0.2))
            before = anvil.call(url, "evm_snapshot")
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(sender.send(Call(receiver.address, value=5)))
                await asyncio.sleep(0.3)
                assert await Sender(endpoints, receiver, anvil.CHAIN_ID, AT_ONCE).coins() == 5
                anvil.call(url, "evm_revert", before)
                await asyncio.sleep(0.1)
                while not sending.done():
                    anvil.call(url, "evm_mine")
                    await asyncio.sleep(0.05)
            assert await Sender(endpoints, receiver, anvil.CHAIN_ID, AT_ONCE).coins() == 5
        finally:
            await endpoints.close()

    asyncio.run(main())
