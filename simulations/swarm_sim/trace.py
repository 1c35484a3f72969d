"""What happened, as one hash: two runs with equal hashes did the same things at the same virtual times.

Owns the hash and, if asked, the log behind it, whose first differing line shows where two runs part. Entries are names,
numbers given in order of creation, and virtual times: nothing that differs between processes (addresses in memory,
Python's hashes, names that count over the whole process). Fed by `VirtualLoop` with every callback that runs, and by
the simulated network and the scenario with what they decide.
"""

import hashlib
import struct
from typing import TextIO

from swarm_sim.ordered_tasks import OrderedTask

_pack = struct.Struct("<dQ").pack


class Trace:
    """A running hash over everything noted."""

    def __init__(self, log: TextIO | None = None) -> None:
        self.events = 0
        self._log = log
        self._hash = hashlib.blake2b(digest_size=16)
        self._names: dict[str, bytes] = {}

    def callback(self, now_s: float, callback: object) -> None:
        """Note a callback of the loop that is about to run."""
        owner = getattr(callback, "__self__", None)
        if isinstance(owner, OrderedTask):
            name, number = "task", owner.number
        else:
            name, number = getattr(callback, "__qualname__", None) or type(callback).__qualname__, 0
        self._add(now_s, name, number)

    def note(self, now_s: float, name: str, number: int = 0) -> None:
        """Note an event with a number that belongs to it: a size, a place in a list."""
        self._add(now_s, name, number)

    def hexdigest(self) -> str:
        """Return the hash of all that was noted so far."""
        return self._hash.hexdigest()

    def _add(self, now_s: float, name: str, number: int) -> None:
        self.events += 1
        encoded = self._names.get(name)
        if encoded is None:
            encoded = self._names[name] = name.encode() + b"\0"
        self._hash.update(encoded + _pack(now_s, number))
        if self._log is not None:
            print(f"{now_s:.9f} {name} {number}", file=self._log)
