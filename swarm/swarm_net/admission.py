"""How many connections strangers may hold: pure counting, before any of them costs a TLS handshake.

Called by `direct.py` for each connection that a listener accepts. IPv6 addresses count by their /64, which is what one
subscriber has.
"""

from collections import Counter
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionCaps:
    """Half-open connections have not proved who they are yet; `total` counts those as well."""

    half_open_per_address: int = 256
    total_per_address: int = 1024
    total: int = 16_384


class Admission:
    """Counts the connections of each remote address."""

    def __init__(self, caps: ConnectionCaps) -> None:
        self._caps = caps
        self._half_open: Counter[str] = Counter()
        self._all: Counter[str] = Counter()

    def admit(self, host: str) -> bool:
        """Count one more half-open connection, unless a cap is reached."""
        group = _group_of(host)
        if (
            self._half_open[group] >= self._caps.half_open_per_address
            or self._all[group] >= self._caps.total_per_address
            or self._all.total() >= self._caps.total
        ):
            return False
        self._half_open[group] += 1
        self._all[group] += 1
        return True

    def settled(self, host: str) -> None:
        """One is half-open no longer: it has proved who it is, or failed."""
        _take_one(self._half_open, _group_of(host))

    def gone(self, host: str) -> None:
        """One has ended."""
        _take_one(self._all, _group_of(host))


def _group_of(host: str) -> str:
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped) if mapped is not None else address.exploded[:19]
    return host


def _take_one(counter: Counter[str], group: str) -> None:
    counter[group] -= 1
    if counter[group] <= 0:
        del counter[group]
