"""The compiler's process: what it answers, how long it may take, and that its end ends nothing else."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from swarm_net.messages import Grammar, encode_grammar
from swarm_net.session_errors import GrammarRefused, Unsupported
from swarm_node.grammar_compiler import GrammarCompiler, GrammarLimits
from tests.client import tiny_tokenizers

pytest.importorskip("xgrammar", reason="structured output needs the package xgrammar")

TOKENIZER = tiny_tokenizers.byte_level()
SIZE = tiny_tokenizers.vocabulary(TOKENIZER)
STOPS = (1,)
NOTHING = np.empty(0, np.int32)


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_bytes(TOKENIZER)
    return tmp_path / "tokenizer.json"


def regex(text: str) -> bytes:
    return encode_grammar(Grammar(kind="regex", text=text))


async def test_grammars_are_compiled_and_kept_and_faults_end_nothing(tokenizer_file: Path) -> None:
    async with GrammarCompiler(tokenizer_file, SIZE, STOPS) as compiler:
        one, two, other = await asyncio.gather(*(compiler.constraint(regex(text)) for text in ("ab", "ab", "[0-9]")))
        assert one is not two
        assert np.array_equal(one.allowed(NOTHING), two.allowed(NOTHING))
        assert not np.array_equal(one.allowed(NOTHING), other.allowed(NOTHING))
        for wrong in (b"nonsense", regex("(")):
            with pytest.raises(GrammarRefused):
                await compiler.constraint(wrong)
        again = await compiler.constraint(regex("ab"))
        assert np.array_equal(again.allowed(NOTHING), one.allowed(NOTHING))


async def test_a_worker_that_is_too_slow_is_ended_and_a_caller_that_left_is_forgotten(tokenizer_file: Path) -> None:
    hasty = GrammarLimits(compile_timeout_s=0.0)
    async with GrammarCompiler(tokenizer_file, SIZE, STOPS, hasty) as compiler:
        leaving = asyncio.create_task(compiler.constraint(regex("a")))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(GrammarRefused, match="more than 0 s"):
            await compiler.constraint(regex("b"))
    assert leaving.cancelled()


async def test_a_worker_that_does_not_start_is_said(tokenizer_file: Path) -> None:
    async with GrammarCompiler(tokenizer_file, SIZE, STOPS, GrammarLimits(start_timeout_s=0.0)) as compiler:
        with pytest.raises(Unsupported):
            await compiler.constraint(regex("a"))


def test_a_model_without_tokenizer_or_end_cannot_take_grammars(tokenizer_file: Path) -> None:
    assert GrammarCompiler.is_possible(tokenizer_file, STOPS)
    assert not GrammarCompiler.is_possible(tokenizer_file, ())
    assert not GrammarCompiler.is_possible(tokenizer_file.with_name("no.json"), STOPS)
