"""A new contract on a chain. Called by `swarm-ledger deploy`, and by simulations that begin with an empty chain."""

from swarm_ledger.accounts import NOBODY, Account, Address
from swarm_ledger.evm import contract
from swarm_ledger.evm.endpoints import Endpoints
from swarm_ledger.evm.questions import Call
from swarm_ledger.evm.sending import Sender, Sending

CLOSE_DELAY_S = 24 * 3600


async def deploy(
    endpoints: Endpoints,
    account: Account,
    *,
    token: Address | None = None,
    close_delay_s: int = CLOSE_DELAY_S,
    sending: Sending | None = None,
) -> Address:
    """Make a contract that counts in the chain's coin or in an ERC-20; returns its address. Errors as `Sender.send`."""
    sender = Sender(endpoints, account, await endpoints.chain_id(), sending or Sending())
    data = contract.shipped().deployment(token or NOBODY, close_delay_s)
    receipt = await sender.send(Call(None, data))
    assert receipt.contract is not None
    return receipt.contract
