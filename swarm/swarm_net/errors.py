"""Everything that can go wrong between peers, and what the person who meets it should do.

    NetError
    ├── BadAddress          text that is not an address
    ├── BadIdentity         an identity file that cannot be used
    ├── PortInUse           the listener's port is taken
    ├── PeerUnreachable     no address of a peer answered in time
    ├── WrongPeer           somebody else answered there
    ├── HandshakeFailed     a peer that does not speak our protocol, or not our version, or is not of our swarm
    ├── LinkLost            a link ended, fell silent or could not take more
    ├── RequestTimeout      a peer did not answer a request in time
    ├── Malformed           bytes from a peer, or a file, that are not what they should be
    ├── NotUnderstood       a message with fields that must be understood and are not
    ├── BadRecord           a record that is forged, expired, foreign or too large
    ├── NoSuchModel         no node serves a model of this name or revision
    ├── AmbiguousModel      several revisions are served under this name
    ├── NoRoute             blocks that nobody serves, or whose weights are in dispute
    ├── DirectoryDown       the DHT cannot be reached
    └── BadManifest         a model's files that are not those of its revision

What fails inside a session and crosses the wire stands in `session_errors.py`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass


class NetError(Exception, ABC):
    """A failure between peers that its reader can understand and act on."""

    @abstractmethod
    def remedy(self) -> str:
        """Say in one sentence what the reader can do about it."""


@dataclass(eq=False)
class BadAddress(NetError):
    """Text that is not an address of the form /ip4/HOST/tcp/PORT/p2p/PEER_ID."""

    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.text!r} is not an address: {self.reason}"

    def remedy(self) -> str:
        return "write /ip4|ip6|dns/HOST/tcp/PORT/p2p/PEER_ID, as `swarm-node start` prints it"


@dataclass(eq=False)
class BadIdentity(NetError):
    """An identity file that cannot be read, or that others can read."""

    file: str
    reason: str

    def __str__(self) -> str:
        return f"identity {self.file}: {self.reason}"

    def remedy(self) -> str:
        return f"fix {self.file} (mode 0600, a 32-byte Ed25519 seed in PEM), or move it away to get a new identity"


@dataclass(eq=False)
class PortInUse(NetError):
    """The address to listen on is taken."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port} is in use by another program"

    def remedy(self) -> str:
        return f"stop that program, or listen elsewhere: --listen {self.host}:0 takes a free port"


@dataclass(eq=False)
class PeerUnreachable(NetError):
    """No address of the peer answered in time."""

    peer: str
    addresses: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        places = ", ".join(address.partition("/p2p/")[0] for address in self.addresses)
        return f"no way to {self.peer[-8:] or 'a peer'} at {places or 'any address'}: {self.reason}"

    def remedy(self) -> str:
        return "check that the node runs and that its address and port are right and open in the firewall"


@dataclass(eq=False)
class WrongPeer(NetError):
    """Another identity than the one asked for answered."""

    address: str
    wanted: str
    got: str

    def __str__(self) -> str:
        return f"{self.address} answers as {self.got or 'an unknown key'}, not as {self.wanted}"

    def remedy(self) -> str:
        return "the node has a new identity or somebody stands in its place: ask its operator for the address again"


@dataclass(eq=False)
class HandshakeFailed(NetError):
    """The other end does not speak our protocol, or refuses us."""

    address: str
    reason: str

    def __str__(self) -> str:
        return f"handshake with {self.address} failed: {self.reason}"

    def remedy(self) -> str:
        return "check that the address is a swarm node's, and that both ends run compatible versions"


@dataclass(eq=False)
class LinkLost(NetError):
    """A link ended; what was on its way may not have arrived."""

    peer: str
    reason: str

    def __str__(self) -> str:
        return f"link to {self.peer} lost: {self.reason}"

    def remedy(self) -> str:
        return "try again: another route is taken if the peer stays away"


@dataclass(eq=False)
class RequestTimeout(NetError):
    """A peer did not answer in time."""

    peer: str
    request: str
    timeout_s: float

    def __str__(self) -> str:
        return f"{self.peer} did not answer {self.request} within {self.timeout_s:g} s"

    def remedy(self) -> str:
        return "try again, or ask another node"


@dataclass(eq=False)
class Malformed(NetError):
    """Bytes that are not what they should be."""

    what: str
    reason: str

    def __str__(self) -> str:
        return f"malformed {self.what}: {self.reason}"

    def remedy(self) -> str:
        return "the sender is broken, hostile or of another version: use another peer"


@dataclass(eq=False)
class NotUnderstood(NetError):
    """A message demands what this version does not know."""

    message: str
    fields: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.message} demands {', '.join(self.fields)}, unknown to this version"

    def remedy(self) -> str:
        return "update this program: the peer speaks a newer protocol"


@dataclass(eq=False)
class BadRecord(NetError):
    """A record that must not be believed."""

    peer: str
    reason: str

    def __str__(self) -> str:
        return f"record of {self.peer or 'an unknown peer'} refused: {self.reason}"

    def remedy(self) -> str:
        return "nothing to do here: its publisher must sign a fresh record with a right clock"


@dataclass(eq=False)
class NoSuchModel(NetError):
    """Nobody serves it."""

    model: str
    known: tuple[str, ...]

    def __str__(self) -> str:
        served = ", ".join(self.known) or "no model at all"
        return f"no node serves {self.model}; this swarm serves {served}"

    def remedy(self) -> str:
        return "choose one of those, or serve it: swarm-node start --model ... --bootstrap ..."


@dataclass(eq=False)
class AmbiguousModel(NetError):
    """One name, several revisions."""

    model: str
    revisions: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.model} is served in {len(self.revisions)} revisions: {', '.join(self.revisions)}"

    def remedy(self) -> str:
        return f"name the one you mean: {self.model}@{self.revisions[0][:12] if self.revisions else 'REVISION'}"


@dataclass(eq=False)
class NoRoute(NetError):
    """Some blocks have no server, or servers that cannot stand in one route."""

    model: str
    missing: tuple[tuple[int, int], ...]
    disputed: tuple[tuple[int, int], ...] = ()  # nodes publish different weights of them

    def __str__(self) -> str:
        if self.missing:
            return f"nobody serves blocks {_spans(self.missing)} of {self.model}"
        if self.disputed:
            return f"no route: nodes have different weights of blocks {_spans(self.disputed)} of {self.model}"
        return f"no route through the nodes that serve {self.model}"

    def remedy(self) -> str:
        if not self.missing and self.disputed:
            return "their operators should compare their files: one of them is damaged, or was changed"
        start, end = self.missing[0] if self.missing else (0, 0)
        return f"wait for a node to take them, or serve them: swarm-node start --blocks {start}:{end} ..."


def _spans(spans: tuple[tuple[int, int], ...]) -> str:
    return ", ".join(f"{start}:{end}" for start, end in spans)


@dataclass(eq=False)
class DirectoryDown(NetError):
    """The DHT cannot be started or reached."""

    reason: str

    def __str__(self) -> str:
        return f"the DHT is down: {self.reason}"

    def remedy(self) -> str:
        return "it is being restarted; if this stays, check the network and the bootstrap addresses"


@dataclass(eq=False)
class BadManifest(NetError):
    """Files that do not belong to the revision they are said to be of."""

    model: str
    reason: str

    def __str__(self) -> str:
        return f"{self.model}: {self.reason}"

    def remedy(self) -> str:
        return "ask another node, or take the model's files from where they are published"
