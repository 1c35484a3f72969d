"""What can go wrong while a node starts or is looked after, and what its operator should do.

    NodeError
    ├── DataDirInUse        another node runs on this data directory
    ├── BadSetting          a flag, variable or file sets what cannot be
    ├── BadBlocks           --blocks that this model does not have
    ├── NothingToServe      no span of the model fits this machine
    ├── BootstrapFailed     no bootstrap node answered
    ├── NoSuchNode          no node of this name runs here
    ├── MissingExtra        the parts for serving are not installed
    └── ComputeThreadFailed nothing can be computed any more

Errors of links and DHT come from `swarm_net.errors`, those of checkpoints from `swarm_model.errors`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass


class NodeError(Exception, ABC):
    """A failure that the node's operator can understand and act on."""

    @abstractmethod
    def remedy(self) -> str:
        """Say in one sentence what the operator can do about it."""


@dataclass(eq=False)
class DataDirInUse(NodeError):
    """Two nodes cannot share identity and state."""

    directory: str

    def __str__(self) -> str:
        return f"a node already runs on {self.directory}"

    def remedy(self) -> str:
        return "give this one its own: --data-dir DIR (without --data-dir the next free default is taken)"


@dataclass(eq=False)
class BadSetting(NodeError):
    """A setting that cannot be."""

    name: str
    value: str
    origin: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} = {self.value!r} (from {self.origin}): {self.reason}"

    def remedy(self) -> str:
        return f"correct {self.name}; `swarm-node config show` tells where each value comes from"


@dataclass(eq=False)
class BadBlocks(NodeError):
    """A span that the model does not have."""

    start: int
    end: int
    num_blocks: int

    def __str__(self) -> str:
        return f"blocks {self.start}:{self.end} asked, the model has 0:{self.num_blocks}"

    def remedy(self) -> str:
        return f"choose START < END between 0 and {self.num_blocks}, or --blocks auto"


@dataclass(eq=False)
class NothingToServe(NodeError):
    """Not even one block fits."""

    needed_bytes: int
    free_bytes: int

    def __str__(self) -> str:
        return f"one block and its KV need {self.needed_bytes >> 20} MiB, {self.free_bytes >> 20} MiB are free"

    def remedy(self) -> str:
        return "free memory, lower --kv-memory, or take a smaller --dtype"


@dataclass(eq=False)
class BootstrapFailed(NodeError):
    """No way into the swarm."""

    tried: tuple[str, ...]

    def __str__(self) -> str:
        return "no bootstrap node answered: " + "; ".join(self.tried)

    def remedy(self) -> str:
        return "check the address with the friend who gave it; without --bootstrap a new swarm is started"


@dataclass(eq=False)
class NoSuchNode(NodeError):
    """Nothing runs there."""

    name: str
    running: tuple[str, ...]

    def __str__(self) -> str:
        return f"no node {self.name} runs on this machine" if self.name else "no node runs on this machine"

    def remedy(self) -> str:
        if self.running:
            return f"running: {', '.join(self.running)}"
        return "start one: swarm-node start --model DIR_OR_HF_ID"


@dataclass(eq=False)
class NoBankHere(NodeError):
    """Only a bank's host can mint."""

    def __str__(self) -> str:
        return "none of these nodes hosts a bank"

    def remedy(self) -> str:
        return "name the one that does with --node; a node hosts a bank where it starts a new swarm, or with --bank"


@dataclass(eq=False)
class MissingExtra(NodeError):
    """The light install cannot serve."""

    missing: str

    def __str__(self) -> str:
        return f"serving needs {self.missing}, which is not installed"

    def remedy(self) -> str:
        return "pip install 'swarm-inference[node]'"


@dataclass(eq=False)
class ComputeThreadFailed(NodeError):
    """The thread that computes ended by an error of ours; sessions were ended, their clients go elsewhere."""

    reason: str

    def __str__(self) -> str:
        return f"the compute thread failed: {self.reason}"

    def remedy(self) -> str:
        return "start the node again; if it happens again, report it with the traceback above"
