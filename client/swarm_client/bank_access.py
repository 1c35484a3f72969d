"""`swarm-ledger` for banks: they are reached over the swarm's links, which `swarm_ledger` knows nothing of.

Owns the way from a bootstrap address to the swarm's bank. The console script `swarm-ledger` begins here.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from swarm_client.money import default_wallet
from swarm_client.world import real_world
from swarm_ledger import __main__ as program
from swarm_ledger import wallet_file
from swarm_ledger.access import Access
from swarm_ledger.bank_place import SERVICE, WHERE, BankPlace
from swarm_ledger.embedded import EmbeddedLedger
from swarm_ledger.errors import BadOption, LedgerUnreachable
from swarm_ledger.ledger import Ledger
from swarm_net.endpoint import Endpoint
from swarm_net.errors import NetError
from swarm_net.links import PeerId
from swarm_net.rpc import RemoteService

TIMEOUT_S: Final = 10.0


@asynccontextmanager
async def open_bank(access: Access) -> AsyncIterator[Ledger]:
    """Open the bank of the swarm that options name, for the account in a file. Raises LedgerError."""
    if not access.bootstrap:
        raise BadOption("--bootstrap", "the address of a node of the swarm is missing")
    account = wallet_file.load(access.account or default_wallet() / "account.key")
    world = real_world()
    endpoint = Endpoint(peer=world.peer, transport=world.transport, clock=world.clock)
    try:
        place = await _find(endpoint, access.bootstrap)
        bank = RemoteService(endpoint, SERVICE, PeerId(place.peer), place.addresses, timeout_s=TIMEOUT_S)
        yield await EmbeddedLedger.connect(account, place.bank, bank.call)
    finally:
        await endpoint.close()


async def _find(endpoint: Endpoint, bootstrap: tuple[str, ...]) -> BankPlace:
    """Ask nodes one after the other where their swarm's bank is."""
    reasons = []
    for address in bootstrap:
        try:
            link = await endpoint.dial(address, TIMEOUT_S)
            service = RemoteService(endpoint, SERVICE, link.peer, (address,), timeout_s=TIMEOUT_S)
            return BankPlace.decode(await service.call(WHERE, b""))
        except (NetError, ConnectionError, LedgerUnreachable) as error:
            reasons.append(str(error))
    raise LedgerUnreachable(where="the swarm's bank", reason="; ".join(reasons))


def main() -> None:
    """Run `swarm-ledger`."""
    program.main({"embedded": open_bank})


if __name__ == "__main__":
    main()
