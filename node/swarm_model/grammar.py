"""Which tokens may come next under a grammar: xgrammar's matcher as a function of the answer so far.

Owns the step from a grammar's text to masks over the vocabulary. What a matcher remembers only saves work: it is told
where its answer was cut and what stands there now, so a replay after a failover, a cut or a wrong draft needs no more.
Needs the package xgrammar. Neither compiling nor matching has a bound on its time that is of any use, and the grammars
are strangers': only processes that may die do either (`grammar_process.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xgrammar
from transformers import PreTrainedTokenizerFast

from swarm_model.errors import OutsideGrammar
from swarm_model.grammar_frames import GrammarKind

_WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A model's tokens as xgrammar sees them."""

    info: Any  # xgrammar.TokenizerInfo
    size: int  # of a row of logits
    stop_ids: tuple[int, ...]  # which end an answer
    special_ids: tuple[int, ...]  # they have no text, so no grammar can want them
    control_ids: tuple[int, ...]  # with control characters in their text, which JSON does not take as they are


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """A grammar for one vocabulary; many matchers may share it."""

    matching: Any  # xgrammar.CompiledGrammar
    vocabulary: Vocabulary
    barred_ids: tuple[int, ...]  # never allowed, whatever the matcher says


def read_vocabulary(tokenizer_file: Path, size: int, stop_ids: Sequence[int]) -> Vocabulary:
    """Read a tokenizer; `size` is that of a row of logits."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file))
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size, stop_token_ids=list(stop_ids))
    special = [token for token, added in tokenizer.added_tokens_decoder.items() if added.special and token < size]
    control = [token for token, text in enumerate(info.decoded_vocab) if any(byte < ord(" ") for byte in text)]
    return Vocabulary(info, size, tuple(stop_ids), tuple(special), tuple(control))


def compile_grammar(kind: GrammarKind, text: str, vocabulary: Vocabulary) -> CompiledGrammar:
    """Return the grammar compiled; raises OutsideGrammar with the compiler's words.

    xgrammar lets control characters into JSON strings of limited length, so for JSON they are barred here.
    """
    compiler = xgrammar.GrammarCompiler(vocabulary.info, max_threads=1, cache_enabled=False)
    kinds: dict[GrammarKind, Callable[[str], Any]] = {
        # Spaces as json.dumps writes them: a model that may write any number of them sometimes does nothing else.
        "json_schema": lambda schema: compiler.compile_json_schema(schema, any_whitespace=False),
        "regex": compiler.compile_regex,
        "ebnf": compiler.compile_grammar,
    }
    try:
        matching = kinds[kind](text)
    except (RuntimeError, ValueError, MemoryError) as error:
        raise OutsideGrammar(_reason(error)) from error
    barred = vocabulary.special_ids + (vocabulary.control_ids if kind == "json_schema" else ())
    return CompiledGrammar(matching, vocabulary, tuple(token for token in barred if token not in vocabulary.stop_ids))


class AnswerMatcher:
    """One session's place in a grammar."""

    def __init__(self, grammar: CompiledGrammar) -> None:
        size = grammar.vocabulary.size
        self._stop_ids = grammar.vocabulary.stop_ids
        self._matcher = xgrammar.GrammarMatcher(grammar.matching)
        self._bits = np.zeros((1, -(-size // _WORD_BITS)), np.int32)
        possible, stops = np.ones(size, np.bool_), np.zeros(size, np.bool_)
        possible[list(grammar.barred_ids)] = False
        stops[list(self._stop_ids)] = True
        self._possible, self._stops = _packed(possible), _packed(stops)
        self.answer: list[int] = []  # what was taken; behind the first token that ends it, the matcher knows no more
        self._ended_at: int | None = None

    def follow(self, keep: int, ids: Sequence[int], drafts: int = 0) -> list[bytes]:
        """Cut the answer to `keep` tokens, put `ids` behind them, and return what may follow.

        The last `drafts` of them are guesses: there is a row for each place of one, up to the first guess that may not
        stand there, and one behind them if there is none. Raises OutsideGrammar where the answer does not match, or
        nothing can follow it.
        """
        self._cut(keep)
        known = len(ids) - drafts
        for token in ids[:known]:
            if not self._take(token):
                raise OutsideGrammar(f"token {len(self.answer)} of the answer does not match it")
        rows = [self._next()]
        for guess in ids[known:]:
            if not _has(rows[-1], guess) or not self._take(guess):
                break
            rows.append(self._next())
        return [row.tobytes() for row in rows]

    def _cut(self, keep: int) -> None:
        if keep > len(self.answer):
            raise OutsideGrammar(f"{keep} tokens of the answer are to be kept of {len(self.answer)}")
        matched = len(self.answer) if self._ended_at is None else self._ended_at
        if keep < matched:
            self._matcher.rollback(matched - keep)
        if self._ended_at is not None and keep < self._ended_at:
            self._ended_at = None
        del self.answer[keep:]

    def _take(self, token: int) -> bool:
        if self._ended_at is not None:
            taken = token in self._stop_ids
        else:
            taken = self._matcher.accept_token(token)
            if taken and self._matcher.is_terminated():
                self._ended_at = len(self.answer) + 1
        if taken:
            self.answer.append(token)
        return taken

    def _next(self) -> npt.NDArray[np.uint8]:
        """Return the row of bits of what may come next, at least one."""
        if self._ended_at is not None:
            return self._stops
        self._matcher.fill_next_token_bitmask(self._bits)
        row: npt.NDArray[np.uint8] = self._bits.view(np.uint8)[0][: len(self._possible)] & self._possible
        if not row.any():
            raise OutsideGrammar("no token of the vocabulary continues what was written")
        return row


def _packed(bits: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    return np.packbits(bits, bitorder="little")  # [ceil(vocabulary / 8)]


def _has(row: npt.NDArray[np.uint8], token: int) -> bool:
    return bool(row[token // 8] >> (token % 8) & 1)


def _reason(error: Exception) -> str:
    """Return the compiler's words without its source file and time: `[12:00:00] /path/file.cc:83: Unclosed '['`."""
    text = " ".join(str(error).split())
    return (text.split(": ", 1)[1] if text.startswith("[") and ": " in text else text)[:500] or type(error).__name__
