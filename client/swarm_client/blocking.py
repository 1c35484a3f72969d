"""The same model for programs without asyncio: a thin face over `AsyncRemoteModel` in a thread of its own.

Safe to call from many threads. The thread is a daemon with the event loop in it; nothing here waits while an object is
collected or the interpreter ends. Ctrl-C in a waiting call cancels what it waited for, and the nodes are told.
"""

import asyncio
import atexit
import contextlib
import queue
import threading
import weakref
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

from swarm_client.deadlines import Patience
from swarm_client.errors import ModelClosed
from swarm_client.model import AsyncRemoteModel
from swarm_client.money import WalletOptions
from swarm_client.parameters import Arguments
from swarm_client.prompts import ChatPrompt, Prompt, Prompts, read_prompt
from swarm_client.results import Generation, Token
from swarm_client.token_stream import TokenStream
from swarm_net.messages import ModelId
from swarm_net.routing import Route

CLOSE_TIMEOUT_S = 5.0

T = TypeVar("T")


class RemoteModel:
    """One model of a swarm. Made by `connect`; a context manager, or call `close`."""

    def __init__(self, loop: "_LoopThread", opened: AbstractAsyncContextManager[AsyncRemoteModel]) -> None:
        self._loop = loop
        self._opened = opened
        self._closing = threading.Lock()
        self._model = loop.run(opened.__aenter__())
        # One that is dropped without `close` waits for nothing, but its thread and links go.
        weakref.finalize(self, loop.stop).atexit = False

    @classmethod
    def connect(
        cls,
        model: str,
        bootstrap: Sequence[str] = (),
        *,
        cache_dir: Path | None = None,
        patience: Patience | None = None,
        wallet: WalletOptions | Path | str | None = None,
    ) -> Self:
        """Find a model in the swarm; arguments and errors as in `AsyncRemoteModel.connect`."""
        loop = _LoopThread()
        try:
            opened = AsyncRemoteModel.connect(
                model,
                bootstrap,
                cache_dir=cache_dir,
                patience=patience,
                wallet=wallet,
            )
            return cls(loop, opened)
        except BaseException:
            loop.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every session and link; a second call does nothing."""
        with self._closing:
            try:
                with contextlib.suppress(TimeoutError, ModelClosed):
                    self._loop.run(self._opened.__aexit__(None, None, None), timeout_s=CLOSE_TIMEOUT_S)
            finally:
                self._loop.stop()

    @property
    def model(self) -> ModelId:
        """The name and exact revision that was found."""
        return self._model.model

    # A string is also a sequence of strings; it is one prompt.
    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompt: Prompt, **arguments: Unpack[Arguments]
    ) -> Generation: ...
    @overload
    def generate(self, prompt: Sequence[Prompt], **arguments: Unpack[Arguments]) -> list[Generation]: ...
    def generate(self, prompt: Prompts, **arguments: Unpack[Arguments]) -> Generation | list[Generation]:
        """Continue a prompt, or several at once; see `AsyncRemoteModel.generate`."""
        either: Any = prompt  # the overloads are those of the other side
        result: Generation | list[Generation] = self._loop.run(self._model.generate(either, **arguments))
        return result

    def samples(self, prompt: Prompt, n: int, **arguments: Unpack[Arguments]) -> list[Generation]:
        """Continue one prompt `n` times at once; see `AsyncRemoteModel.samples`."""
        return self._loop.run(self._model.samples(prompt, n, **arguments))

    def stream(self, prompt: Prompt, **arguments: Unpack[Arguments]) -> "BlockingTokenStream":
        """Return the tokens of one continuation as they come; see `AsyncRemoteModel.stream`."""
        return BlockingTokenStream(self, self._loop, self._loop.run(_made(self._model, prompt, arguments)))

    def route(self, max_tokens: int = 1) -> Route:
        """Return the route that a session for so many tokens would take now. Raises NoRoute."""
        return self._loop.run(self._model.route(max_tokens))


class BlockingTokenStream:
    """An iterator of tokens, and a context manager that ends it; dropping it ends it too.

    One task on the loop's thread moves tokens into a queue, so that a token costs no task and no round trip.
    """

    def __init__(self, model: RemoteModel, loop: "_LoopThread", stream: TokenStream) -> None:
        self._model = model  # which must not go before its streams
        self._stream = stream
        # Unbounded: at most the tokens that were asked for.
        arrived: queue.SimpleQueue[Token | BaseException | None] = queue.SimpleQueue()
        self._arrived = arrived
        self._moving = loop.start(_move(stream, arrived))
        self._moving.add_done_callback(lambda moved: arrived.put(_end_of(moved)))  # also if it never began
        weakref.finalize(self, self._moving.cancel).atexit = False
        self._over = False

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        if self._over:
            raise StopIteration
        try:
            arrived = self._arrived.get()
        except BaseException:  # Ctrl-C
            self.close()
            raise
        if isinstance(arrived, Token):
            return arrived
        self._over = True
        if arrived is None:
            raise StopIteration
        raise arrived

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session, if it has not ended; returns at once."""
        self._over = True
        self._moving.cancel()

    @property
    def generation(self) -> Generation | None:
        """The whole once the last token was taken; None before."""
        return self._stream.generation


async def _made(model: AsyncRemoteModel, prompt: Prompt, arguments: Arguments) -> TokenStream:
    if isinstance(read := read_prompt(prompt), ChatPrompt):
        return model.stream(await model.tokenize(read.messages), **arguments)
    return model.stream(prompt, **arguments)


async def _move(stream: TokenStream, arrived: queue.SimpleQueue[Token | BaseException | None]) -> None:
    async with stream:
        async for token in stream:
            arrived.put(token)


def _end_of(moved: Future[None]) -> BaseException | None:
    return ModelClosed() if moved.cancelled() else moved.exception()


class _LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = _new_loop()
        self._lock = threading.Lock()  # what is started before the stop is seen by the loop before it
        self._is_stopped = False
        self._thread = threading.Thread(target=_run, args=(self._loop,), name="swarm-client", daemon=True)
        self._thread.start()
        _running.add(self)

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run work on the loop. Raises ModelClosed."""
        with self._lock:
            if not self._is_stopped:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        raise ModelClosed

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Run work on the loop and wait for it; an exception here, Ctrl-C among them, cancels it."""
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("a blocking call from the model's own event loop would wait for itself")
        future = self.start(work)
        try:
            return future.result(timeout_s)
        except CancelledError:
            raise ModelClosed from None
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """Stop the loop soon; waits for nothing."""
        with self._lock:
            if not self._is_stopped:
                self._is_stopped = True
                self._loop.call_soon_threadsafe(self._loop.stop)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.wait(tasks, timeout=CLOSE_TIMEOUT_S) if tasks else asyncio.sleep(0))
    finally:
        loop.close()


_running: weakref.WeakSet[_LoopThread] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Ask loops to stop, so that fewer threads are in the middle of something when the interpreter goes."""
    for loop in list(_running):
        loop.stop()
