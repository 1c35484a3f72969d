"""The contract's events of one account: what has to be read of a chain to know its channels and its history.

Reads each block once: what no reorganisation reaches any more is kept, what is younger is read again. Endpoints refuse
ranges that are too long, each with another limit and another text, so a range that fails is halved. Called by
`evm_ledger.py`.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from swarm_ledger.accounts import Address
from swarm_ledger.errors import LedgerUnreachable
from swarm_ledger.evm import questions
from swarm_ledger.evm.contract import Line
from swarm_ledger.evm.endpoints import Endpoints

SETTLED_BLOCKS: Final = 64  # behind these nothing changes, however few confirmations a ledger asks for
FIRST_RANGE: Final = 10_000  # blocks
MOST_RANGE: Final = 200_000
LEAST_RANGE: Final = 10  # an endpoint that refuses these has another reason


class EventLog:
    """All events of one account in one contract."""

    def __init__(self, endpoints: Endpoints, address: Address, account: Address, first_block: int) -> None:
        self._endpoints = endpoints
        self._address = address
        word = "0x" + bytes(12).hex() + account.hex()
        self._filters: tuple[list[str | None], ...] = ([None, word], [None, None, None, word])
        self._lock = asyncio.Lock()
        self._kept: list[Line] = []
        self._next_block = first_block
        self._range = FIRST_RANGE

    async def read(self) -> Sequence[Line]:
        """Return all events up to now, oldest first. Raises LedgerUnreachable."""
        async with self._lock:
            head = await self._endpoints.ask(questions.head)
            await self._keep_until(head - SETTLED_BLOCKS)
            young = await self._read_range(self._next_block, head) if self._next_block <= head else []
            return [*self._kept, *young]

    async def _keep_until(self, settled: int) -> None:
        while self._next_block <= settled:
            until = min(self._next_block + self._range - 1, settled)
            try:
                lines = await self._read_range(self._next_block, until)
            except LedgerUnreachable:
                if self._range <= LEAST_RANGE:
                    raise
                self._range //= 2
                continue
            self._kept += lines
            self._next_block = until + 1
            self._range = min(2 * self._range, MOST_RANGE)

    async def _read_range(self, start: int, end: int) -> list[Line]:
        found: dict[tuple[int, int], Line] = {}
        for topics in self._filters:
            lines = await self._endpoints.ask(questions.events(self._address, topics, start, end))
            found.update({(line.block, line.index): line for line in lines})
        return [found[place] for place in sorted(found)]
