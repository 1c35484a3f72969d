"""When activations travel as int8: always, never, or where the route offers it and messages are large."""

import pytest

from swarm_client.codec_choice import choose_codec
from swarm_net.messages import ModelId
from swarm_net.records import Record
from swarm_net.routing import Hop, Route

MODEL = ModelId(name="m", revision="a" * 64)
PEERS = (
    "12D3KooWJ3ASUdYt1S3MVSqrNkhKPZDCFzYQYwkDMUTAXXTTgTWH",
    "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X",
)


def route(*hosts: str, dtype: str = "bfloat16", codecs: tuple[str, ...] = ("raw", "int8")) -> Route:
    """A route of one block a host."""
    records = [
        Record(
            sequence=1,
            published_ns=1,
            expires_ns=2,
            peer=PEERS[place % 2],
            model=MODEL,
            num_blocks=len(hosts),
            start=place,
            end=place + 1,
            dtype=dtype,
            codecs=codecs if place else ("raw", "int8"),
            max_context=8192,
            addresses=(f"/{host}/tcp/4001/p2p/{PEERS[place % 2]}",),
        )
        for place, host in enumerate(hosts)
    ]
    return Route(MODEL, tuple(Hop(record, record.start, record.end) for record in records), 0.1)


FAR = ("ip4/10.0.0.1", "ip4/10.0.0.2")
NEAR = ("ip4/10.0.0.1", "ip4/10.0.0.1")


@pytest.mark.parametrize(
    ("hosts", "hidden", "prompt", "codec"),
    [
        (FAR, 8192, 1, "int8"),  # 16 KiB a token: more than a first flight
        (FAR, 7168, 1, "raw"),  # 14 KiB
        (FAR, 4096, 100, "raw"),
        (FAR, 4096, 128, "int8"),  # a prompt of 1 MiB
        (NEAR, 8192, 4096, "raw"),
        (FAR[:1], 8192, 4096, "raw"),
        ((*NEAR, "dns/example.org"), 8192, 1, "int8"),
        (("unix/x", "unix/x"), 8192, 1, "int8"),  # addresses of a later version: nothing in common is known
    ],
)
def test_auto_takes_int8_where_it_pays(hosts: tuple[str, ...], hidden: int, prompt: int, codec: str) -> None:
    assert choose_codec("auto", route(*hosts), hidden_size=hidden, prompt_tokens=prompt) == codec


def test_auto_takes_only_what_every_hop_offers() -> None:
    assert choose_codec("auto", route(*FAR, codecs=("raw",)), hidden_size=8192, prompt_tokens=9) == "raw"
    assert choose_codec("auto", route(*FAR, dtype="digest"), hidden_size=8192, prompt_tokens=9) == "raw"


@pytest.mark.parametrize("asked", ["raw", "int8"])
def test_what_is_asked_for_is_taken(asked: str) -> None:
    assert choose_codec(asked, route(*NEAR), hidden_size=8, prompt_tokens=1) == asked  # type: ignore[arg-type]
