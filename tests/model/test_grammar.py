"""A grammar's mask as a function of the answer: however the matcher got there, and wherever the answer was cut."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

xgrammar = pytest.importorskip("xgrammar", reason="structured output needs the package xgrammar")

from swarm_model.errors import OutsideGrammar  # noqa: E402 (behind the skip, as what imports xgrammar)
from swarm_model.grammar import CompiledGrammar, GrammarConstraint, Vocabulary  # noqa: E402

LETTERS = [bytes([byte]) for byte in range(32, 127)]
WORDS = [b"foo", b"bar", b"-fo", b"0", b"01", b"", b"</s>"]
TOKENS = [*LETTERS, *WORDS]
SIZE = len(TOKENS) + 5  # rows of logits are longer than the tokenizer's vocabulary
STOP = TOKENS.index(b"</s>")
INFO = xgrammar.TokenizerInfo(TOKENS, xgrammar.VocabType.RAW, vocab_size=SIZE, stop_token_ids=[STOP])
VOCABULARY = Vocabulary(INFO, SIZE, (STOP,), special_ids=(), control_ids=())
EXPRESSION = "[0-9]{2,3}(-(foo|bar)){1,3}"


def compiled(expression: str, barred: tuple[int, ...] = ()) -> CompiledGrammar:
    compiler = xgrammar.GrammarCompiler(INFO, max_threads=1, cache_enabled=False)
    return CompiledGrammar(compiler.compile_regex(expression), VOCABULARY, barred)


GRAMMAR = compiled(EXPRESSION)


def walk(seed: int, steps: int) -> list[int]:
    """An answer that the grammar allows, up to its end or to so many tokens."""
    chance, constraint, answer = random.Random(seed), GrammarConstraint(GRAMMAR), []
    while len(answer) < steps and STOP not in answer:
        allowed = np.flatnonzero(constraint.allowed(np.array(answer, np.int32)))
        answer.append(int(chance.choice(allowed)))
    return answer


@settings(deadline=None, max_examples=60)
@given(visits=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20)), min_size=1, max_size=12))
def test_a_constraint_that_was_elsewhere_says_what_a_fresh_one_says(visits: list[tuple[int, int]]) -> None:
    travelled = GrammarConstraint(GRAMMAR)
    for seed, steps in visits:
        answer = np.array(walk(seed, steps), np.int32)
        assert np.array_equal(travelled.allowed(answer), GrammarConstraint(GRAMMAR).allowed(answer))


def test_an_answer_that_does_not_match_is_refused_and_changes_nothing() -> None:
    constraint = GrammarConstraint(GRAMMAR)
    good = np.array(walk(1, 3), np.int32)
    before = constraint.allowed(good)
    with pytest.raises(OutsideGrammar, match=r"token 3 of the answer"):
        constraint.allowed(np.append(good, LETTERS.index(b"~")))
    assert np.array_equal(constraint.allowed(good), before)
    with pytest.raises(OutsideGrammar):
        constraint.allowed(np.array([SIZE - 1]))


def test_behind_the_end_only_the_end_may_follow() -> None:
    constraint, answer = GrammarConstraint(GRAMMAR), walk(2, 50)
    assert answer[-1] == STOP
    assert np.flatnonzero(constraint.allowed(np.array(answer))).tolist() == [STOP]
    with pytest.raises(OutsideGrammar):
        constraint.allowed(np.array([*answer, STOP]))
    assert constraint.allowed(np.array(answer[:-1]))[STOP]


def test_what_is_barred_is_never_allowed_and_a_dead_end_is_said() -> None:
    digits = tuple(TOKENS.index(digit) for digit in (b"1", b"2"))
    constraint = GrammarConstraint(compiled("[12]", barred=digits[:1]))
    assert np.flatnonzero(constraint.allowed(np.empty(0, np.int32))).tolist() == [digits[1]]
    with pytest.raises(OutsideGrammar, match="no token"):
        GrammarConstraint(compiled("[12]", barred=digits)).allowed(np.empty(0, np.int32))


def test_tokens_beyond_the_tokenizer_and_without_text_are_never_allowed() -> None:
    allowed = GrammarConstraint(compiled(".*")).allowed(np.empty(0, np.int32))
    assert len(allowed) == SIZE
    assert not allowed[len(TOKENS) :].any()
    assert not allowed[TOKENS.index(b"")]
    assert allowed[STOP]
