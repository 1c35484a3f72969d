"""What has been generated so far, whoever computed it: ids, text, and when it ends; pure.

Owns the rules of ending (end-of-sequence id, stop string, length) and which text is shown with which token. It outlives
routes: after one is lost, the next continues from `known_ids`. Fed by `token_stream.py`.
"""

from collections.abc import Sequence

from swarm_client.detokenizer import Detokenizer
from swarm_client.results import FinishReason, Token, TopLogprob
from swarm_client.stops import StopFinder


class Continuation:
    """The growing answer to one prompt."""

    def __init__(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        eos_ids: frozenset[int],
        stop: tuple[str, ...],
        detokenizer: Detokenizer,
    ) -> None:
        self.prompt_tokens = len(prompt_ids)
        self.known_ids = list(prompt_ids)  # prompt and answer
        self.tokens: list[Token] = []
        self.finish_reason: FinishReason | None = None
        self._max_new_tokens = max_new_tokens
        self._eos_ids = eos_ids
        self._stops = StopFinder(stop)
        self._detokenizer = detokenizer

    def push(self, token_id: int, logprob: float | None = None, top_logprobs: tuple[TopLogprob, ...] = ()) -> Token:
        """Add the next token and return it as the caller sees it."""
        assert self.finish_reason is None, "nothing follows the last token"
        self.known_ids.append(token_id)
        is_eos = token_id in self._eos_ids
        is_last = is_eos or len(self.tokens) + 1 >= self._max_new_tokens
        text = "" if is_eos else self._stops.push(self._detokenizer.push(token_id))
        if is_last:
            text += self._stops.push(self._detokenizer.flush()) + self._stops.flush()
        if self._stops.found:
            self.finish_reason = "stop"
        elif is_last:
            self.finish_reason = "eos" if is_eos else "length"
        token = Token(token_id, text, logprob, self.finish_reason, top_logprobs)
        self.tokens.append(token)
        return token

    @property
    def room(self) -> int:
        """How many tokens may still come."""
        return self._max_new_tokens - len(self.tokens)

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)
