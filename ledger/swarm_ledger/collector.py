"""Looks after a payee's channels: learns what the ledger says of them, and redeems in time.

The decision what to redeem is `redeeming.py`'s. A node runs `run` as one of its tasks; what it must know at once, that
a channel is closing or has vanished, it is told through `observe`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from swarm_ledger.channels import ChannelId, ChannelState, Claim
from swarm_ledger.errors import LedgerError, NothingToClaim
from swarm_ledger.ledger import Ledger
from swarm_ledger.redeeming import Candidate, Cost, Policy, due

logger = logging.getLogger(__name__)

INTERVAL_S: Final = 60.0
LOOKS_IN_A_DELAY: Final = 20  # however short the delay of a close is
LEAST_INTERVAL_S: Final = 1.0

Claims = Callable[[], Sequence[Claim]]
Observe = Callable[[ChannelId, ChannelState | None], None]
Collected = Callable[[Sequence[Claim], int], None]


class Collector:
    """Redeems what one payee has earned on one ledger."""

    def __init__(
        self,
        ledger: Ledger,
        claims: Claims,
        cost: Callable[[], Awaitable[Cost]],
        *,
        observe: Observe,
        collected: Collected,
        policy: Policy | None = None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        """`claims` gives the best voucher of each channel; `observe` is told of each of these channels what the ledger
        says, None if it knows none (or none yet); `collected` what was redeemed, and how much that was in all."""
        self._ledger = ledger
        self._claims = claims
        self._cost = cost
        self._observe = observe
        self._collected = collected
        self._policy = policy or Policy()
        self.interval_s = max(LEAST_INTERVAL_S, min(interval_s, ledger.close_delay_s / LOOKS_IN_A_DELAY))

    async def run(self) -> None:
        """Look again and again, until cancelled. What fails is tried again the next time."""
        while True:
            try:
                await self.look()
            except LedgerError as error:
                logger.warning("cannot redeem now: %s; %s", error, error.remedy())
            await asyncio.sleep(self.interval_s)

    async def look(self) -> int:
        """Look once; returns what was redeemed. Raises LedgerError; what was redeemed before that is redeemed."""
        claims = self._claims()
        if not claims:
            return 0
        states = {entry.key.id: entry.state for entry in await self._ledger.channels()}
        candidates = []
        for claim in claims:
            state = states.get(claim.key.id)
            if state is None:
                # Closed, or hidden among channels that others have opened to this payee by the thousand.
                state = await self._ledger.channel(claim.key.id)
            self._observe(claim.key.id, state)
            if state is not None:
                candidates.append(Candidate(claim, state))
        if not any(candidate.value for candidate in candidates):
            return 0
        return await self._redeem(due(candidates, await self._cost(), self._policy))

    async def _redeem(self, batches: Sequence[Sequence[Claim]]) -> int:
        paid = 0
        for batch in batches:
            try:
                amount = await self._ledger.redeem(batch)
            except NothingToClaim:  # somebody else has sent them
                continue
            self._collected(batch, amount)
            paid += amount
        return paid
