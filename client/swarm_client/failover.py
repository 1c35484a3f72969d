"""What to do about a failed session: who is blamed and for how long, whether and when to try again; pure.

Owns that policy and the list of peers to avoid, which all sessions of a model share. Used by `token_stream.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from swarm_client.errors import BadResult
from swarm_net.session_errors import (
    HopLost,
    HopSilent,
    HopUnreachable,
    KVFull,
    Overloaded,
    RemoteError,
    SessionError,
    SessionUnknown,
)

MAX_ATTEMPTS = 5  # routes in a row that give no token
MAX_RETRY_WAIT_S = 5.0
_FIRST_WAIT_S = 0.2


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from an error."""

    retry: bool
    blamed: tuple[str, ...] = ()  # to be avoided by everyone
    suspected: tuple[str, ...] = ()  # one of them failed, nobody knows which
    avoid_s: float = 0.0
    may_return: bool = False  # worth another try with the same peers if there are no others


def judge(error: Exception, peers: Sequence[str]) -> Verdict:
    """Say what follows from an error of a session on a route of these peers."""
    if isinstance(error, BadResult):
        return Verdict(retry=True, blamed=(error.peer,), avoid_s=300.0)
    if not isinstance(error, SessionError):
        return Verdict(retry=False)
    retry = error.remote_retry if isinstance(error, RemoteError) else error.retry
    if retry != "elsewhere":
        return Verdict(retry=retry == "here", may_return=True)
    # A hop may lie about others, but only about those of its own route.
    accused = error.target if isinstance(error, HopUnreachable | HopLost) else error.peer
    known = [peer for peer in (accused, error.peer) if peer in peers] or [peer for peer in peers if len(peers) == 1]
    blamed = tuple(known[:1])
    return Verdict(
        retry=True,
        blamed=blamed,
        suspected=() if blamed else tuple(peers),
        avoid_s=2.0 if isinstance(error, KVFull | Overloaded) else 20.0,
        may_return=isinstance(error, HopLost | HopUnreachable | HopSilent | SessionUnknown),
    )


def wait_before_retry_s(attempt: int) -> float:
    """Return how long to wait before the same peers are tried again, the first time being attempt 1."""
    return float(min(_FIRST_WAIT_S * 2 ** (attempt - 1), MAX_RETRY_WAIT_S))


class Avoided:
    """Peers that have failed lately."""

    def __init__(self) -> None:
        self._until_s: dict[str, float] = {}

    def add(self, peers: Sequence[str], now_s: float, avoid_s: float) -> None:
        for peer in peers:
            self._until_s[peer] = max(self._until_s.get(peer, 0.0), now_s + avoid_s)

    def at(self, now_s: float) -> frozenset[str]:
        """Return who is to be avoided now."""
        self._until_s = {peer: until_s for peer, until_s in self._until_s.items() if until_s > now_s}
        return frozenset(self._until_s)
