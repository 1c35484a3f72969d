"""A client that waits for nothing: steps in flight, guesses behind guesses, cuts, repeats and new epochs, by chance.

It notes for each step which ids stand before it if every hop keeps the protocol's rules. Whatever result comes for a
step must be what the model says of those ids. One rule binds it too: a step of several known tokens takes another lane,
so it is sent when nothing is in flight, and nothing follows before it is answered.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np

from swarm_net.links import Link
from swarm_net.messages import Candidate, Failure, Message, Result, Step
from swarm_net.session_errors import PositionGap, from_failure
from swarm_node.sessions import MAX_CANDIDATES
from tests.node.swarm import Peer

MOST_GUESSES = 6

Following = Callable[[Sequence[int], int], list[int]]  # the tokens that the model draws behind ids
Number = tuple[int, int]  # epoch and frame


@dataclass(frozen=True)
class Sent:
    """A step, and the ids that stand before its guesses."""

    step: Step
    body: bytes
    known: list[int]
    guesses: list[int]


@dataclass
class RoughClient:
    """One session that was opened."""

    peer: Peer
    link: Link
    session: bytes
    vocabulary: int
    max_tokens: int
    following: Following
    rng: Random
    ids: list[int] = field(default_factory=list)  # what the hops hold once they have run all
    epoch: int = 0
    frame: int = -1
    newest_candidate: int = 0
    tip: int = 0
    sent: dict[Number, Sent] = field(default_factory=dict)
    answered: set[Number] = field(default_factory=set)
    gaps: int = 0

    async def play(self, prompt: Sequence[int], steps: int) -> None:
        """Send a prompt and so many steps, and see that the last of them is answered."""
        await self._answered(self._send(0, prompt))
        for _ in range(steps):
            self._hear_all()
            position = len(self.ids)
            if position > self.max_tokens - 20 or self.rng.random() < 0.3:
                position = self.rng.randint(max(1, position // 2), position)
            self.epoch += self.rng.random() < 0.1
            kind = self.rng.random()
            if kind < 0.4:
                self._send(position, [self._id()])
            elif kind < 0.8:
                token = self._id()
                self._send(position, [token], self._guesses([*self.ids[:position], token]))
            elif kind < 0.9:
                again = self.sent[self.rng.choice(list(self.sent))]
                self.link.send(again.step, again.body)
            else:
                await self._settled()
                position = self.rng.randint(1, len(self.ids))
                await self._answered(self._send(position, [self._id() for _ in range(self.rng.randint(2, 12))]))
            await asyncio.sleep(self.rng.choice([0, 0, 0.001]))
        await self._settled()

    def _id(self) -> int:
        return self.rng.randrange(self.vocabulary)

    def _guesses(self, known: Sequence[int]) -> list[int]:
        """Some right ones, then any."""
        right, wrong = self.rng.randint(0, MOST_GUESSES // 2), self.rng.randint(1, MOST_GUESSES // 2)
        return [*self.following(known, right), *(self._id() for _ in range(wrong))]

    def _send(self, position: int, ids: Sequence[int], guesses: Sequence[int] = ()) -> Number:
        """Send ids to stand at a position, and guesses behind them."""
        known, tokens = [*self.ids[:position], *ids], list(guesses)
        own = range(self.newest_candidate + 1, self.newest_candidate + 1 + len(tokens))
        self.newest_candidate += len(tokens)
        self.frame += 1
        candidates = tuple(
            Candidate(one, parent, token, len(known) + place)
            for place, (one, parent, token) in enumerate(zip(own, [self.tip, *own], tokens, strict=False))
        )
        step = Step(
            session=self.session,
            epoch=self.epoch,
            frame=self.frame,
            position=position,
            count=len(ids) + len(tokens),
            kind="verify" if tokens else "prefill" if len(ids) > 1 else "decode",
            sample=True,
            tip=self.tip if tokens else 0,
            candidates=candidates,
            sent_ns=1,
        )
        body = np.array([*ids, *tokens], "<i4").tobytes()
        self.sent[self.epoch, self.frame] = Sent(step, body, known, tokens)
        self.ids = known + tokens
        self.link.send(step, body)
        return self.epoch, self.frame

    async def _settled(self) -> None:
        """Void what is in flight, and have one more token answered."""
        self.epoch += 1
        await self._answered(self._send(min(len(self.ids), self.max_tokens - 20), [self._id()]))

    async def _answered(self, number: Number) -> None:
        """Wait until a step is answered, sending again, as if they were guesses, what hops turn out not to have."""
        while number not in self.answered:
            if (cached := self._take(await self.peer.hear())) is None:
                continue
            self.epoch += 1
            ids = list(self.ids)
            for start in range(min(cached, len(ids) - 1), len(ids), MAX_CANDIDATES):
                number = self._send(start, ids[start : start + 1], ids[start + 1 : start + MAX_CANDIDATES])

    def _hear_all(self) -> None:
        while not self.peer.inbox.empty():
            if self._take(self.peer.inbox.get_nowait()[1]) is not None:
                self.epoch += 1  # what follows stands, rashly, where it would have stood

    def _take(self, message: Message) -> int | None:
        """Check a message; of a hop that lacks tokens, return how many it has."""
        if isinstance(message, Failure):
            error = from_failure(message)
            assert isinstance(error, PositionGap), error
            self.gaps += 1
            return error.cached
        assert isinstance(message, Result), message
        number = message.epoch, message.frame
        assert number not in self.answered, "one step, one result"
        self.answered.add(number)
        sent = self.sent[number]
        drawn = self.following(sent.known, len(message.tokens))
        right = next((n for n, pair in enumerate(zip(sent.guesses, drawn, strict=False)) if pair[0] != pair[1]), None)
        accepted = min(len(sent.guesses), len(drawn)) if right is None else right
        assert list(message.tokens) == drawn
        assert len(message.tokens) == accepted + 1
        assert message.position == len(sent.known)
        assert message.accepted == tuple(candidate.id for candidate in sent.step.candidates[:accepted])
        self.tip = message.accepted[-1] if message.accepted else self.tip
        return None
