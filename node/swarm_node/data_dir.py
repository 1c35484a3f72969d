"""Where a node keeps its identity and state: one directory, locked while the node runs.

Owns the choice of directory, the lock, and the small file that tells `swarm-node status` and `stop` which process runs
there and where it listens. Without an explicit directory the next free one is taken: `node`, `node-2`, `node-3`, ...
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from swarm_node.errors import BadSetting, DataDirInUse
from swarm_node.settings import APP

LOCK, STATE, IDENTITY = "lock", "running.json", "identity.pem"
LIBP2P_KEY = "libp2p.key"  # that the DHT daemon is given
MAX_DEFAULTS = 64
PATIENCE_S = 0.1  # with a lock that is taken: `is_locked` takes it for a moment to look


def default_base() -> Path:
    """The folder of the default data directories."""
    return Path(platformdirs.user_data_dir(APP)) / "nodes"


@dataclass(slots=True)
class DataDir:
    """A locked data directory; `close` unlocks it, and removes one that was made for a node that never served."""

    path: Path
    _lock: FileLock
    _made: bool = False  # by this node
    _served: bool = False

    @classmethod
    def claim(cls, explicit: str, base: Path) -> DataDir:
        """Lock the given directory, or the next free default; raises DataDirInUse or BadSetting."""
        if explicit:
            claimed = cls._try(Path(explicit).expanduser())
            if claimed is None:
                raise DataDirInUse(explicit)
            return claimed
        for number in range(1, MAX_DEFAULTS + 1):
            if (claimed := cls._try(base / ("node" if number == 1 else f"node-{number}"))) is not None:
                return claimed
        raise DataDirInUse(str(base / "node"))

    @classmethod
    def _try(cls, path: Path) -> DataDir | None:
        made = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = FileLock(path / LOCK)
            lock.acquire(timeout=PATIENCE_S, poll_interval=PATIENCE_S / 10)
        except Timeout:
            return None
        except OSError as error:
            raise BadSetting("data_dir", str(path), "--data-dir", str(error)) from error
        return cls(path, lock, made)

    @property
    def name(self) -> str:
        return self.path.name

    def identity_file(self, setting: str) -> Path:
        """The node's key: the one set, else its own."""
        return (Path(setting).expanduser() if setting else self.path / IDENTITY).resolve()

    def write_state(self, state: dict[str, Any]) -> None:
        """Tell others on this machine what runs here; whole or not at all."""
        temporary = self.path / (STATE + ".new")
        temporary.write_text(json.dumps({**state, "pid": os.getpid()}))
        temporary.replace(self.path / STATE)
        self._served = True

    def close(self) -> None:
        """Forget the state and unlock. A new directory whose node failed to start goes, with its unknown key."""
        (self.path / STATE).unlink(missing_ok=True)
        abandoned = self._made and not self._served
        if abandoned:
            for name in (IDENTITY, LIBP2P_KEY, LOCK):
                (self.path / name).unlink(missing_ok=True)
        self._lock.release()
        if abandoned:
            with contextlib.suppress(OSError):  # something else lies in it
                self.path.rmdir()


@dataclass(frozen=True, slots=True)
class RunningNode:
    """A node that runs on this machine, as its state file tells."""

    name: str
    path: Path
    state: dict[str, Any]

    @property
    def pid(self) -> int:
        return int(self.state["pid"])

    @property
    def identity_file(self) -> Path:
        return Path(self.state["identity"])


def is_locked(path: Path) -> bool:
    """Whether a node runs on a data directory: the lock is the truth, not the state file."""
    if not (path / LOCK).exists():
        return False
    try:
        with FileLock(path / LOCK).acquire(timeout=0):
            return False
    except (Timeout, OSError):
        return True


def running(base: Path, name: str = "") -> list[RunningNode]:
    """Return the nodes that run on this machine's default directories, or the one of that name or directory."""
    if name and (os.sep in name or not (base / name).exists()):
        paths = [Path(name).expanduser()]
    elif name:
        paths = [base / name]
    else:
        paths = sorted(base.glob("node*"))
    found = []
    for path in paths:
        if is_locked(path):
            try:
                state = json.loads((path / STATE).read_text())
            except (OSError, ValueError):
                state = {}  # it is starting
            if "pid" in state:
                found.append(RunningNode(path.name, path, state))
    return found
