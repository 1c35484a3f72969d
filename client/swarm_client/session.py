"""One session's conversation with its route, as values: which step is next, which result answers it; pure.

Owns frame numbers, positions, the ids of guesses, and the check of what the last hop answers. A prompt may go in
pieces, of which only the last is drawn behind; the others are acknowledged. It sends nothing and keeps no time:
`live_session.py` does. A session is never repaired: after a failure a new one, with a new id, takes all
ids known by then, and since tokens are drawn by seed and position, it continues as the old one would have.
"""

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from sys import byteorder

from swarm_client.errors import BadResult
from swarm_client.results import TopLogprob
from swarm_net.messages import Candidate, Result, Step, StepKind, Trail

_LOGPROB_SLACK = 1e-3  # a log-probability is at most 0, up to rounding


@dataclass(frozen=True, slots=True)
class Drawn:
    """One token that the last hop drew."""

    token: int
    logprob: float | None
    top_logprobs: tuple[TopLogprob, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """A checked result: as many tokens as guesses were right, and one more; none for a piece that has arrived."""

    drawn: tuple[Drawn, ...]
    trail: Trail  # empty unless every hop has added to it
    sent_ns: int


class Session:
    """Makes steps and checks results.

    Invariant: of the steps that wait for their results at most the newest is drawn behind; they are answered in their
    order, and whatever else arrives is stale.
    """

    def __init__(
        self, *, session: bytes, hops: int, last_peer: str, vocabulary: int, logprobs: bool, top_logprobs: int
    ) -> None:
        self.id = session
        self._hops = hops
        self._last_peer = last_peer
        self._vocabulary = vocabulary
        self._logprobs = logprobs
        self._top_logprobs = top_logprobs
        self._frame = 0
        self._tail = 0  # tokens that the hops have and that are right, once they have run what was sent
        self._candidates: tuple[Candidate, ...] = ()  # of the step that waits
        self._newest_candidate = 0
        self._tip = 0  # the last one that was right
        self._waiting: deque[tuple[int, int, bool]] = deque()  # frame, position behind it, whether one is drawn there

    def start_at(self, position: int) -> None:
        """Begin behind what all hops have cached of the prompt."""
        self._tail = position

    @property
    def tail(self) -> int:
        """Where the next step begins."""
        return self._tail

    def step(
        self,
        token_ids: Sequence[int],
        sent_ns: int,
        drafts: Sequence[int] = (),
        *,
        kind: StepKind = "decode",
        draw: bool = True,
        sealed: bytes = b"",
    ) -> tuple[Step, bytes]:
        """Return the step, and its body, that feeds these tokens, guesses behind them, and asks for the next one.

        Guesses stand behind a single token. Without `draw`, a piece of a prompt that more will follow.
        """
        position, count = self._tail, len(token_ids) + len(drafts)
        self._frame += 1
        self._tail += len(token_ids)
        self._waiting.append((self._frame, self._tail, draw))
        self._candidates = self._chain(drafts)
        step = Step(
            session=self.id,
            frame=self._frame,
            position=position,
            count=count,
            kind="verify" if drafts else kind,
            sample=draw,
            acknowledge=not draw,
            tip=self._tip if drafts else 0,
            candidates=self._candidates,
            sealed=sealed,
            sent_ns=sent_ns,
        )
        return step, _body([*token_ids, *drafts] if drafts else token_ids)

    def _chain(self, drafts: Sequence[int]) -> tuple[Candidate, ...]:
        """Give guesses ids that the session has never used."""
        parents = [self._tip, *range(self._newest_candidate + 1, self._newest_candidate + len(drafts))]
        first = self._newest_candidate + 1
        self._newest_candidate += len(drafts)
        return tuple(
            Candidate(first + place, parent, token, self._tail + place)
            for place, (parent, token) in enumerate(zip(parents, drafts, strict=False))
        )

    def accept(self, result: Result) -> Answer | None:
        """Return what a result says, None if it answers nothing that waits. Raises BadResult."""
        if not self._waiting or result.epoch != 0 or result.frame != self._waiting[0][0]:
            return None
        _, behind, is_drawn = self._waiting[0]
        if result.position != behind:
            raise self._nonsense(f"a token for position {result.position}, asked was {behind}")
        if not is_drawn:
            if result.tokens:
                raise self._nonsense("tokens for a step that asked for none")
            self._waiting.popleft()
            return Answer((), (), result.sent_ns)
        if not 1 <= len(result.tokens) <= len(self._candidates) + 1:
            raise self._nonsense(f"{len(result.tokens)} tokens for a step with {len(self._candidates)} guesses")
        right = self._candidates[: len(result.tokens) - 1]
        if result.accepted != tuple(guess.id for guess in right) or any(
            guess.token != token for guess, token in zip(right, result.tokens, strict=False)
        ):
            raise self._nonsense("guesses accepted that are not the tokens drawn")
        drawn = tuple(self._read(result, place) for place in range(len(result.tokens)))
        self._tail += len(right)
        self._tip = right[-1].id if right else self._tip
        self._waiting.popleft()
        return Answer(drawn, result.trail if len(result.trail) == self._hops else (), result.sent_ns)

    def _read(self, result: Result, place: int) -> Drawn:
        """Check one token of a result."""
        token = result.tokens[place]
        if token >= self._vocabulary:
            raise self._nonsense(f"token id {token} outside a vocabulary of {self._vocabulary}")
        logprob = None
        if self._logprobs:
            logprob = result.logprobs[place] if place < len(result.logprobs) else nan
            if not isfinite(logprob) or logprob > _LOGPROB_SLACK:
                raise self._nonsense("no log-probability, or one that is none")
            logprob = min(logprob, 0.0)
        top: tuple[TopLogprob, ...] = ()
        if self._top_logprobs and place < len(result.top_logprobs):
            items = result.top_logprobs[place][: self._top_logprobs]
            if not all(item.token < self._vocabulary and isfinite(item.logprob) for item in items):
                raise self._nonsense("log-probabilities that are none, or of tokens that there are not")
            top = tuple(TopLogprob(item.token, min(item.logprob, 0.0)) for item in items)
        return Drawn(token, logprob, top)

    def _nonsense(self, reason: str) -> BadResult:
        return BadResult(peer=self._last_peer, reason=reason)


def _body(token_ids: Sequence[int]) -> bytes:
    """Return int32 little-endian ids, [count]."""
    if len(token_ids) == 1:
        return token_ids[0].to_bytes(4, "little")
    ids = array("i", token_ids)
    if byteorder == "big":
        ids.byteswap()
    return ids.tobytes()
