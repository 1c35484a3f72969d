"""Keeps answers to the grammars that clients send, in processes that may fail.

Owns the node's end of the sockets to them (`swarm_model.grammar_process`): the server, started with the first grammar;
a process for each grammar, kept for the next session that asks for it; one for each session, which says what may come
next. Neither the event loop nor the compute thread ever waits for foreign code, and a session waits for its own alone.
Called by `node.py`. Where the package xgrammar or `fork` is missing a node does not offer grammars.
"""

import asyncio
import contextlib
import importlib.util
import logging
import os
import socket
import sys
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from swarm_model.grammar_frames import (
    LENGTH_BYTES,
    Compile,
    Compiled,
    Follow,
    Masks,
    Message,
    Ready,
    Refused,
    decode,
    encode,
    length_of,
)
from swarm_net.errors import Malformed
from swarm_net.messages import decode_grammar
from swarm_net.session_errors import ComputeFailed, GrammarRefused, Unsupported

log = logging.getLogger(__name__)

TOO_MUCH = "it takes more time or memory than a grammar may"


class Matcher(Protocol):
    """Follows the answer of one session."""

    async def masks(self, answer: NDArray[np.int32], drafts: int) -> tuple[bytes, ...]:
        """Return what may follow an answer, whose last `drafts` tokens are guesses: `Draw.masks`.

        Raises GrammarRefused where the answer does not match, nothing follows, or following takes too long.
        """

    def close(self) -> None:
        """End it; whoever waits gets GrammarRefused."""


class Grammars(Protocol):
    """What the node uses."""

    async def matcher(self, grammar: bytes) -> Matcher:
        """Return a matcher for one session. Raises GrammarRefused, ComputeFailed, Unsupported."""


@dataclass(frozen=True, slots=True)
class GrammarLimits:
    """How much is kept, what a grammar may take, and how long answers are waited for: beyond, a machine is stuck."""

    max_waiting: int = 32  # grammars; one more is refused
    max_kept: int = 16  # grammars, for sessions to come
    max_followed: int = 64  # sessions; one more is refused
    compile_cpu_s: float = 5.0
    follow_cpu_s: float = 1.0  # of a session; it may take more with each token
    start_timeout_s: float = 60.0  # with imports
    compile_timeout_s: float = 30.0
    follow_timeout_s: float = 30.0


