"""Who guesses the next tokens, so that one step can check several of them.

Owns the interface alone. A guess is never trusted: the last hop draws each token itself and keeps a guess where it is
the same, so a drafter can waste time and change nothing. `ngram.py` looks guesses up in the session's own text,
`draft_checkpoint.py` asks a small model; both are used by `drafting.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from swarm_client.draft_policy import DraftPolicy, PayingDrafts


@dataclass(frozen=True, slots=True)
class Draft:
    """Guesses of the tokens that follow; the first of them is as likely as after `strength` tokens that matched."""

    tokens: Sequence[int] = ()
    strength: int = 0


class Drafter(ABC):
    """Guesses what follows the ids of one session."""

    thread: Executor | None = None
    """Where `propose` runs if it takes long; None: at once, on the event loop."""

    def prepare(self) -> None:  # noqa: B027 (most have nothing to do)
        """Get ready, before anything is sent; runs in `thread`. Raises ClientError."""

    @abstractmethod
    def propose(self, ids: Sequence[int], max_tokens: int) -> Draft:
        """Guess at most `max_tokens` tokens behind `ids`: a function of them alone, which only ever grow."""

    def policy(self) -> DraftPolicy:
        """Return what decides, for one generation, how many guesses are worth a step."""
        return PayingDrafts(is_free=self.thread is None)

    def close(self) -> None:  # noqa: B027
        """Forget the session; runs in `thread`."""
