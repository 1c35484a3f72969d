"""What the greeted links of one transport hold in memory for their peers, and who has to give where that is too much.

Pure counting. A link holds the part of a large body that has arrived, and what was sent and its peer has not read. A
key costs nothing, so what one peer may hold is bounded, and what all hold together too. Where that is exceeded, the
link that ends is the largest one of the peer that holds most: one who holds little never gives way to one who holds
much. Called by `direct_link.py`; how many links a peer may have is asked before it is welcomed.
"""

from dataclasses import dataclass
from typing import Protocol

from swarm_net.frames import DEFAULT_LIMITS, GIB
from swarm_net.links import PeerId


class Holder(Protocol):
    """A link, as it is counted."""

    peer: PeerId

    @property
    def in_use(self) -> bool:
        """Whether a session keeps it warm."""

    @property
    def held_bytes(self) -> int:
        """What it holds now."""

    def give_way(self) -> None:
        """End at once, without sending what waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldingCaps:
    """What peers may hold; the lanes of a peer are two links, and two more where both dialed at once."""

    links_per_peer: int = 32
    bytes_per_peer: int = 4 * DEFAULT_LIMITS.max_body  # on each of two lanes one frame that comes and one that waits
    total_bytes: int = GIB  # 128 links that are as slow as a node computes for (`NodeLimits.hold_above_bytes`)


class Holdings:
    """The greeted links of one transport."""

    def __init__(self, caps: HoldingCaps) -> None:
        self.caps = caps
        self._links: dict[PeerId, dict[Holder, None]] = {}
        self._noted: dict[Holder, int] = {}  # what links said they hold; since then some of it may have left

    def has_room(self, peer: PeerId) -> bool:
        """Whether a peer may have one more link."""
        return len(self._links.get(peer, ())) < self.caps.links_per_peer

    def has_session(self, peer: PeerId) -> bool:
        """Whether any link of a peer carries a session."""
        return any(link.in_use for link in self._links.get(peer, ()))

    def join(self, link: Holder) -> None:
        """A link has been greeted."""
        self._links.setdefault(link.peer, {})[link] = None

    def leave(self, link: Holder) -> None:
        """A link is gone, with all that it held."""
        siblings = self._links.get(link.peer, {})
        siblings.pop(link, None)
        if not siblings:
            self._links.pop(link.peer, None)
        self._noted.pop(link, None)

    def note(self, link: Holder) -> Holder | None:
        """Count anew what a link holds; returns the link that has to end, if now too much is held."""
        held = link.held_bytes
        if held:
            self._noted[link] = held
        else:
            self._noted.pop(link, None)
        if held and self._is_too_much(link.peer):
            for each in list(self._noted):  # much may have left since they said so
                self._noted[each] = each.held_bytes
            return self._loser(link.peer)
        return None

    def _is_too_much(self, peer: PeerId) -> bool:
        return self._of(peer) > self.caps.bytes_per_peer or sum(self._noted.values()) > self.caps.total_bytes

    def _loser(self, peer: PeerId) -> Holder | None:
        if not self._is_too_much(peer):
            return None
        if self._of(peer) <= self.caps.bytes_per_peer:
            peer = max({each.peer: None for each in self._noted}, key=self._of)
        return max((each for each in self._noted if each.peer == peer), key=self._noted.__getitem__)

    def _of(self, peer: PeerId) -> int:
        return sum(self._noted.get(link, 0) for link in self._links.get(peer, ()))
