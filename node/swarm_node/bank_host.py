"""A bank that this node hosts for its swarm, and the answer to the question where the swarm's bank is.

Owns the thread that the bank's file belongs to: a commit waits for the disk, and nothing else may. What is asked and
answered is `swarm_ledger.bank_service`'s business; links bring it as calls of the service `bank`.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from swarm_ledger.accounts import Account, Address
from swarm_ledger.bank import Bank
from swarm_ledger.bank_place import SERVICE, WHERE, BankPlace
from swarm_ledger.bank_service import BankService
from swarm_ledger.errors import LedgerError
from swarm_ledger.starting_credit import StartingCredit
from swarm_net.links import Clock, Link
from swarm_net.rpc import RpcServices
from swarm_net.session_errors import ComputeFailed

THIS_MACHINE: Final = "127.0.0.1"


class BankHost:
    """The bank in its thread."""

    def __init__(self, account: Account, clock: Clock) -> None:
        self.account = account
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bank")
        self._service: BankService | None = None

    async def open(self, file: Path, credit: StartingCredit) -> None:
        """Open the books. Raises BrokenStore."""

        def begin() -> BankService:
            return BankService(Bank(file, self.account.address), self.account, credit)

        self._service = await asyncio.get_running_loop().run_in_executor(self._thread, begin)

    async def close(self) -> None:
        """Close the books."""
        if (service := self._service) is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, service.bank.close)
        self._thread.shutdown()

    async def mint(self, account: Address, amount: int) -> int:
        """Give an account credits out of nothing; returns its free balance. Raises BadAmount."""
        service, now_s = self._service, self._clock.wall_ns() / 1e9
        assert service is not None

        def give() -> int:
            service.bank.deposit(account, amount, now_s)
            return service.bank.balance(account)

        return await asyncio.get_running_loop().run_in_executor(self._thread, give)

    async def call(self, method: str, request: bytes, origin: str = THIS_MACHINE) -> bytes:
        """Return the bank's reply."""
        service, now_s = self._service, self._clock.wall_ns() / 1e9
        assert service is not None

        def answer() -> bytes:
            return service.handle(method, request, origin=origin, now_s=now_s)

        return await asyncio.get_running_loop().run_in_executor(self._thread, answer)


def serve_bank(services: RpcServices, place: Callable[[], BankPlace], host: BankHost | None) -> None:
    """Answer where the swarm's bank is, and where it is here, what is asked of it."""

    async def answer(link: Link, method: str, body: bytes) -> bytes:
        if method == WHERE:
            return place().encode()
        if host is None:
            raise ComputeFailed(reason="the bank is at another node: ask where")
        try:
            return await host.call(method, body, link.remote_host)
        except LedgerError as error:
            raise ComputeFailed(reason=str(error)) from error

    services.add(SERVICE, answer)


def pinned_place(file: Path) -> BankPlace | None:
    """Return the bank that this node has used before."""
    return BankPlace.decode(file.read_bytes()) if file.exists() else None