class GrammarProcesses:
    """Grammars for one vocabulary; an async context manager."""

    def __init__(
        self,
        tokenizer_file: Path,
        vocabulary_size: int,
        stop_ids: tuple[int, ...],
        limits: GrammarLimits = GrammarLimits(),
    ) -> None:
        self._command = (
            *(sys.executable, "-m", "swarm_model.grammar_process"),
            *(str(tokenizer_file), str(vocabulary_size), ",".join(map(str, stop_ids))),
            *(str(limits.compile_cpu_s), str(limits.follow_cpu_s)),
        )
        self._limits = limits
        self._server: tuple[asyncio.subprocess.Process, _Pipe] | None = None
        self._kept: OrderedDict[bytes, _Pipe] = OrderedDict()
        self._waiting: asyncio.Queue[tuple[bytes, asyncio.Future[_Pipe]]] = asyncio.Queue(limits.max_waiting)
        self._followed: set[ProcessMatcher] = set()
        self._task: asyncio.Task[None] | None = None

    @staticmethod
    def are_possible(tokenizer_file: Path, stop_ids: tuple[int, ...]) -> bool:
        """Whether this machine and this model can do it; imports nothing."""
        can_run = importlib.util.find_spec("xgrammar") is not None and hasattr(os, "fork")
        return can_run and bool(stop_ids) and tokenizer_file.is_file()

    async def __aenter__(self) -> Self:
        self._task = asyncio.get_running_loop().create_task(self._work(), name="compile grammars")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for matcher in list(self._followed):
            matcher.close()
        for pipe in self._kept.values():
            pipe.close()
        await self._end_server()

    async def matcher(self, grammar: bytes) -> Matcher:
        """See Grammars."""
        if len(self._followed) >= self._limits.max_followed:
            raise ComputeFailed(reason=f"{self._limits.max_followed} sessions have a grammar already")
        if (kept := self._kept.get(grammar)) is not None:
            self._kept.move_to_end(grammar)
            try:
                return await self._matcher(kept)
            except GrammarRefused as error:
                if error.reason != TOO_MUCH:
                    raise
            if self._kept.get(grammar) is kept:  # it has ended meanwhile
                self._kept.pop(grammar).close()
        compiled: asyncio.Future[_Pipe] = asyncio.get_running_loop().create_future()
        try:
            self._waiting.put_nowait((grammar, compiled))
        except asyncio.QueueFull:
            raise ComputeFailed(reason=f"{self._limits.max_waiting} grammars wait to be compiled already") from None
        return await self._matcher(await compiled)

    async def _matcher(self, grammar: "_Pipe") -> Matcher:
        """Return a matcher whose process is known to run. Raises GrammarRefused."""
        try:
            matcher = ProcessMatcher(grammar.fork(), self._limits.follow_timeout_s, self._followed)
        except OSError as error:
            raise GrammarRefused(reason=TOO_MUCH) from error
        try:
            await matcher.masks(np.empty(0, np.int32), 0)
        except BaseException:
            matcher.close()
            raise
        return matcher

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
            except Exception as error:  # a bug of ours, or a machine that starts no process: the next one is tried too
                log.exception("grammar not compiled")
                if not waiter.done():
                    waiter.set_exception(ComputeFailed(reason=type(error).__name__))
                continue
            if not waiter.done():
                waiter.set_result(self._kept[grammar])
            while len(self._kept) > self._limits.max_kept:
                self._kept.popitem(last=False)[1].close()

    async def _compile(self, data: bytes) -> "_Pipe":
        try:
            grammar = decode_grammar(data)
        except Malformed as error:
            raise GrammarRefused(reason=error.reason) from error
        try:
            pipe = (await self._started()).fork()
        except OSError as error:  # it has just ended
            await self._end_server()
            log.warning("grammar server ended reason=%s", error)
            pipe = (await self._started()).fork()
        try:
            async with asyncio.timeout(self._limits.compile_timeout_s):
                answer = await pipe.ask(Compile(grammar.kind, grammar.text))
        except (OSError, ValueError, TimeoutError) as error:
            raise GrammarRefused(reason=TOO_MUCH) from error
        if isinstance(answer, Compiled):
            return pipe
        pipe.close()
        raise GrammarRefused(reason=answer.reason if isinstance(answer, Refused) else TOO_MUCH)

    async def _started(self) -> "_Pipe":
        if self._server is not None:
            process, pipe = self._server
            if process.returncode is None:
                return pipe
            await self._end_server()
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=theirs.fileno(), stdout=asyncio.subprocess.DEVNULL
            )
        self._server = process, pipe = process, _Pipe(ours)
        try:
            async with asyncio.timeout(self._limits.start_timeout_s):
                if not isinstance(await pipe.hear(), Ready):
                    raise ValueError("it says something else")
        except (OSError, ValueError, TimeoutError) as error:
            await self._end_server()
            log.warning("grammar server does not start reason=%s", type(error).__name__)
            raise Unsupported(feature="grammar") from error
        return pipe

    async def _end_server(self) -> None:
        if self._server is not None:
            (process, pipe), self._server = self._server, None
            pipe.close()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class ProcessMatcher:
    """A session's process; see Matcher."""

    def __init__(self, pipe: "_Pipe", timeout_s: float, followed: "set[ProcessMatcher]") -> None:
        self._pipe = pipe
        self._timeout_s = timeout_s
        self._told = np.empty(0, np.int32)  # the answer that the process has taken, guesses left out
        self._turn = asyncio.Lock()
        self._followed = followed
        followed.add(self)

    async def masks(self, answer: NDArray[np.int32], drafts: int) -> tuple[bytes, ...]:
        """See Matcher."""
        async with self._turn:
            known = answer[: len(answer) - drafts]
            shorter = min(len(known), len(self._told))
            differing = np.flatnonzero(known[:shorter] != self._told[:shorter])
            keep = int(differing[0]) if len(differing) else shorter
            self._told = known
            try:
                async with asyncio.timeout(self._timeout_s):
                    said = await self._pipe.ask(Follow(keep, tuple(answer[keep:].tolist()), drafts))
            except (OSError, ValueError, TimeoutError) as error:
                raise GrammarRefused(reason=TOO_MUCH) from error
        if isinstance(said, Masks) and 1 <= len(said.rows) <= drafts + 1:
            return said.rows
        raise GrammarRefused(reason=said.reason if isinstance(said, Refused) else TOO_MUCH)

    def close(self) -> None:
        """See Matcher."""
        self._followed.discard(self)
        self._pipe.close()


class _Pipe:
    """Our end of a socket to a process: one question at a time, and none after one that was broken off."""

    def __init__(self, ours: socket.socket) -> None:
        ours.setblocking(False)
        self._socket = ours
        self._is_waiting = False

    def fork(self) -> "_Pipe":
        """Have the process fork another; returns the socket to that one."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self._socket, [b"\0"], [theirs.fileno()])
        except OSError:
            ours.close()
            raise
        return _Pipe(ours)

    async def ask(self, question: Message) -> Message:
        """Raises OSError where the process has ended, ValueError for what is no answer."""
        with self._waiting():
            await asyncio.get_running_loop().sock_sendall(self._socket, encode(question))
            return await self._hear()

    async def hear(self) -> Message:
        """Wait for what nobody asked for; raises as `ask`."""
        with self._waiting():
            return await self._hear()

    def close(self) -> None:
        """End the process, or that part of it; whoever waits gets an OSError."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if not self._is_waiting:  # the loop must not find another file under this number
            self._socket.close()

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        self._is_waiting, is_whole = True, False
        try:
            yield
            is_whole = True
        finally:
            self._is_waiting = False
            if not is_whole:
                self.close()

    async def _hear(self) -> Message:
        length = length_of(await self._read(LENGTH_BYTES))
        return decode(await self._read(length))

    async def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            more = await asyncio.get_running_loop().sock_recv(self._socket, count - len(data))
            if not more:
                raise ConnectionResetError("the process has ended")
            data += more
        return bytes(data)
