"""Guesses of a client in a simulation: right as often as the scenario says, by knowing the answer."""

import random
from collections.abc import Sequence
from itertools import islice

from swarm_client.drafts import Draft, Drafter
from swarm_sim.digest_model import VOCABULARY, continuation


class SimulatedDrafter(Drafter):
    """Guesses one session's tokens, each rightly by chance; behind a wrong one all others are wrong as well."""

    def __init__(
        self, prompt: Sequence[int], blocks: int, seed: int | None, *, right_share: float, rng: random.Random
    ) -> None:
        self._known = len(prompt)
        self._answer = continuation(prompt, blocks, seed)
        self._tokens: list[int] = []  # of the answer, as far as it was asked for
        self._right_share = right_share
        self._rng = rng

    def propose(self, ids: Sequence[int], max_tokens: int) -> Draft:
        """See Drafter."""
        done = len(ids) - self._known
        self._tokens += islice(self._answer, max(0, done + max_tokens - len(self._tokens)))
        guesses = self._tokens[done : done + max_tokens]
        right = next((place for place in range(max_tokens) if self._rng.random() >= self._right_share), max_tokens)
        return Draft([*guesses[:right], *((token + 1) % VOCABULARY for token in guesses[right:])], strength=3)
