"""What counts of a chain that may still change its mind; pure.

A state is read twice: as it was enough blocks ago, and now. What is good for a payee counts when it is old enough;
what is bad for it counts at once.
"""

from swarm_ledger.channels import ChannelState


def confirmed_block(head: int, confirmations: int) -> int:
    """Return the last block that has so many confirmations, itself being the first one; below 0: there is none."""
    return head - confirmations + 1


def as_it_counts(confirmed: ChannelState | None, latest: ChannelState | None) -> ChannelState | None:
    """Return the channel that one may rely on; None for one that is too young, or that has vanished."""
    if confirmed is None or latest is None:
        return None
    return ChannelState(
        allocated=min(confirmed.allocated, latest.allocated),
        claimed=max(confirmed.claimed, latest.claimed),
        closes_at_s=latest.closes_at_s,
        is_closed=confirmed.is_closed or latest.is_closed,
    )
