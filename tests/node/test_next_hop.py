"""Whom a node dials for whom."""

import pytest

from swarm_net.identity import Identity
from swarm_node.next_hop import allowed

PEER = Identity(bytes(32)).peer_id


def at(*hosts: str) -> tuple[str, ...]:
    return tuple(f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/22/p2p/{PEER}" for host in hosts)


MACHINE = at("127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::", "::ffff:7f00:1")
NETWORK = at("10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "fe80::1", "fd00::1")
INTERNET = at("8.8.8.8", "2606:4700::1111")
ALL = (*MACHINE, *NETWORK, *INTERNET)


@pytest.mark.parametrize(
    ("asker", "dialed"),
    [
        ("8.8.4.4", INTERNET),
        ("2606:4700::1", INTERNET),
        ("::ffff:8.8.4.4", INTERNET),
        ("", INTERNET),
        ("192.168.1.7", NETWORK + INTERNET),
        ("fe80::7%eth0", NETWORK + INTERNET),
        ("127.0.0.1", ALL),
    ],
)
async def test_nobody_sends_a_node_nearer_to_itself_than_he_is(asker: str, dialed: tuple[str, ...]) -> None:
    found = [address for each in ALL for address in await allowed([each], asker, 5.0)]
    assert found == list(dialed)


async def test_a_name_counts_by_where_it_leads() -> None:
    names = (f"/dns/localhost/tcp/22/p2p/{PEER}",)
    assert await allowed(names, "8.8.4.4", 5.0) == ()
    assert await allowed(names, "192.168.1.7", 5.0) == ()
    assert await allowed(names, "127.0.0.1", 5.0) == names


async def test_what_is_no_address_and_what_is_too_much_is_left_out() -> None:
    assert await allowed(["nonsense", *at("8.8.8.8")], "8.8.4.4", 5.0) == at("8.8.8.8")
    many = at(*(f"8.8.8.{number}" for number in range(100)))
    assert len(await allowed(many, "8.8.4.4", 5.0)) < 100
