"""What a container or service may still take of the machine's memory: Linux control groups, both versions.

The system ends a process that goes beyond its group's limit without a word, and says nothing of that limit where it
says what the machine has free. Called by devices.py.

Formats: kernel documentation, admin-guide/cgroup-v2 ("Memory Interface Files") and admin-guide/cgroup-v1/memory.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

OWN_GROUPS: Final = Path("/proc/self/cgroup")
MOUNT: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class _Files:
    """How a version of control groups calls its files."""

    limit: str
    used: str
    reclaimable: str  # in memory.stat: file pages that would be given up


VERSION_2: Final = _Files("memory.max", "memory.current", "inactive_file")
VERSION_1: Final = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_in_group_bytes(own_groups: Path = OWN_GROUPS, mount: Path = MOUNT) -> int | None:
    """Return what this process may still take before its group, or one that holds it, is full; None: no limit known."""
    try:
        lines = own_groups.read_text().splitlines()
    except OSError:
        return None
    found: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, files = (mount / "memory", VERSION_1) if controllers else (mount, VERSION_2)
        group = root / path.lstrip("/")
        # In a container the path may be the host's, which is not to be seen: what is mounted is then the group itself.
        for folder in (group, *group.parents):
            if (free := _free_bytes(folder, files)) is not None:
                found.append(free)
            if folder == root:
                break
    return min(found, default=None)


def _free_bytes(folder: Path, files: _Files) -> int | None:
    try:
        limit = int((folder / files.limit).read_text())
        used = int((folder / files.used).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(stat.get(files.reclaimable, 0)))
    except (OSError, ValueError):  # no such file, or "max"
        return None
