"""The face without asyncio: from many threads, with Ctrl-C, and at the interpreter's end."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from swarm_client import RemoteModel
from swarm_client.blocking import BlockingTokenStream, _made
from swarm_client.errors import InvalidParameter, ModelClosed
from swarm_net.errors import NetError
from swarm_net.messages import Step
from tests.client.fake_swarm import (
    FakeModel,
    FakeSwarm,
    Script,
    continuation,
    fake_swarm_in_thread,
    wait_until,
)

PROMPT = [5, 6, 7]


@pytest.fixture
def swarm(model: FakeModel) -> Iterator[FakeSwarm]:
    with fake_swarm_in_thread(model, (0, 4), (4, 8), scripts=[Script(), Script(step_s=0.001)]) as running:
        yield running


def connect(swarm: FakeSwarm, tmp_path: Path) -> RemoteModel:
    return RemoteModel.connect("fake", swarm.bootstrap, cache_dir=tmp_path / "cache")


def test_generate_and_stream(swarm: FakeSwarm, tmp_path: Path) -> None:
    wanted = continuation(PROMPT, 20, swarm.model.vocabulary)
    with connect(swarm, tmp_path) as remote:
        assert remote.model == swarm.model.id
        assert remote.generate(PROMPT, max_new_tokens=20).token_ids == wanted
        assert [one.token_ids for one in remote.generate([PROMPT, PROMPT], max_new_tokens=20)] == [wanted, wanted]
        with remote.stream(PROMPT, max_new_tokens=20) as stream:
            assert [token.id for token in stream] == wanted
            assert stream.generation is not None
            assert list(stream) == []
        assert [hop.start for hop in remote.route().hops] == [0, 4]
        with pytest.raises(InvalidParameter):
            remote.generate(PROMPT, top_p=7)
        with pytest.raises(InvalidParameter):
            remote.stream(PROMPT, top_p=7)
    for call in (remote.generate, remote.stream):
        with pytest.raises(ModelClosed):
            call(PROMPT)
    remote.close()


def test_many_threads_share_a_model(swarm: FakeSwarm, tmp_path: Path) -> None:
    prompts = [[5, number] for number in range(24)]
    with connect(swarm, tmp_path) as remote, ThreadPoolExecutor(12) as threads:

        def one(ids: list[int]) -> list[int]:
            if ids[1] % 2:
                return [token.id for token in remote.stream(ids, max_new_tokens=10)]
            return remote.generate(ids, max_new_tokens=10).token_ids

        found = list(threads.map(one, prompts))
    assert found == [continuation(ids, 10, swarm.model.vocabulary) for ids in prompts]


def test_leaving_or_dropping_a_stream_ends_its_session(swarm: FakeSwarm, tmp_path: Path) -> None:
    with connect(swarm, tmp_path) as remote:
        with remote.stream(PROMPT, max_new_tokens=200) as stream:
            next(stream)
        assert list(stream) == []
        dropped = remote.stream(PROMPT, max_new_tokens=200)
        next(dropped)
        del dropped
        gc.collect()
        wait_until(lambda: not any(node.sessions for node in swarm.nodes))


def test_closing_ends_what_other_threads_wait_for(swarm: FakeSwarm, tmp_path: Path) -> None:
    swarm.nodes[1].script.silent_after = 3
    remote = connect(swarm, tmp_path)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            for _ in remote.stream(PROMPT, max_new_tokens=50):
                pass
        except (ModelClosed, NetError) as error:
            errors.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    wait_until(lambda: swarm.nodes[1].count(Step) > 3)
    remote.close()
    thread.join(20)
    assert not thread.is_alive()
    assert len(errors) == 1


def test_a_stream_that_has_not_begun_when_the_loop_stops_ends(swarm: FakeSwarm, tmp_path: Path) -> None:
    with connect(swarm, tmp_path) as remote:
        tokens = remote._loop.run(_made(remote._model, PROMPT, {}))
        busy = threading.Event()
        remote._loop._loop.call_soon_threadsafe(busy.wait)
        stream = BlockingTokenStream(remote, remote._loop, tokens)
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(next, stream)
            remote._loop.stop()
            busy.set()
            with pytest.raises(ModelClosed):
                waiting.result(20)


def test_a_model_that_is_dropped_takes_its_thread_along_but_not_before_its_streams(
    swarm: FakeSwarm, tmp_path: Path
) -> None:
    def loops() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "swarm-client"]

    before = loops()
    stream = connect(swarm, tmp_path).stream(PROMPT, max_new_tokens=20)
    gc.collect()
    assert [token.id for token in stream] == continuation(PROMPT, 20, swarm.model.vocabulary)
    del stream
    gc.collect()
    wait_until(lambda: len(loops()) <= len(before))


def test_two_threads_may_close(swarm: FakeSwarm, tmp_path: Path) -> None:
    remote, busy = connect(swarm, tmp_path), threading.Event()
    remote._loop._loop.call_soon_threadsafe(busy.wait)
    with ThreadPoolExecutor(2) as threads:
        closing = [threads.submit(remote.close) for _ in range(2)]
        time.sleep(0.1)  # both wait for the loop by now
        busy.set()
        for each in closing:
            each.result(20)


def test_a_failed_connect_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(NetError):
        RemoteModel.connect("fake", ["nonsense"])
    wait_until(lambda: threading.active_count() <= before)


PROGRAM = """
import sys
from swarm_client import RemoteModel
remote = RemoteModel.connect("fake", [sys.argv[1]])
stream = remote.stream([5, 6, 7], max_new_tokens=200)
print(next(stream).id, flush=True)
"""

ENDINGS = {
    "falls off its end": "",
    "exits": "sys.exit(0)",
    "keeps a stream in a global": "keep = [remote, stream, iter(stream)]",
    "other threads still wait": "import threading\nthreading.Thread(target=lambda: list(stream), daemon=True).start()",
    "in a cycle": "class A: pass\na = A(); a.a = a; a.remote = remote; a.stream = stream; del remote, stream",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_interpreter_ends_with_a_live_model(swarm: FakeSwarm, environment: dict[str, str], ending: str) -> None:
    swarm.nodes[1].script.silent_after = 40
    program = PROGRAM + ENDINGS[ending]
    done = subprocess.run(
        [sys.executable, "-c", program, swarm.bootstrap[0]],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [str(continuation(PROMPT, 1, swarm.model.vocabulary)[0])]
    wait_until(lambda: not any(node.sessions for node in swarm.nodes))


WAITING = {
    "generate": "remote.generate([5, 6, 7], max_new_tokens=200)",
    "stream": "list(stream)",
}


@pytest.mark.parametrize("waiting", WAITING)
def test_ctrl_c_ends_the_wait_and_the_session(swarm: FakeSwarm, environment: dict[str, str], waiting: str) -> None:
    swarm.nodes[1].script.silent_after = 5
    program = PROGRAM + f"try:\n    {WAITING[waiting]}\nexcept KeyboardInterrupt:\n    print('stopped', flush=True)\n"
    program += "remote.close()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, swarm.bootstrap[0]], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        wanted = 6 if waiting == "stream" else 12
        wait_until(lambda: swarm.nodes[1].count(Step) >= wanted)
        os.kill(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert out.split()[-1] == "stopped"
    wait_until(lambda: not any(node.sessions for node in swarm.nodes))
