"""Where a peer can be dialed, and who must answer there: `/ip4|ip6|dns/HOST/tcp/PORT/p2p/PEER_ID`.

Owns the one text form of direct addresses, and how far a host can be reached from; the DHT daemon's own addresses stay
opaque text. Called by the transports, by the endpoint and wherever a person types an address.
"""

import re
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address
from typing import Literal, get_args

from swarm_net.errors import BadAddress, Malformed
from swarm_net.identity import public_key_of
from swarm_net.links import PeerId

AddressKind = Literal["ip4", "ip6", "dns"]


class Reach(IntEnum):
    """From how far a host can be reached; each includes those before it."""

    MACHINE = 0
    NETWORK = 1  # private, link-local, shared by a carrier's customers: whatever is not routed everywhere
    INTERNET = 2


MAX_ADDRESS_CHARS = 256
MAX_PORT = 65_535
_PORT = re.compile(r"[1-9][0-9]{0,4}")
# RFC 1123 host names, lower case, at most 63 characters a label.
_DNS_NAME = re.compile(r"(?=.{1,128}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


@dataclass(frozen=True, slots=True)
class Address:
    """A direct address; `str` gives the form that `parse_address` takes."""

    kind: AddressKind
    host: str
    port: int
    peer: PeerId

    def __str__(self) -> str:
        return f"/{self.kind}/{self.host}/tcp/{self.port}/p2p/{self.peer}"


def parse_address(text: str) -> Address:
    """Return the address that a text spells in its one accepted form. Raises BadAddress."""
    if len(text) > MAX_ADDRESS_CHARS:
        raise BadAddress(text=text[:MAX_ADDRESS_CHARS], reason=f"longer than {MAX_ADDRESS_CHARS} characters")
    parts = text.split("/")
    if len(parts) != 7 or parts[0] or parts[3] != "tcp" or parts[5] != "p2p":
        raise BadAddress(text=text, reason="its form is another one")
    _, kind, host, _, port, _, peer = parts
    if not _PORT.fullmatch(port) or int(port) > MAX_PORT:
        raise BadAddress(text=text, reason=f"the port is not a number from 1 to {MAX_PORT}")
    try:
        public_key_of(peer)
    except Malformed as error:
        raise BadAddress(text=text, reason=f"no peer id at its end: {error.reason}") from error
    return Address(_checked_kind(text, kind, host), host, int(port), PeerId(peer))


def address_of(host: str, port: int, peer: PeerId) -> Address:
    """Return the address of a host given as IP or name, as people write it. Raises BadAddress."""
    for kind in get_args(AddressKind):
        try:
            return parse_address(f"/{kind}/{host}/tcp/{port}/p2p/{peer}")
        except BadAddress as error:
            reason = error.reason
    raise BadAddress(text=f"{host}:{port}", reason=reason)


def reach_of(host: str) -> Reach:
    """Return from how far an IP address can be reached; what is none counts as the farthest."""
    try:
        ip = ip_address(host.partition("%")[0])
    except ValueError:
        return Reach.INTERNET
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_loopback or ip.is_unspecified:  # a connection to 0.0.0.0 ends on this machine
        return Reach.MACHINE
    return Reach.INTERNET if ip.is_global else Reach.NETWORK


def _checked_kind(text: str, kind: str, host: str) -> AddressKind:
    try:
        if kind == "ip4" and str(IPv4Address(host)) == host:
            return "ip4"
        if kind == "ip6" and "%" not in host and str(IPv6Address(host)) == host:
            return "ip6"
    except AddressValueError as error:
        raise BadAddress(text=text, reason=f"no {kind} host: {error}") from error
    # A name must have a letter in its last label, or an IP would pass for a name.
    if kind == "dns" and _DNS_NAME.fullmatch(host) and not host.rpartition(".")[2].isdigit():
        return "dns"
    if kind not in get_args(AddressKind):
        raise BadAddress(text=text, reason=f"unknown kind {kind!r}")
    raise BadAddress(text=text, reason=f"{host!r} is not a {kind} host in its usual spelling")
