"""From token ids to text, one token at a time, without ever showing half a character.

Owns the two ways of doing that in constant time a token: `ByteDetokenizer`, exact, where each token stands for bytes
(byte-level BPE), and `WindowDetokenizer` for every other decoder (Metaspace, WordPiece, byte fallback). Both promise
that the pieces joined are the text of all ids; only where a model writes invalid UTF-8 by byte fallback may the number
of U+FFFD differ from a decoding of the whole. Called by `continuation.py`; made by `tokenizer.py`.
"""

import codecs
from collections.abc import Callable
from typing import Protocol

REPLACEMENT = "\ufffd"
_MAX_PENDING_TOKENS = 8  # a character has 4 bytes: what is not whole after this many tokens is not text


class Detokenizer(Protocol):
    """Turns ids into text piece by piece."""

    def push(self, token: int) -> str:
        """Return the text that is certain now: maybe nothing, maybe several characters."""

    def flush(self) -> str:
        """Return what was held back, when no more tokens come."""


class NoText:
    """For a model without a tokenizer: ids in, no text out."""

    def push(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


class ByteDetokenizer:
    """Joins the bytes of tokens and lets whole characters through."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._token_bytes(token))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """Decodes the latest tokens together with those before them, and shows by how much the text grew.

    A decoder may treat a token by its neighbours (leading spaces, `##`, joined bytes), so the shown tokens just before
    stay in the window as context. The way is that of text-generation-inference (`decode_token`).
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._shown = 0  # how many tokens of the window have been shown

    def push(self, token: int) -> str:
        self._window.append(token)
        before = self._decode(self._window[: self._shown])
        text = self._decode(self._window)
        is_overdue = len(self._window) - self._shown >= _MAX_PENDING_TOKENS
        if len(text) <= len(before):
            if is_overdue:
                del self._window[self._shown :]  # tokens that show nothing, such as special ones
            return ""
        if text.endswith(REPLACEMENT) and not is_overdue:
            return ""
        del self._window[: self._shown]
        self._shown = len(self._window)
        return text[len(before) :]

    def flush(self) -> str:
        before = self._decode(self._window[: self._shown])
        self._shown = len(self._window)
        return self._decode(self._window)[len(before) :]
