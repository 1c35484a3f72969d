"""One session's conversation with its route, as values: which step is next, which result answers it; pure.

Owns frame numbers, positions and the check of what the last hop answers. It sends nothing and keeps no time:
`live_session.py` does. A session is never repaired: after a failure a new one, with a new id, takes all ids known by
then, and since tokens are drawn by seed and position, it continues as the old one would have.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from sys import byteorder

from swarm_client.errors import BadResult
from swarm_client.results import TopLogprob
from swarm_net.messages import Result, Step, Trail

_LOGPROB_SLACK = 1e-3  # a log-probability is at most 0, up to rounding


@dataclass(frozen=True, slots=True)
class Answer:
    """A checked result."""

    token: int
    logprob: float | None
    top_logprobs: tuple[TopLogprob, ...]
    trail: Trail  # empty unless every hop has added to it
    sent_ns: int


class Session:
    """Makes steps and checks results.

    Invariant: at most one step waits for its result, the one with number `_frame`; whatever else arrives is stale.
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
        self._tail = 0  # tokens that the hops have, once they have run everything that was sent
        self._is_waiting = False

    def start_at(self, position: int) -> None:
        """Begin behind what all hops have cached of the prompt."""
        self._tail = position

    def step(self, token_ids: Sequence[int], sent_ns: int) -> tuple[Step, bytes]:
        """Return the step, and its body, that feeds these tokens and asks for the next one."""
        position, count = self._tail, len(token_ids)
        self._frame += 1
        self._tail += count
        self._is_waiting = True
        step = Step(
            session=self.id,
            frame=self._frame,
            position=position,
            count=count,
            kind="decode" if position and count == 1 else "prefill",
            sample=True,
            sent_ns=sent_ns,
        )
        return step, _body(token_ids)

    def accept(self, result: Result) -> Answer | None:
        """Return what a result says, None if it answers nothing that waits. Raises BadResult."""
        if not self._is_waiting or result.epoch != 0 or result.frame != self._frame:
            return None
        if result.position != self._tail:
            raise self._nonsense(f"a token for position {result.position}, asked was {self._tail}")
        if len(result.tokens) != 1:
            raise self._nonsense(f"{len(result.tokens)} tokens for one step")
        token = result.tokens[0]
        if token >= self._vocabulary:
            raise self._nonsense(f"token id {token} outside a vocabulary of {self._vocabulary}")
        logprob = None
        if self._logprobs:
            if len(result.logprobs) != 1 or not isfinite(result.logprobs[0]) or result.logprobs[0] > _LOGPROB_SLACK:
                raise self._nonsense("no log-probability, or one that is none")
            logprob = min(result.logprobs[0], 0.0)
        top: tuple[TopLogprob, ...] = ()
        if self._top_logprobs and result.top_logprobs:
            top = tuple(TopLogprob(item.token, item.logprob) for item in result.top_logprobs[0][: self._top_logprobs])
        self._is_waiting = False
        return Answer(token, logprob, top, result.trail if len(result.trail) == self._hops else (), result.sent_ns)

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
