"""Everything that can go wrong in a simulation or a local swarm, and what the person who meets it should do.

SimError
├── Deadlock          every task waits and nothing will ever wake one
├── BudgetSpent       more events than allowed: a loop that never ends
├── RealWorld         code under simulation reached for a socket, a thread or a process
├── BadOption         an option of a command that cannot be
└── NodeDown          a node process of a local swarm did not get ready, or ended
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass


class SimError(Exception, ABC):
    """A failure that its reader can understand and act on."""

    @abstractmethod
    def remedy(self) -> str:
        """Say in one sentence what the reader can do about it."""


@dataclass(eq=False)
class Deadlock(SimError):
    """Nothing is ready, no timer is set, and tasks are left."""

    at_s: float
    waiting: str  # a line per place, see waiting.py

    def __str__(self) -> str:
        return f"deadlock at virtual second {self.at_s:g}: no callback is ready and no timer is set\n{self.waiting}"

    def remedy(self) -> str:
        return "look at who should have woken these tasks; waits for a peer belong under a timeout"


@dataclass(eq=False)
class BudgetSpent(SimError):
    """The simulation ran more events than it was allowed."""

    events: int
    at_s: float
    waiting: str

    def __str__(self) -> str:
        return f"{self.events} events spent at virtual second {self.at_s:g}\n{self.waiting}"

    def remedy(self) -> str:
        return "if virtual time stands still, something spins; else allow more events or simulate less"


@dataclass(eq=False)
class RealWorld(SimError):
    """Something that virtual time cannot hold."""

    operation: str

    def __str__(self) -> str:
        return f"{self.operation} is not there in virtual time"

    def remedy(self) -> str:
        return "give the code its transport, store or executor as an argument, and here a simulated one"


@dataclass(eq=False)
class BadOption(SimError):
    """A value that an option cannot have."""

    option: str
    reason: str

    def __str__(self) -> str:
        return f"{self.option}: {self.reason}"

    def remedy(self) -> str:
        return f"give {self.option} another value; --help tells what it means"


@dataclass(eq=False)
class NodeDown(SimError):
    """A node of a local swarm did not get ready, or ended by itself."""

    node: int
    span: tuple[int, int]
    reason: str
    output: tuple[str, ...] = ()  # the last lines that it wrote

    def __str__(self) -> str:
        head = f"node {self.node} (blocks {self.span[0]}:{self.span[1]}) {self.reason}"
        return "\n".join((head, *(f"  {line}" for line in self.output)))

    def remedy(self) -> str:
        return "its own lines above say why; `swarm-node start` with the same model and blocks shows more"
