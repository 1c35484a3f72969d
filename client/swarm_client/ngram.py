"""Guesses from the session's own text: what followed the last time the same tokens stood there; pure.

Prompt lookup (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding) with an index that grows with the text, so
that a guess costs no more the longer the text is.
"""

from collections.abc import Sequence
from typing import Final

from swarm_client.drafts import Draft, Drafter

LONGEST_KEY: Final = 4
LONGEST_MATCH: Final = 8
MAX_INDEXED_TOKENS: Final = 32_768  # of a prompt, its end: an index of all of a long one would hold the loop up


class NGramDrafter(Drafter):
    """Continues the latest place in the text that ends like its end, the longest such end first."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # behind which token each n-gram stood last
        self._indexed = 0

    def propose(self, ids: Sequence[int], max_tokens: int) -> Draft:
        """See Drafter."""
        self._index(ids)
        for length in range(min(LONGEST_KEY, len(ids) - 1), 0, -1):
            if (end := self._ends.get(tuple(ids[-length:]))) is not None:
                return Draft(_copy(ids, end, max_tokens), _matching(ids, end, length))
        return Draft()

    def _index(self, ids: Sequence[int]) -> None:
        """Note every n-gram but the text's own end, which would only find itself."""
        start = max(self._indexed, len(ids) - MAX_INDEXED_TOKENS, 1)
        for end in range(start, len(ids)):
            for length in range(1, min(LONGEST_KEY, end) + 1):
                self._ends[tuple(ids[end - length : end])] = end
        self._indexed = max(self._indexed, len(ids))


def _matching(ids: Sequence[int], end: int, length: int) -> int:
    """Count how many tokens before `end` are those at the end of the text; `length` are known to be."""
    while length < min(LONGEST_MATCH, end) and ids[end - length - 1] == ids[-length - 1]:
        length += 1
    return length


def _copy(ids: Sequence[int], end: int, count: int) -> list[int]:
    """Copy what stands behind `end`, and go round where it reaches the end of the text."""
    period = len(ids) - end
    return [ids[end + place % period] for place in range(count)]
