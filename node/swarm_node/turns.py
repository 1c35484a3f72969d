"""Who may run while not all sessions fit the KV pool together: they take turns, so that pages seldom move.

Owns the list of sessions that are meant to be in the pool now. Where all fit, all are. Else a session keeps its place
for a turn, long beside what moving its pages takes, and then makes room for the one that has waited longest. Pure;
called by `scheduler.py` with the present as an argument. Where the pages really are, only the executor knows
(`swarm_model/session_kv.py`): it moves whoever ran longest ago, and what these rules get wrong costs time alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

TURN_S: Final = 0.5  # moving a gigabyte of pages takes about a fifth of it


class Waiting(Protocol):
    """What waits: a step of a session that will then have `position + count` tokens."""

    session: bytes
    position: int
    count: int


_W = TypeVar("_W", bound=Waiting)


@dataclass(slots=True)
class _Place:
    tokens: int
    since_s: float


class Turns:
    """Hands out places for `pool_tokens` tokens of KV."""

    def __init__(self, pool_tokens: int, page_size: int) -> None:
        self._pool_tokens = pool_tokens
        self._page_size = page_size
        self._places: dict[bytes, _Place] = {}  # longest there first
        self.next_turn_s: float | None = None  # when somebody who waits now gets a place

    def admit(self, waiting: Iterable[_W], now_s: float) -> list[_W]:
        """Return those that may run now, in the order given: longest waiting first."""
        admitted: list[_W] = []
        self.next_turn_s = None
        for work in waiting:
            tokens = -(-(work.position + work.count) // self._page_size) * self._page_size
            place = self._places.get(work.session)
            if place is None:
                if self.next_turn_s is None and self._make_room(work.session, tokens, now_s):
                    self._places[work.session] = _Place(tokens, now_s)
                    admitted.append(work)
            elif tokens <= place.tokens or self._make_room(work.session, tokens, now_s):
                place.tokens = max(tokens, place.tokens)
                admitted.append(work)
            else:
                del self._places[work.session]  # it cannot go on: let others
        return [work for work in admitted if work.session in self._places]

    def drop(self, session: bytes) -> None:
        """A session has ended."""
        self._places.pop(session, None)

    def _make_room(self, session: bytes, tokens: int, now_s: float) -> bool:
        """Take places from those whose turn is over; if that is not enough, say when it will be."""
        others = {other: place for other, place in self._places.items() if other != session}
        excess = sum(place.tokens for place in others.values()) + tokens - self._pool_tokens
        leaving: list[bytes] = []
        for other, place in others.items():
            if excess <= 0:
                break
            if place.since_s + TURN_S > now_s:
                self.next_turn_s = place.since_s + TURN_S
                return False
            leaving.append(other)
            excess -= place.tokens
        for other in leaving:
            del self._places[other]
        return True
