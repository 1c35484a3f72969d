"""When a payee collects its vouchers, and which; pure.

A redemption costs gas on a chain and nothing at a bank, so vouchers are collected when they are worth many times that,
all that pay for themselves in one go. A channel that is closing is different: what it still owes is lost when the delay
has passed, so it is collected at once unless that costs more than it brings.

Called by `collector.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from swarm_ledger.channels import ChannelState, Claim


@dataclass(frozen=True, slots=True)
class Cost:
    """What a redemption costs, in the smallest unit of the ledger's currency."""

    batch: int = 0  # whatever is in it
    claim: int = 0  # each voucher

    def of(self, claims: int) -> int:
        return self.batch + claims * self.claim


@dataclass(frozen=True, slots=True)
class Policy:
    """When it is worth it."""

    worth: int = 10  # so many times the cost
    most_claims: int = 64  # in one batch


@dataclass(frozen=True, slots=True)
class Candidate:
    """The best voucher of a channel, and what the ledger says of the channel."""

    claim: Claim
    state: ChannelState

    @property
    def value(self) -> int:
        """What the ledger would pay for it now."""
        if self.state.is_closed:
            return 0
        return max(0, min(self.claim.cumulative, self.state.allocated) - self.state.claimed)

    @property
    def is_urgent(self) -> bool:
        """Whether it is lost by waiting."""
        return self.state.closes_at_s != 0


def due(candidates: Sequence[Candidate], cost: Cost, policy: Policy) -> list[list[Claim]]:
    """Return the batches to redeem now, the most urgent and most valuable first; most of the time none."""
    paying = sorted(
        (each for each in candidates if each.value > cost.claim), key=lambda each: (not each.is_urgent, -each.value)
    )
    batches: list[list[Claim]] = []
    for start in range(0, len(paying), policy.most_claims):
        batch = paying[start : start + policy.most_claims]
        price = cost.of(len(batch))
        urgent = [each for each in batch if each.is_urgent]
        if sum(each.value for each in batch) >= max(1, policy.worth * price):
            batches.append([each.claim for each in batch])
        elif sum(each.value for each in urgent) > cost.of(len(urgent)):
            batches.append([each.claim for each in urgent])
    return batches
