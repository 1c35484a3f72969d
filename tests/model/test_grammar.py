"""A grammar's masks as a function of the answer: however the matcher got there, and wherever the answer was cut."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

xgrammar = pytest.importorskip("xgrammar", reason="structured output needs the package xgrammar")

from swarm_model.errors import OutsideGrammar  # noqa: E402 (behind the skip, as what imports xgrammar)
from swarm_model.grammar import AnswerMatcher, CompiledGrammar, Vocabulary, compile_grammar  # noqa: E402

LETTERS = [bytes([byte]) for byte in range(32, 127)]
WORDS = [b"foo", b"bar", b"-fo", b"0", b"01", b"", b"</s>", b"\n"]
TOKENS = [*LETTERS, *WORDS]
SIZE = len(TOKENS) + 5  # rows of logits are longer than the tokenizer's vocabulary
STOP = TOKENS.index(b"</s>")
INFO = xgrammar.TokenizerInfo(TOKENS, xgrammar.VocabType.RAW, vocab_size=SIZE, stop_token_ids=[STOP])
NEW_LINE = TOKENS.index(b"\n")
VOCABULARY = Vocabulary(INFO, SIZE, (STOP,), special_ids=(), control_ids=(NEW_LINE,))
EXPRESSION = "[0-9]{2,3}(-(foo|bar)){1,3}"


def compiled(expression: str, barred: tuple[int, ...] = ()) -> CompiledGrammar:
    return CompiledGrammar(compile_grammar("regex", expression, VOCABULARY).matching, VOCABULARY, barred)


GRAMMAR = compiled(EXPRESSION)


def tokens(row: bytes) -> list[int]:
    return np.flatnonzero(np.unpackbits(np.frombuffer(row, np.uint8), count=SIZE, bitorder="little")).tolist()


def allowed(answer: list[int], grammar: CompiledGrammar = GRAMMAR) -> list[int]:
    (row,) = AnswerMatcher(grammar).follow(0, answer)
    return tokens(row)


def walk(seed: int, steps: int) -> list[int]:
    """An answer that the grammar allows, up to its end or to so many tokens."""
    chance, matcher, answer = random.Random(seed), AnswerMatcher(GRAMMAR), []
    (row,) = matcher.follow(0, [])
    while len(answer) < steps and STOP not in answer:
        answer.append(chance.choice(tokens(row)))
        (row,) = matcher.follow(len(answer) - 1, answer[-1:])
    return answer


@settings(deadline=None, max_examples=60)
@given(visits=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20)), min_size=1, max_size=12))
def test_a_matcher_that_was_elsewhere_says_what_a_fresh_one_says(visits: list[tuple[int, int]]) -> None:
    travelled = AnswerMatcher(GRAMMAR)
    for seed, steps in visits:
        answer = walk(seed, steps)
        keep = 0
        while keep < min(len(answer), len(travelled.answer)) and answer[keep] == travelled.answer[keep]:
            keep += 1
        (row,) = travelled.follow(keep, answer[keep:])
        assert tokens(row) == allowed(answer)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 20),
    known=st.integers(0, 12),
    guesses=st.lists(st.sampled_from([*range(10, 30), *range(95, SIZE), STOP]), max_size=4),
    right=st.integers(0, 12),
)
def test_guesses_are_judged_as_if_each_had_been_drawn(seed: int, known: int, guesses: list[int], right: int) -> None:
    answer = walk(seed, known)
    drafts = [*walk(seed, known + right)[len(answer) :], *guesses]
    rows = AnswerMatcher(GRAMMAR).follow(0, [*answer, *drafts], len(drafts))
    for place, row in enumerate(rows):
        assert tokens(row) == allowed(answer + drafts[:place])
        is_last = place == len(drafts) or drafts[place] not in tokens(row)
        assert is_last == (place == len(rows) - 1)


def test_wrong_guesses_leave_nothing_behind() -> None:
    matcher, answer = AnswerMatcher(GRAMMAR), walk(1, 3)
    matcher.follow(0, [*answer, STOP, STOP, 7], 3)
    matcher.follow(3, walk(1, 20)[3:], 17)
    (row,) = matcher.follow(3, [])
    assert tokens(row) == allowed(answer)


def test_an_answer_that_does_not_match_is_refused_and_changes_nothing() -> None:
    matcher, good = AnswerMatcher(GRAMMAR), walk(1, 3)
    (before,) = matcher.follow(0, good)
    with pytest.raises(OutsideGrammar, match=r"token 3 of the answer"):
        matcher.follow(3, [LETTERS.index(b"~")])
    assert matcher.follow(3, []) == [before]
    for wrong in (SIZE - 1, SIZE, -1, TOKENS.index(b"")):
        with pytest.raises(OutsideGrammar):
            matcher.follow(0, [wrong])
    with pytest.raises(OutsideGrammar, match="4 tokens"):
        matcher.follow(4, [])


def test_behind_the_end_only_the_end_may_follow() -> None:
    matcher, answer = AnswerMatcher(GRAMMAR), walk(2, 50)
    assert answer[-1] == STOP
    rows = matcher.follow(0, [*answer, STOP, STOP], 2)
    assert [tokens(row) for row in rows] == [[STOP]] * 3
    with pytest.raises(OutsideGrammar):
        matcher.follow(len(answer), [7])
    (row,) = matcher.follow(len(answer) - 1, [])
    assert tokens(row) == allowed(answer[:-1])


def test_what_is_barred_is_never_allowed_and_a_dead_end_is_said() -> None:
    digits = tuple(TOKENS.index(digit) for digit in (b"1", b"2"))
    assert allowed([], compiled("[12]", barred=digits[:1])) == [digits[1]]
    with pytest.raises(OutsideGrammar, match="no token"):
        allowed([], compiled("[12]", barred=digits))


def test_tokens_beyond_the_tokenizer_and_without_text_are_never_allowed() -> None:
    anything = allowed([], compiled("[^@]*"))
    assert set(anything) == set(range(len(TOKENS))) - {TOKENS.index(b""), LETTERS.index(b"@")}


def test_json_takes_no_control_characters_and_faults_are_said() -> None:
    text = compile_grammar("json_schema", '{"type": "string", "maxLength": 9}', VOCABULARY)
    quote = LETTERS.index(b'"')
    assert allowed([], text) == [quote]
    assert NEW_LINE not in allowed([quote], text)
    for kind, wrong in (("regex", "("), ("json_schema", '{"type": "x"}'), ("ebnf", "root ::= missing")):
        with pytest.raises(OutsideGrammar) as refused:
            compile_grammar(kind, wrong, VOCABULARY)
        assert "/" not in refused.value.reason
