"""A thread that computes in order, says what went wrong, and does not hold up the interpreter's end."""

import subprocess
import sys
import threading

import pytest

from swarm_client.daemon_executor import DaemonExecutor

SCRIPT = """
import time
from swarm_client.daemon_executor import DaemonExecutor

executor = DaemonExecutor("sleeps")
executor.submit(time.sleep, 1000)
executor.shutdown(wait=False, cancel_futures=True)
print("at its end")
"""


def test_work_is_done_in_order_by_one_thread() -> None:
    executor = DaemonExecutor("works")
    threads = list(executor.map(lambda _: threading.current_thread(), range(5)))
    assert len(set(threads)) == 1
    assert threads[0].daemon
    assert [executor.submit(pow, 2, power).result(5) for power in range(5)] == [1, 2, 4, 8, 16]
    with pytest.raises(ZeroDivisionError):
        executor.submit(divmod, 1, 0).result(5)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(pow, 1, 1)


def test_what_waits_can_be_cancelled() -> None:
    executor, started, gate = DaemonExecutor("works"), threading.Event(), threading.Event()

    def work() -> str:
        started.set()
        gate.wait(5)
        return "done"

    first, second = executor.submit(work), executor.submit(pow, 1, 1)
    assert started.wait(5)
    executor.shutdown(wait=False, cancel_futures=True)
    assert second.cancelled()
    gate.set()
    assert first.result(5) == "done"


def test_the_interpreter_does_not_wait_for_it() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "at its end\n"
