"""Keys, their files, and peer ids."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from swarm_net.errors import BadIdentity, Malformed
from swarm_net.identity import Identity, peer_id_of, public_key_of, verify

FIELD = 2**255 - 19


def test_the_peer_id_is_libp2ps() -> None:
    """The Ed25519 key and peer id of the libp2p specification's test vectors (peer-ids.md)."""
    seed = bytes.fromhex("7e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d")
    public = bytes.fromhex("1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e")
    identity = Identity(seed)
    assert identity.public_key == public
    assert identity.seed == seed
    assert identity.peer_id.startswith("12D3KooW")
    assert public_key_of(identity.peer_id) == public


@given(st.binary(min_size=32, max_size=32))
def test_peer_ids_and_keys_are_one_to_one(key: bytes) -> None:
    assert public_key_of(peer_id_of(key)) == key


@given(
    st.one_of(st.text(max_size=80), st.text("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz", max_size=60))
)
def test_other_text_is_no_peer_id(text: str) -> None:
    with pytest.raises(Malformed):
        public_key_of(text)


def test_one_spelling_a_peer_id() -> None:
    peer = Identity.generate(random.Random(1).randbytes).peer_id
    for other in ("1" + peer, peer[1:], peer + " ", " " + peer, peer + "\n", peer.lower()):
        with pytest.raises(Malformed):
            public_key_of(other)


def test_signatures() -> None:
    one, two = (Identity.generate(random.Random(number).randbytes) for number in (1, 2))
    signature = one.sign(b"text")
    assert verify(one.public_key, signature, b"text")
    assert not verify(one.public_key, signature, b"other")
    assert not verify(two.public_key, signature, b"text")
    assert not verify(one.public_key, signature[:-1], b"text")
    assert not verify(one.public_key[:-1], signature, b"text")


def _is_small_order(key: bytes) -> bool:
    """Tell whether 8 times the point of this y coordinate is the neutral one (RFC 8032, section 5.1)."""
    d = -121665 * pow(121666, -1, FIELD) % FIELD
    y = (int.from_bytes(key, "little") & (1 << 255) - 1) % FIELD
    for _ in range(3):  # doubling in terms of y alone; x^2 follows from the curve equation
        x2 = (y * y - 1) * pow(d * y * y + 1, -1, FIELD) % FIELD
        y = (y * y + x2) * pow(1 - d * x2 * y * y, -1, FIELD) % FIELD
    return y == 1


@pytest.mark.parametrize(
    "key",
    [
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 31,
    ],
)
def test_nobody_signs_for_a_key_that_is_everybodys(key: str) -> None:
    weak = bytes.fromhex(key)
    assert _is_small_order(weak)
    forged = (bytes((1,)) + bytes(63), bytes(64))
    assert not any(verify(weak, signature, bytes([text])) for signature in forged for text in range(32))


def test_the_first_start_makes_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "identity.pem"
    made = Identity.load_or_create(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert Identity.load_or_create(file).peer_id == made.peer_id
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_of_two_first_starts_at_once_one_wins_for_both(tmp_path: Path) -> None:
    file = tmp_path / "identity.pem"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: Identity.load_or_create(file).peer_id, range(8)))
    assert len(set(made)) == 1


def _other_kind(file: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _with_password(file: Path) -> None:
    key = Identity.generate().key
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda file: file.write_bytes(b""), "not an unencrypted private key"),
        (lambda file: file.write_bytes(bytes(5000)), "too large"),
        (
            lambda file: file.write_text("-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----"),
            "not an unenc",
        ),
        (_other_kind, "another kind"),
        (_with_password, "not an unencrypted"),
        (lambda file: file.chmod(0o644), "others can read it"),
        (lambda file: (file.unlink(), file.mkdir(mode=0o700)), "directory"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, spoil: Callable[[Path], object], reason: str) -> None:
    file = tmp_path / "identity.pem"
    Identity.load_or_create(file)
    spoil(file)
    with pytest.raises(BadIdentity, match=reason) as error:
        Identity.load_or_create(file)
    assert str(file) in str(error.value)


def test_an_identity_does_not_print_its_key() -> None:
    identity = Identity.generate(random.Random(1).randbytes)
    assert repr(identity) == f"Identity({identity.peer_id})"
