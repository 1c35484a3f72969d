"""Which tokens may come next under a grammar: xgrammar's matcher as a function of the answer so far.

Owns the step from a compiled grammar to a mask over the vocabulary. What the matcher remembers only saves work: if the
answer was cut or changed, it is rolled back to where both agree and led on from there, so a replay after a failover,
a cut or a wrong draft needs no word from anybody. Compiling stands in `grammar_worker.py`, a process of its own, since
a grammar comes from strangers. Needs the package xgrammar; used by the compute thread alone.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import xgrammar

from swarm_model.errors import OutsideGrammar

GrammarKind = Literal["json_schema", "regex", "ebnf"]

MAX_MATCH_S: Final = 2.0  # of one step; a grammar that takes longer would hold up all sessions of the node
MAX_MATCH_TOKEN_S: Final = 0.005  # for each token of a replay on top


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
    """A grammar for one vocabulary; many constraints may share it."""

    matching: Any  # xgrammar.CompiledGrammar
    vocabulary: Vocabulary
    barred_ids: tuple[int, ...]  # never allowed, whatever the matcher says


def read_vocabulary(told: Mapping[str, Any], size: int, stop_ids: Sequence[int]) -> Vocabulary:
    """Return what a worker has sent."""
    info = xgrammar.TokenizerInfo.deserialize_json(told["info"])
    return Vocabulary(info, size, tuple(stop_ids), tuple(told["special_ids"]), tuple(told["control_ids"]))


def read_compiled(compiled_json: str, vocabulary: Vocabulary, kind: GrammarKind) -> CompiledGrammar:
    """Return the compiled grammar that a worker has sent.

    xgrammar lets control characters into JSON strings of limited length, so for JSON they are barred here.
    """
    matching = xgrammar.CompiledGrammar.deserialize_json(compiled_json, vocabulary.info)
    barred = vocabulary.special_ids + (vocabulary.control_ids if kind == "json_schema" else ())
    return CompiledGrammar(matching, vocabulary, tuple(token for token in barred if token not in vocabulary.stop_ids))


class GrammarConstraint:
    """One session's place in a grammar; see `sampler.Constraint`."""

    def __init__(self, grammar: CompiledGrammar) -> None:
        self._vocabulary = grammar.vocabulary
        self._barred = np.array(grammar.barred_ids, np.int64)
        self._matcher = xgrammar.GrammarMatcher(grammar.matching)
        self._matched = np.empty(0, np.int64)  # what the matcher has taken
        self._bits = np.zeros((1, -(-grammar.vocabulary.size // 32)), np.int32)

    def allowed(self, answer: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Return `[vocabulary]`: which tokens may follow these ids, at least one.

        Raises OutsideGrammar where the answer does not match, nothing can follow, or matching takes too long.
        """
        started_s = time.perf_counter()
        self._follow(answer)
        allowed = self._next()
        if time.perf_counter() - started_s > MAX_MATCH_S + MAX_MATCH_TOKEN_S * len(answer):
            raise OutsideGrammar("matching it takes too long")
        if not allowed.any():
            raise OutsideGrammar("no token of the vocabulary continues what was written")
        return allowed

    def _follow(self, answer: npt.NDArray[Any]) -> None:
        """Bring the matcher behind the answer."""
        shorter = min(len(answer), len(self._matched))
        differing = np.flatnonzero(answer[:shorter] != self._matched[:shorter])
        agreed = int(differing[0]) if len(differing) else shorter
        if agreed < len(self._matched):
            self._matcher.rollback(len(self._matched) - agreed)
            self._matched = self._matched[:agreed]
        for place in range(agreed, len(answer)):
            if self._matcher.is_terminated() or not self._matcher.accept_token(int(answer[place])):
                raise OutsideGrammar(f"token {place} of the answer does not match it")
            self._matched = answer[: place + 1].astype(np.int64)

    def _next(self) -> npt.NDArray[np.bool_]:
        vocabulary = self._vocabulary
        if self._matcher.is_terminated():
            allowed = np.zeros(vocabulary.size, np.bool_)
            allowed[list(vocabulary.stop_ids)] = True
            return allowed
        self._matcher.fill_next_token_bitmask(self._bits)
        bits = np.unpackbits(self._bits.view(np.uint8)[0], bitorder="little")[: vocabulary.size]
        allowed = bits.view(np.bool_)
        allowed[self._barred] = False
        return allowed
