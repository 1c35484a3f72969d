"""One text form of an address, and nothing else."""

import random
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from swarm_net.addresses import Address, AddressKind, address_of, parse_address
from swarm_net.errors import BadAddress
from swarm_net.identity import Identity, peer_id_of

PEER = Identity.generate(random.Random(1).randbytes).peer_id

peers = st.binary(min_size=32, max_size=32).map(peer_id_of)
labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=4).map(".".join).filter(lambda name: not name.split(".")[-1].isdigit())
hosts = st.one_of(
    st.tuples(st.just("ip4"), st.ip_addresses(v=4).map(str)),
    st.tuples(st.just("ip6"), st.ip_addresses(v=6).map(str)),
    st.tuples(st.just("dns"), names),
)


@given(hosts, st.integers(1, 65_535), peers)
def test_what_is_formatted_parses_back(kind_and_host: tuple[AddressKind, str], port: int, peer: str) -> None:
    kind, host = kind_and_host
    address = Address(kind, host, port, peer)  # type: ignore[arg-type]
    assert parse_address(str(address)) == address
    assert address_of(host, port, address.peer) == address


@given(st.text(max_size=300))
@example(f"/ip4/127.0.0.1/tcp/80/p2p/{PEER}/")
@example(f"/ip4/127.0.0.1/tcp/80/p2p/{PEER}\n")
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(BadAddress):
        parse_address(text)


@pytest.mark.parametrize(
    ("kind", "host"),
    [
        ("ip4", "127.0.0.01"),
        ("ip4", "1.2.3"),
        ("ip4", "256.1.1.1"),
        ("ip4", "::1"),
        ("ip4", "localhost"),
        ("ip4", " 127.0.0.1"),
        ("ip6", "127.0.0.1"),
        ("ip6", "::0001"),
        ("ip6", "fe80::1%eth0"),
        ("ip6", "ABCD::1"),
        ("dns", "127.0.0.1"),
        ("dns", ""),
        ("dns", "-a.example"),
        ("dns", "a..example"),
        ("dns", "Example.org"),
        ("dns", "a" * 64),
        ("dns", "exa mple.org"),
        ("dns", "example.org."),
        ("dns4", "example.org"),
        ("", ""),
    ],
)
def test_other_hosts_are_refused(kind: str, host: str) -> None:
    with pytest.raises(BadAddress):
        parse_address(f"/{kind}/{host}/tcp/4001/p2p/{PEER}")


@pytest.mark.parametrize("port", ["0", "65536", "-1", "+1", "080", "1e3", "", "99999", " 1", "１"])  # noqa: RUF001
def test_other_ports_are_refused(port: str) -> None:
    with pytest.raises(BadAddress, match="port"):
        parse_address(f"/ip4/127.0.0.1/tcp/{port}/p2p/{PEER}")


@pytest.mark.parametrize("peer", ["", "Qm", PEER[:-1], PEER + "1", PEER.replace("12D3", "12d3")])
def test_other_peers_are_refused(peer: str) -> None:
    with pytest.raises(BadAddress, match="peer id"):
        parse_address(f"/ip4/127.0.0.1/tcp/1/p2p/{peer}")


def test_a_host_as_people_write_it() -> None:
    assert str(address_of("127.0.0.1", 1, PEER)) == f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}"
    assert str(address_of("::1", 1, PEER)) == f"/ip6/::1/tcp/1/p2p/{PEER}"
    assert str(address_of("example.org", 1, PEER)) == f"/dns/example.org/tcp/1/p2p/{PEER}"
    with pytest.raises(BadAddress):
        address_of("exa/mple", 1, PEER)


@given(st.ip_addresses())
def test_an_ip_never_passes_for_a_name(ip: IPv4Address | IPv6Address) -> None:
    with pytest.raises(BadAddress):
        parse_address(f"/dns/{ip}/tcp/1/p2p/{PEER}")
