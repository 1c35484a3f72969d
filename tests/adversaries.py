"""Drafters that know what is right and guess by rules of their own: nothing that they do may change an id."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swarm_client.draft_policy import DraftPolicy
from swarm_client.drafts import Draft, Drafter


@dataclass(frozen=True)
class Moment:
    """When a drafter is asked."""

    ids: Sequence[int]  # that are known
    future: Sequence[int]  # that will follow
    most: int  # guesses asked for
    vocabulary: int
    rng: random.Random


Guess = Callable[[Moment], list[int]]


def at_random(now: Moment) -> list[int]:
    return [now.rng.randrange(now.vocabulary) for _ in range(now.rng.randint(0, now.most))]


def always_wrong(now: Moment) -> list[int]:
    return [(token + 1) % now.vocabulary for token in now.future]


def right_then_wrong(now: Moment) -> list[int]:
    right = now.rng.randint(0, now.most)
    return [*now.future[:right], *((token + 1) % now.vocabulary for token in now.future[right:])]


def always_right(now: Moment) -> list[int]:
    return list(now.future)


def too_many(now: Moment) -> list[int]:
    return [*now.future, *range(2000)]


def repeats(now: Moment) -> list[int]:
    return [now.ids[-1]] * now.most


def foreign(now: Moment) -> list[int]:
    return [*now.future[: now.most // 2], now.vocabulary + 5, -3]


def broken(now: Moment) -> list[int]:
    if now.rng.random() < 0.1:
        raise RuntimeError("a drafter with a bug")
    return list(now.future)


GUESSES: tuple[Guess, ...] = (
    at_random,
    always_wrong,
    right_then_wrong,
    always_right,
    too_many,
    repeats,
    foreign,
    broken,
)


class EveryTime:
    """A policy that sends all there is."""

    def ask(self, room: int) -> int:
        return min(room, 24)

    def keep(self, strength: int, guesses: int) -> int:
        return guesses

    def learn(self, guesses: Sequence[int], strength: int, sent: int, tokens: Sequence[int], took_s: float) -> None:
        assert 0 <= sent <= len(guesses)
        assert 1 <= len(tokens) <= sent + 1
        assert took_s > 0

    def start_route(self) -> None:
        """Nothing to forget."""


class Adversary(Drafter):
    """Guesses by a rule; one that `insists` sends its guesses whether they pay or not."""

    def __init__(
        self, guess: Guess, *, prompt_tokens: int, answer: Sequence[int], vocabulary: int, insists: bool = True
    ) -> None:
        self._guess, self._insists = guess, insists
        self._prompt_tokens, self._answer, self._vocabulary = prompt_tokens, answer, vocabulary
        self._rng = random.Random(prompt_tokens)

    def propose(self, ids: Sequence[int], max_tokens: int) -> Draft:
        done = len(ids) - self._prompt_tokens
        future = self._answer[done : done + max_tokens]
        return Draft(self._guess(Moment(ids, future, max_tokens, self._vocabulary, self._rng)), strength=8)

    def policy(self) -> DraftPolicy:
        return EveryTime() if self._insists else super().policy()
