"""How a node gets in touch: the port that it listens on, the address that it tells others, the swarm that it joins.

Called by `program.py` while a node starts.
"""

import asyncio
import contextlib
import ipaddress
from collections.abc import Sequence

from swarm_net.addresses import address_of
from swarm_net.endpoint import Endpoint
from swarm_net.errors import NetError, PortInUse
from swarm_net.links import Link, Listener, PeerId
from swarm_node.errors import BadSetting, BootstrapFailed

FIRST_PORT, LAST_PORT = 31330, 31429  # of the default listener
BOOTSTRAP_TIMEOUT_S = 5.0
ALL_INTERFACES = "0.0.0.0"  # noqa: S104 (a node is there to be reached)


def split_host_port(text: str) -> tuple[str, int]:
    """Split HOST:PORT, an IPv6 host in brackets, as settings have checked it."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


async def listen(endpoint: Endpoint, setting: str) -> Listener:
    """Listen where the setting says, or on the next free default port; raises PortInUse, BadSetting."""
    if setting:
        host, port = split_host_port(setting)
        if port > 65535:
            raise BadSetting("listen", setting, "--listen", "a port is at most 65535")
        return await endpoint.listen(host, port)
    for port in range(FIRST_PORT, LAST_PORT):
        with contextlib.suppress(PortInUse):
            return await endpoint.listen(ALL_INTERFACES, port)
    return await endpoint.listen(ALL_INTERFACES, LAST_PORT)


def announced(listener: Listener, peer: PeerId, setting: str) -> tuple[str, ...]:
    """The addresses to tell others: the one set, else where we listen."""
    if setting:
        return (str(address_of(*split_host_port(setting), peer)),)
    return listener.addresses


def libp2p_listen(setting: str) -> tuple[str, ...]:
    """Where the DHT daemon listens unless told: on the host of the direct listener, any port."""
    host = split_host_port(setting)[0] if setting else ALL_INTERFACES
    try:
        kind = ipaddress.ip_address(host).version
    except ValueError:
        return (f"/dns/{host}/tcp/0",)
    return (f"/ip{kind}/{host}/tcp/0",)


async def reach(endpoint: Endpoint, bootstrap: Sequence[str]) -> list[Link]:
    """Return links to the bootstrap nodes that answer; raises BootstrapFailed if none does."""

    async def dial(address: str) -> Link | NetError:
        try:
            return await endpoint.dial(address, BOOTSTRAP_TIMEOUT_S)
        except NetError as error:
            return error

    answers = await asyncio.gather(*(dial(address) for address in bootstrap))
    links = [answer for answer in answers if not isinstance(answer, NetError)]
    if bootstrap and not links:
        raise BootstrapFailed(tuple(str(answer) for answer in answers))
    return links
