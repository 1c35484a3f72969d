"""Runs a program that must not outlive the one that started it.

`python -m swarm_sim.leash PARENT_PID PROGRAM ARGUMENT...` asks the kernel (Linux) to send SIGTERM when the parent ends
in whatever way, then becomes the program. A parent that is stopped in good order stops its children itself; this is for
the one that is killed. Where the kernel cannot do that, the program just runs.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the kernel was asked
            sys.exit(1)
    os.execv(program[0], program)  # noqa: S606 - a program of our own, no shell


if __name__ == "__main__":
    main()
