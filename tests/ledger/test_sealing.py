"""What is sealed for a hop is for that hop, from that client, as it was said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_ledger.errors import BadSection
from swarm_ledger.sealing import Seal, SealKey, begin_seal
from tests.ledger.parties import counting

HOP, OTHER = SealKey(bytes([1]) * 32), SealKey(bytes([2]) * 32)
CONTEXT = b"session"


def sealed_pair(context: bytes = CONTEXT) -> tuple[Seal, Seal]:
    ephemeral, client = begin_seal(HOP.public, CONTEXT, counting())
    return client, HOP.accept(ephemeral, context)


@given(there=st.lists(st.binary(max_size=100), max_size=5), back=st.lists(st.binary(max_size=100), max_size=5))
def test_both_ways_in_any_order_and_twice(there: list[bytes], back: list[bytes]) -> None:
    client, hop = sealed_pair()
    outgoing, incoming = [client.seal(plain) for plain in there], [hop.seal(plain) for plain in back]
    assert [hop.open(sealed) for sealed in reversed(outgoing + outgoing)] == [*reversed(there), *reversed(there)]
    assert [client.open(sealed) for sealed in incoming] == back
    assert len({sealed[:4] for sealed in outgoing}) == len(there)


@given(plain=st.binary(max_size=50), place=st.integers(0, 1000), change=st.integers(1, 255))
def test_an_altered_byte_is_noticed(plain: bytes, place: int, change: int) -> None:
    client, hop = sealed_pair()
    sealed = bytearray(client.seal(plain))
    sealed[place % len(sealed)] ^= change
    with pytest.raises(BadSection):
        hop.open(bytes(sealed))


@given(st.binary(max_size=40))
def test_noise_is_not_opened(noise: bytes) -> None:
    _, hop = sealed_pair()
    with pytest.raises(BadSection):
        hop.open(noise)


def test_other_hops_sessions_and_directions_open_nothing() -> None:
    ephemeral, client = begin_seal(HOP.public, CONTEXT, counting())
    sealed = client.seal(b"voucher")
    for other in (OTHER.accept(ephemeral, CONTEXT), HOP.accept(ephemeral, b"another session"), client):
        with pytest.raises(BadSection):
            other.open(sealed)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(32), b"\1" + bytes(31), bytes(33)])
def test_keys_that_are_none(key: bytes) -> None:
    with pytest.raises(BadSection):
        HOP.accept(key, CONTEXT)
    with pytest.raises(BadSection):
        begin_seal(key, CONTEXT, counting())
