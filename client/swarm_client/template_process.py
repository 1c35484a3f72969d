"""A chat template in a process of its own: what it takes of time and memory is bounded, whatever it does.

    python -m swarm_client.template_process

Owns both ends. The child reads a line of JSON with the template, then one for each chat, and answers each with a line:
`{"text": ...}`, or `{"error": ...}` for what BadChat says. A sandbox keeps a template from the machine, but not from
counting for ever or doubling a string until memory is gone, and nothing in one process can stop that. The child ends
when its input does, so when the client does. Started at the first chat; made by `model_files.py`.
"""

import contextlib
import json
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import IO, Any, Final

from swarm_client.chat_template import ChatTemplate, plain_messages
from swarm_client.errors import BadChat

START_TIMEOUT_S: Final = 30.0  # for the interpreter and jinja2
RENDER_TIMEOUT_S: Final = 5.0  # for what takes a millisecond
MEMORY_BYTES: Final = 1 << 30  # of addresses


class TemplateProcess:
    """A model's chat template, rendered elsewhere. Safe to call from several threads; one chat after the other."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises BadChat for a template that is not one."""
        ChatTemplate(source, special_tokens, datetime.now)
        self._template = {"source": source, "special_tokens": dict(special_tokens)}
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the text up to where the model's answer begins. Blocks for a moment. Raises BadChat."""
        chat = json.dumps(plain_messages(messages))
        with self._lock:
            if self._child is None:
                self._child = child = _Child(json.dumps(self._template))
                self._end_child = weakref.finalize(self, child.end)  # also where nobody calls `close`
            try:
                answer = self._child.ask(chat)
            except BadChat:
                self.close()
                raise
        if "text" not in answer:
            raise BadChat(reason=str(answer.get("error")))
        return str(answer["text"])

    def close(self) -> None:
        """End the process, if there is one; a chat that it renders just now fails."""
        child, self._child = self._child, None
        if child is not None:
            self._end_child()


class _Child:
    """The process, seen from outside."""

    def __init__(self, template: str) -> None:
        """Raises BadChat where no process can be started."""
        command = [sys.executable, "-m", __name__]
        try:
            self._process = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise BadChat(reason=f"no process to run it in: {error}") from error
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="chat template", daemon=True).start()
        self._first: str | None = template

    def ask(self, chat: str) -> dict[str, Any]:
        """Render one chat. Raises BadChat if the process does not answer in time, or no more."""
        timeout_s = RENDER_TIMEOUT_S
        if self._first is not None:
            chat, self._first, timeout_s = f"{self._first}\n{chat}", None, START_TIMEOUT_S
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(chat.encode() + b"\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise BadChat(reason=f"it does not end within {timeout_s:.0f} s") from None
        except (OSError, ValueError) as error:  # a broken pipe, or one that `end` has closed
            raise BadChat(reason=f"its process has ended: {error}") from error
        if not line:
            raise BadChat(reason=f"it takes more than {MEMORY_BYTES >> 20} MiB, or ends its process")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """Leave nothing of it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not read is of no use now
                    pipe.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # closed
            while line := self._process.stdout.readline():
                self._lines.put(line)
        self._lines.put(b"")


def main(lines: IO[bytes], answers: IO[bytes]) -> None:
    """Serve until the input ends."""
    _limit_memory()
    first = json.loads(lines.readline() or b"null")
    if first is None:
        return
    template = ChatTemplate(first["source"], first["special_tokens"], datetime.now)
    for line in lines:
        try:
            answer = {"text": template.render(json.loads(line))}
        except BadChat as error:
            answer = {"error": error.reason}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):  # a system that has no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
