"""The grammars' processes: what they answer, what they may take, and that the end of one ends nothing else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio
from tokenizers import Tokenizer

from swarm_net.messages import Grammar, GrammarKind, encode_grammar
from swarm_net.session_errors import ComputeFailed, GrammarRefused, Unsupported
from swarm_node.grammars import GrammarLimits, GrammarProcesses, Matcher
from tests.client import tiny_tokenizers
from tests.node.swarm import settled

pytest.importorskip("xgrammar", reason="structured output needs the package xgrammar")

TOKENIZER = tiny_tokenizers.byte_level()
SIZE = tiny_tokenizers.vocabulary(TOKENIZER)
STOPS = (1,)
A, B = (Tokenizer.from_str(TOKENIZER.decode()).token_to_id(letter) for letter in "ab")

SLOW_TO_MATCH = "(.{0,500}){0,20}x"
"""Compiled at once; the second token of an answer takes seconds, the third minutes."""

SLOW_TO_COMPILE = "root ::= r0\n" + "\n".join(
    f'r{rule} ::= r{(rule * 7 + 1) % 200} r{(rule * 3 + 2) % 200} | [a-z] | ""' for rule in range(200)
)


Follow = Callable[..., Awaitable[Matcher]]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("grammars") / "tokenizer.json"
    file.write_bytes(TOKENIZER)
    return file


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def processes(tokenizer_file: Path) -> AsyncIterator[GrammarProcesses]:
    limits = GrammarLimits(compile_cpu_s=0.5, follow_cpu_s=0.3, max_followed=5)
    async with GrammarProcesses(tokenizer_file, SIZE, STOPS, limits) as running:
        yield running
    await settled(lambda: not descendants())


@pytest_asyncio.fixture(loop_scope="module")
async def follow(processes: GrammarProcesses) -> AsyncIterator[Follow]:
    """Makes matchers that end with the test."""
    matchers = []

    async def follow(text: str, kind: GrammarKind = "regex") -> Matcher:
        matchers.append(await processes.matcher(grammar(text, kind)))
        return matchers[-1]

    yield follow
    for matcher in matchers:
        matcher.close()


def grammar(text: str, kind: GrammarKind = "regex") -> bytes:
    return encode_grammar(Grammar(kind=kind, text=text))


async def allowed(matcher: Matcher, *answer: int, drafts: int = 0) -> list[list[int]]:
    rows = await matcher.masks(np.array(answer, np.int32), drafts)
    return [np.flatnonzero(np.unpackbits(np.frombuffer(row, np.uint8), bitorder="little")).tolist() for row in rows]


def descendants() -> list[psutil.Process]:
    """Our grammar processes: the server, those of grammars and those of sessions."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "swarm_model.grammar_process" in process.cmdline():
                found.append(process)
    return found


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_each_session_is_followed_by_itself_and_faults_end_nothing(
    processes: GrammarProcesses, follow: Follow
) -> None:
    one, two, other = await asyncio.gather(*(follow(text) for text in ("ab", "ab", "b*")))
    assert await allowed(one) == await allowed(two) == [[A]]
    assert await allowed(one, A) == [[B]]
    assert await allowed(one, A, B, 1, drafts=3) == [[A], [B], [1], [1]]
    assert await allowed(one, A, A, drafts=1) == [[B]]
    assert await asyncio.gather(allowed(two, A), allowed(two), allowed(two, A, B)) == [[[B]], [[A]], [[1]]]
    assert B in (await allowed(other, B, B))[0]
    for wrong in (b"nonsense", grammar("("), grammar("root ::= missing", "ebnf")):
        with pytest.raises(GrammarRefused):
            await processes.matcher(wrong)
    with pytest.raises(GrammarRefused, match="token 0 of the answer"):
        await allowed(one, B)
    assert await allowed(one, A) == [[B]]
    one.close()
    with pytest.raises(GrammarRefused):
        await allowed(one, A)
    assert await allowed(await follow("ab")) == [[A]]


async def test_a_grammar_that_explodes_ends_its_own_session_alone(follow: Follow) -> None:
    good, bad = await follow("a*b"), await follow(SLOW_TO_MATCH)
    exploding = asyncio.create_task(allowed(bad, *[A] * 40))
    waiting = asyncio.create_task(follow(SLOW_TO_COMPILE, "ebnf"))
    for count in range(60):
        assert B in (await allowed(good, *[A] * count))[0]
    for ended in (exploding, waiting):
        with pytest.raises(GrammarRefused, match="more time or memory"):
            await ended
    assert B in (await allowed(good, A))[0]
    assert await allowed(await follow("ab")) == [[A]]


async def test_whoever_leaves_is_forgotten_and_ends_what_it_waited_for(follow: Follow) -> None:
    leaving = asyncio.create_task(follow("a"))
    staying = asyncio.create_task(follow("b"))
    await asyncio.sleep(0)
    leaving.cancel()
    matcher = await staying
    assert leaving.cancelled()
    slow = await follow(SLOW_TO_MATCH)
    asked = asyncio.create_task(allowed(slow, *[A] * 40))
    await asyncio.sleep(0)
    slow.close()
    with pytest.raises(GrammarRefused):
        await asked
    assert await allowed(matcher) == [[B]]


async def test_more_sessions_than_are_followed_are_sent_elsewhere(follow: Follow) -> None:
    first, *_ = [await follow("ab") for _ in range(5)]
    with pytest.raises(ComputeFailed, match="5 sessions"):
        await follow("ab")
    first.close()
    assert await allowed(await follow("ab")) == [[A]]


async def test_processes_that_were_killed_are_started_again(follow: Follow) -> None:
    matcher = await follow("ab")
    killed = descendants()
    for process in killed:
        process.kill()
    with pytest.raises(GrammarRefused):
        await allowed(matcher)
    await settled(lambda: not any(is_alive(process) for process in killed))
    assert await allowed(await follow("ab")) == [[A]]


async def test_a_server_that_does_not_start_is_said(tokenizer_file: Path) -> None:
    async with GrammarProcesses(tokenizer_file, SIZE, STOPS, GrammarLimits(start_timeout_s=0.0)) as processes:
        with pytest.raises(Unsupported):
            await processes.matcher(grammar("a"))
    async with GrammarProcesses(tokenizer_file.with_name("no.json"), SIZE, STOPS) as processes:
        with pytest.raises(Unsupported):
            await processes.matcher(grammar("a"))


async def test_a_model_without_tokenizer_or_end_cannot_take_grammars(tokenizer_file: Path) -> None:
    assert GrammarProcesses.are_possible(tokenizer_file, STOPS)
    assert not GrammarProcesses.are_possible(tokenizer_file, ())
    assert not GrammarProcesses.are_possible(tokenizer_file.with_name("no.json"), STOPS)
