"""Where a node dials because somebody else named the addresses: the next hop of a session.

An address of a next hop is made up by whoever opens the session, so without a rule a node would try any port of its
operator's network for any stranger. The rule: nobody sends us nearer to this machine than it is itself. One from the
internet reaches the internet; one from a private network reaches that too; one on this machine reaches everything.
Names are resolved here, since what counts is the address that is dialed. Called by `openings.py`.
"""

import asyncio
import socket
from collections.abc import Sequence

from swarm_net.addresses import Address, Reach, address_of, parse_address, reach_of
from swarm_net.errors import BadAddress
from swarm_net.messages import MAX_ADDRESSES


async def allowed(addresses: Sequence[str], asker_host: str, timeout_s: float) -> tuple[str, ...]:
    """Return those of the addresses, by number, that one who is seen at `asker_host` may have us dial."""
    asker, found = reach_of(asker_host), []
    try:
        async with asyncio.timeout(timeout_s):
            for text in addresses[:MAX_ADDRESSES]:
                found += await _numbers_of(text, asker)
    except TimeoutError:
        pass  # a name that nobody resolves; what stands before it is tried
    return tuple(str(each) for each in found if reach_of(each.host) >= asker)[:MAX_ADDRESSES]


async def _numbers_of(text: str, asker: Reach) -> list[Address]:
    try:
        address = parse_address(text)
    except BadAddress:
        return []
    if address.kind != "dns" or asker == Reach.MACHINE:
        return [address]
    try:
        answers = await asyncio.get_running_loop().getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    hosts = dict.fromkeys(str(where[0]) for *_, where in answers)
    return [address_of(host, address.port, address.peer) for host in hosts if "%" not in host]
