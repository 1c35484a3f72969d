"""The guesses of one generation: asks the drafter, keeps to its policy, and tells it what came of them.

Owns the way to a drafter that takes long, in a thread, and what happens where one fails: the generation goes on without
guesses. Made by `model.py`, driven by `token_stream.py`.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from swarm_client.drafts import Draft, Drafter
from swarm_client.results import Drafted

log = logging.getLogger(__name__)

Then = Callable[[Sequence[int]], None]


class Drafting:
    """Asks for guesses; at most one question counts, the newest."""

    def __init__(self, drafter: Drafter, vocabulary: int) -> None:
        self._drafter = drafter
        self._policy = drafter.policy()
        self._vocabulary = vocabulary
        self._draft = Draft()
        self._sent = 0
        self._questions = 0
        self._has_failed = False
        self._counts = Drafted(0, 0, 0)

    @property
    def counts(self) -> Drafted:
        """What was sent and accepted so far."""
        return self._counts

    async def prepare(self) -> None:
        """Get the drafter ready. Raises ClientError."""
        if self._drafter.thread is not None:
            await asyncio.get_running_loop().run_in_executor(self._drafter.thread, self._drafter.prepare)

    def start_route(self) -> None:
        """Another route computes the next step; what a drafter still thinks about was for the old one."""
        self._forget()
        self._policy.start_route()

    def guess(self, ids: Sequence[int], room: int, then: Then) -> None:
        """Call `then` with guesses of at most `room` tokens behind `ids`: at once, or when the drafter has thought."""
        self._forget()
        wanted = 0 if self._has_failed else self._policy.ask(room) if room > 0 else 0
        if wanted == 0:
            then(())
        elif self._drafter.thread is None:
            try:
                draft = self._drafter.propose(ids, wanted)
            except Exception as error:
                draft = self._fail(error)
            then(self._take(draft, wanted))
        else:
            thinking = asyncio.get_running_loop().run_in_executor(
                self._drafter.thread, self._drafter.propose, ids, wanted
            )
            question = self._questions
            thinking.add_done_callback(lambda thought: self._on_thought(thought, question, wanted, then))

    def learn(self, tokens: Sequence[int], accepted: int, took_s: float) -> None:
        """Take what a step brought: its tokens, how many of them were guessed, and how long it took."""
        if self._sent:
            counts = self._counts
            self._counts = Drafted(counts.steps + 1, counts.sent + self._sent, counts.accepted + accepted)
        self._policy.learn(self._draft.tokens, self._draft.strength, self._sent, tokens, took_s)

    def close(self) -> None:
        """Let the drafter forget the session."""
        if self._drafter.thread is None:
            self._drafter.close()
        else:
            with contextlib.suppress(RuntimeError):  # the model was closed before
                self._drafter.thread.submit(self._drafter.close)

    def _forget(self) -> None:
        self._draft, self._sent = Draft(), 0
        self._questions += 1

    def _on_thought(self, thought: asyncio.Future[Draft], question: int, wanted: int, then: Then) -> None:
        if thought.cancelled():  # the model is being closed
            return
        error = thought.exception()
        draft = thought.result() if error is None else self._fail(error)
        if question == self._questions:
            then(self._take(draft, wanted))

    def _take(self, draft: Draft, wanted: int) -> Sequence[int]:
        """Check what a drafter said, and cut it to what is worth sending."""
        tokens = list(draft.tokens[:wanted])
        foreign = (place for place, token in enumerate(tokens) if not 0 <= token < self._vocabulary)
        tokens = tokens[: next(foreign, len(tokens))]
        self._draft = Draft(tokens, draft.strength)
        self._sent = self._policy.keep(draft.strength, len(tokens)) if tokens else 0
        return tokens[: self._sent]

    def _fail(self, error: BaseException) -> Draft:
        log.warning("no more drafts reason=%s: %s", type(error).__name__, error)
        self._has_failed = True
        return Draft()
