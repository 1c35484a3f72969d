"""What holds for all tests."""

import os
import signal
import sys

import pytest
from hypothesis import settings

# Machines that run tests are slow and shared: an example that takes long says nothing about the code.
settings.register_profile("shared machine", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("shared machine")

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side

# Started in the background, we were told to ignore Ctrl-C, and so would be the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

RECURSION_LIMIT = sys.getrecursionlimit()


@pytest.fixture(autouse=True)
def recursion_limit() -> None:
    """What test modules import may raise it so far that endless recursion ends the process and not the call."""
    sys.setrecursionlimit(RECURSION_LIMIT)
