"""The greeting as bytes, without sockets: who is believed, and what the two ends agree on."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_net.errors import HandshakeFailed, Malformed, NetError, WrongPeer
from swarm_net.frames import GREETING, UNAUTHENTICATED, FrameLimits, FrameReceiver, encode_frame
from swarm_net.handshake import DialerHandshake, Greeted, ListenerHandshake, Terms, Turn
from swarm_net.identity import Identity
from swarm_net.messages import Hello, Models, Welcome, encode

SECOND_NS = 1_000_000_000
chance = random.Random(3)
ALICE, BOB, MALLORY = (Identity.generate(chance.randbytes) for _ in range(3))


def dialer(identity: Identity = ALICE, wanted: Identity = BOB, terms: Terms | None = None) -> DialerHandshake:
    nonce = chance.randbytes(32)
    return DialerHandshake(identity, wanted.peer_id, "/the/address", "bulk", terms or Terms(), nonce)


def listener(identity: Identity = BOB, terms: Terms | None = None) -> ListenerHandshake:
    return ListenerHandshake(identity, "10.0.0.1:99", terms or Terms(), chance.randbytes(32))


def headers(data: bytes) -> list[bytes]:
    receiver = FrameReceiver(GREETING)
    found = []
    for start in range(0, len(data), 1000):
        piece = data[start : start + 1000]
        receiver.buffer()[: len(piece)] = piece
        receiver.received(len(piece))
        while (frame := receiver.next_frame()) is not None:
            found.append(bytes(frame.header))
    return found


def greet(
    near: DialerHandshake, far: ListenerHandshake, listener_key: bytes, way_s: float = 0.02, far_ahead_s: float = 0.0
) -> tuple[Greeted, Greeted]:
    """Run a whole greeting; the way takes `way_s`, and the listener's wall clock is ahead."""
    (challenge,) = headers(far.start(None))
    near.start(listener_key)
    proof, hello = headers(near.receive(challenge, 10.0, 50 * SECOND_NS).send)
    assert len(proof) <= UNAUTHENTICATED.max_header
    far.receive(proof, 0.0, 0)
    answer = far.receive(hello, 0.0, int((50 + way_s + far_ahead_s) * SECOND_NS))
    (welcome,) = headers(answer.send)
    if answer.refused is not None:
        near.receive(welcome, 10 + 2 * way_s, int((50 + 2 * way_s) * SECOND_NS))
        raise answer.refused
    end = near.receive(welcome, 10 + 2 * way_s, int((50 + 2 * way_s) * SECOND_NS))
    assert end.greeted is not None
    assert answer.greeted is not None
    return end.greeted, answer.greeted


def test_both_ends_learn_who_the_other_is_and_what_it_takes() -> None:
    small, large = FrameLimits(1000, 2000), FrameLimits(3000, 4000)
    near, far = greet(
        dialer(terms=Terms(limits=small, listens=("/a", "/b"))),
        listener(terms=Terms(limits=large, libp2p=("/x",))),
        BOB.public_key,
        far_ahead_s=7.0,
    )
    assert (near.peer, near.lane, near.limits, near.libp2p) == (BOB.peer_id, "bulk", large, ("/x",))
    assert (far.peer, far.lane, far.limits, far.listens) == (ALICE.peer_id, "bulk", small, ("/a", "/b"))
    assert near.rtt_s == pytest.approx(0.04)
    assert near.clock_offset_ns == pytest.approx(7 * SECOND_NS, abs=1000)


@pytest.mark.parametrize("key", [MALLORY.public_key, None])
def test_another_key_than_the_one_wanted_is_refused(key: bytes | None) -> None:
    with pytest.raises(WrongPeer):
        dialer().start(key)


def test_a_proof_made_for_another_listener_is_refused() -> None:
    """Mallory, whom Alice dials, passes Bob's challenge on to her and her proof on to Bob."""
    at_bob = listener(BOB)
    (challenge,) = headers(at_bob.start(None))
    proof, _ = headers(dialer(ALICE, wanted=MALLORY).receive(challenge, 0.0, 0).send)
    with pytest.raises(HandshakeFailed, match="not over this connection"):
        at_bob.receive(proof, 0.0, 0)


def test_a_proof_counts_once() -> None:
    first, second = listener(), listener()
    proof, _ = headers(dialer().receive(headers(first.start(None))[0], 0.0, 0).send)
    first.receive(proof, 0.0, 0)
    with pytest.raises(HandshakeFailed):
        second.receive(proof, 0.0, 0)


@given(st.integers(0, 127), st.integers(1, 255))
def test_a_changed_proof_is_refused(place: int, change: int) -> None:
    far = listener()
    proof = bytearray(headers(dialer().receive(headers(far.start(None))[0], 0.0, 0).send)[0])
    proof[place] ^= change
    with pytest.raises(HandshakeFailed):
        far.receive(proof, 0.0, 0)


@pytest.mark.parametrize(("ours", "theirs"), [("a", "b"), ("a", ""), ("", "b")])
def test_peers_of_another_swarm_are_refused_at_both_ends(ours: str, theirs: str) -> None:
    with pytest.raises(HandshakeFailed, match="not of the swarm"):
        greet(dialer(terms=Terms(swarm=ours)), listener(terms=Terms(swarm=theirs)), BOB.public_key)


def test_another_version_is_refused() -> None:
    far = listener()
    proof, _ = headers(dialer().receive(headers(far.start(None))[0], 0.0, 0).send)
    far.receive(proof, 0.0, 0)
    turn = far.receive(encode(Hello(min_version=7, max_version=9, max_header=1, max_body=1, wall_ns=0)), 0.0, 0)
    assert isinstance(turn.refused, HandshakeFailed)
    assert "7 to 9" in turn.refused.reason


@pytest.mark.parametrize(
    "header", [encode(Models(request=1)), encode(Welcome(max_header=1, max_body=1, wall_ns=0)), b"", b"\xc1"]
)
def test_anything_but_a_hello_ends_the_greeting(header: bytes) -> None:
    far = listener()
    proof, _ = headers(dialer().receive(headers(far.start(None))[0], 0.0, 0).send)
    far.receive(proof, 0.0, 0)
    with pytest.raises((HandshakeFailed, Malformed)):
        far.receive(header, 0.0, 0)


@pytest.mark.parametrize("header", [encode(Models(request=1)), b"", b"\xc1"])
def test_anything_but_a_welcome_ends_the_greeting(header: bytes) -> None:
    near = dialer()
    near.receive(bytes(32), 0.0, 0)
    with pytest.raises((HandshakeFailed, Malformed)):
        near.receive(header, 0.0, 0)


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_random_headers_raise_nothing_but_our_errors(pieces: list[bytes]) -> None:
    near, far = dialer(), listener()
    far.start(None)
    ends: tuple[DialerHandshake | ListenerHandshake, ...] = (near, far)
    for end in ends:
        try:
            for piece in pieces:
                turn = end.receive(piece, 0.0, 0)
                assert isinstance(turn, Turn)
                assert turn.greeted is None
        except NetError:
            pass


def test_frames_before_authentication_stay_within_256_bytes() -> None:
    far = listener()
    (challenge,) = headers(far.start(None))
    proof, _ = headers(dialer().receive(challenge, 0.0, 0).send)
    assert sum(map(len, encode_frame(proof))) <= 256
    assert far.limits == UNAUTHENTICATED
