"""How many searches for what may not exist run at once, for each peer and in all. Pure counting.

A search of the DHT is a node's dearest answer, and random revisions cost who asks nothing. Revisions that are known to
be served are not counted: whoever asks for what exists is not held up by whoever asks for what does not. Called by
`discovery.py`.
"""

from collections import Counter

from swarm_net.links import PeerId
from swarm_net.session_errors import Busy


class SearchQuota:
    """Counts the searches that run."""

    def __init__(self, *, of_a_peer: int, in_all: int) -> None:
        self._of_a_peer = of_a_peer
        self._in_all = in_all
        self._running: Counter[PeerId] = Counter()

    def begin(self, peer: PeerId) -> None:
        """Count one more search for a peer. Raises Busy, and counts none, where there are too many."""
        if self._running.get(peer, 0) >= self._of_a_peer:
            raise Busy(f"{self._of_a_peer} revisions that nobody here knows are being looked for, for this peer")
        if self._running.total() >= self._in_all:
            raise Busy(f"{self._in_all} revisions that nobody here knows are being looked for")
        self._running[peer] += 1

    def end(self, peer: PeerId) -> None:
        """One has ended."""
        self._running[peer] -= 1
        if not self._running[peer]:
            del self._running[peer]
