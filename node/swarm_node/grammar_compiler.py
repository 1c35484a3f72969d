"""Turns the grammars that clients send into constraints for their sessions, in a process that may fail.

Owns the worker process (`swarm_model.grammar_worker`), started with the first grammar: its time limit, its end, and the
compiled grammars kept for the next session that asks for one of them. The event loop never waits for it, and neither
does the compute thread. Called by `node.py` while a session is opened.
"""

import asyncio
import contextlib
import importlib.util
import json
import logging
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from swarm_model.sampler import Constraint
from swarm_net.errors import Malformed
from swarm_net.messages import Grammar, decode_grammar
from swarm_net.session_errors import ComputeFailed, GrammarRefused, Unsupported

log = logging.getLogger(__name__)

MAX_WAITING = 32  # grammars; one more is refused
MAX_KEPT = 16
MAX_COMPILED_BYTES = 64 << 20


class Grammars(Protocol):
    """What the node uses."""

    async def constraint(self, grammar: bytes) -> Constraint:
        """Return a constraint for one session. Raises GrammarRefused, ComputeFailed, Unsupported."""


@dataclass(frozen=True, slots=True)
class GrammarLimits:
    """How long the worker may take; the start includes its imports."""

    start_timeout_s: float = 60.0
    compile_timeout_s: float = 5.0


class GrammarCompiler:
    """Compiles grammars for one vocabulary; an async context manager."""

    def __init__(
        self,
        tokenizer_file: Path,
        vocabulary_size: int,
        stop_ids: tuple[int, ...],
        limits: GrammarLimits = GrammarLimits(),
    ) -> None:
        self._command = (
            *(sys.executable, "-m", "swarm_model.grammar_worker"),
            *(str(tokenizer_file), str(vocabulary_size), ",".join(map(str, stop_ids))),
        )
        self._size, self._stop_ids = vocabulary_size, stop_ids
        self._limits = limits
        self._kept: OrderedDict[bytes, Any] = OrderedDict()
        self._waiting: asyncio.Queue[tuple[bytes, asyncio.Future[Any]]] = asyncio.Queue(MAX_WAITING)
        self._process: asyncio.subprocess.Process | None = None
        self._vocabulary: Any = None
        self._task: asyncio.Task[None] | None = None

    @staticmethod
    def is_possible(tokenizer_file: Path, stop_ids: tuple[int, ...]) -> bool:
        """Whether this machine and this model can do it; imports nothing."""
        return importlib.util.find_spec("xgrammar") is not None and bool(stop_ids) and tokenizer_file.is_file()

    async def __aenter__(self) -> Self:
        self._task = asyncio.get_running_loop().create_task(self._work(), name="compile grammars")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._kill()

    async def constraint(self, grammar: bytes) -> Constraint:
        """See Grammars."""
        from swarm_model.grammar import GrammarConstraint  # imports torch, which the node program has by now

        if grammar not in self._kept:
            compiled: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            try:
                self._waiting.put_nowait((grammar, compiled))
            except asyncio.QueueFull:
                raise ComputeFailed(reason=f"{MAX_WAITING} grammars wait to be compiled already") from None
            return GrammarConstraint(await compiled)
        self._kept.move_to_end(grammar)
        return GrammarConstraint(self._kept[grammar])

    async def _work(self) -> None:
        """Compile what waits, one after the other; nobody's cancellation stops a start that others wait for too."""
        while True:
            grammar, waiter = await self._waiting.get()
            if waiter.done():
                continue
            try:
                if grammar not in self._kept:
                    self._kept[grammar] = await self._compile(grammar)
            except (GrammarRefused, Unsupported) as error:
                if not waiter.done():
                    waiter.set_exception(error)
                continue
            if not waiter.done():
                waiter.set_result(self._kept[grammar])
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)

    async def _compile(self, data: bytes) -> Any:
        from swarm_model.grammar import read_compiled

        try:
            grammar = decode_grammar(data)
        except Malformed as error:
            raise GrammarRefused(reason=error.reason) from error
        answer = await self._ask(grammar)
        if "compiled" not in answer:
            raise GrammarRefused(reason=str(answer.get("refused")))
        return await asyncio.to_thread(read_compiled, answer["compiled"], self._vocabulary, grammar.kind)

    async def _ask(self, grammar: Grammar) -> dict[str, Any]:
        process = await self._started()
        assert process.stdin is not None
        request = json.dumps({"kind": grammar.kind, "text": grammar.text}).encode() + b"\n"
        try:
            async with asyncio.timeout(self._limits.compile_timeout_s):
                process.stdin.write(request)
                await process.stdin.drain()
                return await _read(process)
        except TimeoutError:
            await self._kill()
            raise GrammarRefused(reason=f"compiling it takes more than {self._limits.compile_timeout_s:g} s") from None
        except (ConnectionError, ValueError, EOFError) as error:
            await self._kill()
            log.warning("grammar compiler died reason=%s", type(error).__name__)
            raise GrammarRefused(reason="the compiler failed on it") from error

    async def _started(self) -> asyncio.subprocess.Process:
        from swarm_model.grammar import read_vocabulary

        if self._process is not None and self._process.returncode is None:
            return self._process
        process = self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=MAX_COMPILED_BYTES,
        )
        try:
            async with asyncio.timeout(self._limits.start_timeout_s):
                told = await _read(process)
        except (TimeoutError, ValueError, EOFError) as error:
            await self._kill()
            log.warning("grammar compiler does not start reason=%s", type(error).__name__)
            raise Unsupported(feature="grammar") from error
        self._vocabulary = await asyncio.to_thread(read_vocabulary, told, self._size, self._stop_ids)
        return process

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _read(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """Read one line. Raises EOFError where the process has ended, ValueError for a line that is too long or none."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise EOFError
    answer: dict[str, Any] = json.loads(line)
    return answer
