"""What a node allows: times, counts and bytes, with their defaults. Read by `node.py` and `openings.py`."""

from dataclasses import dataclass
from typing import Literal

PrefixSharing = Literal["off", "client", "everyone"]


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """What a node allows."""

    idle_timeout_s: float = 300.0
    dial_timeout_s: float = 5.0
    hold_above_bytes: int = 8 << 20  # of activations that wait at a link: then nothing more is computed for it
    release_below_bytes: int = 2 << 20
    slow_link_timeout_s: float = 60.0  # for which a link may keep everything waiting; then it is closed
    prefix_sharing: PrefixSharing = "client"
    max_waiting_s: float = 60.0  # what queued prompts may take; with more, new sessions are refused
    prefill_tokens_per_s: float = 0.0  # as measured at the start; 0: not known
    pay_timeout_s: float = 5.0  # for which a step waits for its payment
    lease_grace_s: float = 30.0  # for which a session is kept when its lease is over
    max_opening: int = 256  # openings that wait for their next hop; one more is refused
    max_opening_of_a_peer: int = 128  # of them, those that came from one
    max_opening_s: float = 60.0  # for which an opening is waited for, whatever its deadline says
