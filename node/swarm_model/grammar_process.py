"""The processes that compile and match strangers' grammars: a server, which forks one for each grammar, which forks one
for each session.

    python -m swarm_model.grammar_process TOKENIZER_JSON VOCABULARY_SIZE STOP_ID[,STOP_ID...] COMPILE_S FOLLOW_S

Standard input is a Unix socket; `grammar_frames.py` has what is said. A grammar can take for ever to compile, and a
compiled one for ever to match a single token, in foreign code that nothing can interrupt: so each has a process of its
own with an allowance of CPU time (`COMPILE_S` for a grammar; `FOLLOW_S` for a session, and more for each token), behind
which the kernel ends it, and of memory. What one of them does or how it ends
concerns nobody else. All end when their socket does, so when the node does. Started by the node (`grammars.py`).
"""

import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from swarm_model.errors import OutsideGrammar
from swarm_model.grammar import AnswerMatcher, CompiledGrammar, Vocabulary, compile_grammar, read_vocabulary
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

TOKEN_S: Final = 0.01  # of CPU time, for each token of an answer
MEMORY_BYTES: Final = 256 << 20  # of each process, beyond what the server has
NICENESS: Final = 10  # whoever computes goes first


def main(arguments: list[str]) -> None:
    """Serve until standard input ends."""
    tokenizer_file, size, stops, compile_s, follow_s = arguments
    control = socket.socket(fileno=os.dup(0))
    vocabulary = read_vocabulary(Path(tokenizer_file), int(size), [int(stop) for stop in stops.split(",")])
    os.nice(NICENESS)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries the children
    _send(control, Ready())
    connection = _fork_for_each(control)
    if connection is not None:
        _limit()
        _serve_grammar(connection, vocabulary, float(compile_s), float(follow_s))


def _fork_for_each(control: socket.socket) -> socket.socket | None:
    """Fork for each descriptor that comes. Returns it in the child; None in the parent, at the end."""
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            return None
        connection = socket.socket(fileno=descriptors[0])
        if os.fork() == 0:
            control.close()
            return connection
        connection.close()


def _serve_grammar(connection: socket.socket, vocabulary: Vocabulary, compile_s: float, follow_s: float) -> None:
    """Compile one grammar, then fork for each session; ends the process."""
    request = _receive(connection)
    assert isinstance(request, Compile)
    signal.setitimer(signal.ITIMER_PROF, compile_s)
    try:
        grammar = compile_grammar(request.kind, request.text, vocabulary)
    except OutsideGrammar as error:
        _send(connection, Refused(error.reason))
        os._exit(0)
    signal.setitimer(signal.ITIMER_PROF, 0)
    _send(connection, Compiled())
    session = _fork_for_each(connection)
    if session is not None:
        _serve_session(session, grammar, follow_s)
    os._exit(0)


def _serve_session(connection: socket.socket, grammar: CompiledGrammar, follow_s: float) -> None:
    """Answer one session until its socket ends, or its allowance does."""
    matcher, taken = AnswerMatcher(grammar), 0
    signal.setitimer(signal.ITIMER_PROF, follow_s)  # runs only while we do
    while isinstance(request := _receive(connection), Follow):
        longest = max(taken, request.keep + len(request.ids))
        left_s, _ = signal.getitimer(signal.ITIMER_PROF)
        signal.setitimer(signal.ITIMER_PROF, left_s + TOKEN_S * (longest - taken))
        taken = longest
        try:
            _send(connection, Masks(tuple(matcher.follow(request.keep, request.ids, request.drafts))))
        except (OutsideGrammar, RuntimeError) as error:
            _send(connection, Refused(error.reason if isinstance(error, OutsideGrammar) else type(error).__name__))


def _limit() -> None:
    """Bound what this process and its children may take, and let them be the first to go where memory runs out."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)  # the compiler writes strangers' words to it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(AttributeError):  # not every system tells
        limit = psutil.Process().memory_info().data + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _send(connection: socket.socket, message: Message) -> None:
    connection.sendall(encode(message))


def _receive(connection: socket.socket) -> Message | None:
    """Read one message; None at the end."""
    head = _read(connection, LENGTH_BYTES)
    return decode(_read(connection, length_of(head))) if head else None


def _read(connection: socket.socket, count: int) -> bytes:
    """Read so many bytes, or none at the end."""
    data = bytearray()
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            return b""
        data += more
    return bytes(data)


if __name__ == "__main__":
    main(sys.argv[1:])
