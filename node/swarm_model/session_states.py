"""What sessions of a span keep beside its KV pages, and how far back each of them can go.

Owns one cache of transformers' own for each session, as many as there is memory for, and what it takes to go back where
such a cache cannot be cut, because it holds a running state: a checkpoint of the state before the session's last chunk,
and that chunk's inputs. Going back into the chunk returns to the checkpoint and computes the rows that stay once more,
before the new ones and in the same step. So guesses can be verified over recurrent models too. Called by span.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from swarm_model.errors import RewindImpossible, SessionsFull
from swarm_model.pages import SessionKey
from swarm_model.session_cache import SessionCache

REDONE_TOKENS: Final = 65
"""The longest chunk that a session can go back into: a known token and the most guesses that are verified at once."""


@dataclass(slots=True)
class _State:
    """One session's cache, and the chunk before which its checkpoint stands."""

    cache: SessionCache
    tokens: int = 0
    position: int = 0  # of the checkpoint
    inputs: torch.Tensor | None = None  # of the chunk behind it: [tokens] or [tokens, hidden]; None: no checkpoint


class SessionStates:
    """Caches of all sessions of a span."""

    def __init__(self, new_cache: Callable[[], SessionCache], limit: int | None) -> None:
        self._new_cache = new_cache
        self._limit: Final = limit
        self._states: dict[SessionKey, _State] = {}

    def __len__(self) -> int:
        """Count the sessions that keep something."""
        return len(self._states)

    def cache(self, session: SessionKey) -> SessionCache:
        return self._states[session].cache

    def redone(self, session: SessionKey, position: int) -> torch.Tensor | None:
        """Give the inputs to compute once more before a session's chunk at `position`.

        None where there are none, or where the session cannot go back that far. Changes nothing.
        """
        state = self._states.get(session)
        if state is None or state.inputs is None or not state.position < position < state.tokens:
            return None
        return state.inputs[: position - state.position]

    def check(self, session: SessionKey, position: int) -> None:
        """Raise SessionsFull for a session too many, RewindImpossible if it cannot go on at `position`."""
        state = self._states.get(session)
        if state is None:
            if self._limit is not None and len(self._states) >= self._limit:
                raise SessionsFull(self._limit)
            return
        begins = position in (0, state.tokens) or (state.inputs is not None and position == state.position)
        if not begins and not state.cache.can_be_cut:
            raise RewindImpossible(position, state.tokens)

    def enter(self, session: SessionKey, position: int, inputs: torch.Tensor, redone: int) -> None:
        """Get a session that passed `check` ready for a chunk at `position`; its first `redone` rows are done again."""
        state = self._states.get(session)
        if state is None or position == 0:
            state = self._states[session] = _State(self._new_cache())
        elif position < state.tokens and state.cache.can_be_cut:
            state.cache.cut(position)
        elif position < state.tokens:
            state.cache.go_back()
        keeps = 1 < len(inputs) - redone <= REDONE_TOKENS and not state.cache.can_be_cut
        state.tokens, state.position = position + len(inputs), position + redone
        state.inputs = inputs[redone:].clone() if keeps else None
        state.cache.enter(redone=redone, keeps=keeps)

    def drop(self, session: SessionKey) -> None:
        """Forget a session; one that is not known is already forgotten."""
        self._states.pop(session, None)
