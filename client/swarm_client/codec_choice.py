"""Which codec a session's activations travel in; pure.

    raw    as the nodes compute them: nothing is lost (the default)
    int8   half of bfloat16's bytes, with a small error (docs/performance.md); every node of the route must offer it
    auto   int8 where every node of the chosen route offers it and the messages are large enough for it to pay

What pays: nobody measures the links between nodes yet, so the size of messages decides. A decode message larger than
TCP's first flight takes another round trip after a pause; a prompt's megabytes take long on any home uplink. Hops on
one machine gain nothing. Called by `token_stream.py` for each route.
"""

from itertools import pairwise
from typing import Literal

from swarm_net.addresses import parse_address
from swarm_net.errors import BadAddress
from swarm_net.routing import Hop, Route

Codec = Literal["raw", "int8"]
CodecChoice = Literal["raw", "int8", "auto"]

FIRST_FLIGHT_BYTES = 14_600  # 10 segments of 1,460 bytes (RFC 6928)
LARGE_PROMPT_BYTES = 1 << 20  # 0.8 s on an uplink of 10 Mbit/s

_FLOAT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def choose_codec(asked: CodecChoice, route: Route, *, hidden_size: int, prompt_tokens: int) -> Codec:
    """Return the codec for a session of so many prompt tokens on this route."""
    if asked != "auto":
        return asked
    if not all("int8" in hop.record.codecs for hop in route.hops):
        return "raw"
    pays = any(
        _are_apart(sender, receiver) and _is_large(sender, hidden_size, prompt_tokens)
        for sender, receiver in pairwise(route.hops)
    )
    return "int8" if pays else "raw"


def _is_large(sender: Hop, hidden_size: int, prompt_tokens: int) -> bool:
    token_bytes = hidden_size * _FLOAT_BYTES.get(sender.record.dtype, 0)
    return token_bytes > FIRST_FLIGHT_BYTES or token_bytes * prompt_tokens >= LARGE_PROMPT_BYTES


def _are_apart(sender: Hop, receiver: Hop) -> bool:
    """Whether two hops have no host in common, as far as their addresses tell."""
    return not _hosts(sender) & _hosts(receiver)


def _hosts(hop: Hop) -> set[str]:
    hosts = set()
    for text in hop.record.addresses:
        try:
            hosts.add(parse_address(text).host)
        except BadAddress:  # of a later version's kind
            continue
    return hosts
