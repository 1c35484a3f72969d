"""How two peers come to know each other on a fresh TLS connection, before anything else is said.

    dialer                                             listener
      TLS 1.3; the certificate's key is the listener's identity, the dialer compares it with the peer id it wants
                        <- challenge: 32 random bytes
      proof: own key, 32 random bytes, signature ->            over (label, listener key, own key, both randoms)
      Hello ->
                        <- Welcome, or the Failure that says why not

Owns these frames and what they agree on. Sans-I/O: each state machine takes the header of a frame and returns what to
send; sockets and deadlines are `direct.py`'s. Until the proof is checked a listener takes frames of 256 bytes at most.
The signature names the listener, so nobody can pass a dialer's proof on to another one.
"""

from dataclasses import dataclass
from typing import NamedTuple

from swarm_net.errors import HandshakeFailed, Malformed, NetError, WrongPeer
from swarm_net.frames import DEFAULT_LIMITS, GREETING, UNAUTHENTICATED, FrameLimits, encode_frame
from swarm_net.identity import KEY_BYTES, SIGNATURE_BYTES, Identity, peer_id_of, public_key_of, verify
from swarm_net.links import Body, PeerId
from swarm_net.messages import VERSION, Failure, Hello, Lane, Message, Welcome, decode, encode

LABEL = b"swarm-inference link 1\0"
NONCE_BYTES = 32
_PROOF_BYTES = KEY_BYTES + NONCE_BYTES + SIGNATURE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What this end says of itself."""

    swarm: str = ""
    limits: FrameLimits = DEFAULT_LIMITS
    listens: tuple[str, ...] = ()
    libp2p: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeted:
    """What is known of the other end once the greeting is over."""

    peer: PeerId
    lane: Lane
    limits: FrameLimits
    listens: tuple[str, ...] = ()
    libp2p: tuple[str, ...] = ()
    clock_offset_ns: int = 0
    rtt_s: float = 0.0


class Turn(NamedTuple):
    """What a frame led to: bytes to send; the end of the greeting, good or (after sending) bad."""

    send: bytes = b""
    greeted: Greeted | None = None
    refused: NetError | None = None


class DialerHandshake:
    """The dialer's side; `limits` hold for the next frame."""

    def __init__(
        self, identity: Identity, wanted: PeerId, address: str, lane: Lane, terms: Terms, nonce: bytes
    ) -> None:
        self.limits = UNAUTHENTICATED
        self._identity = identity
        self._wanted = wanted
        self._wanted_key = public_key_of(wanted)
        self.address = address
        self._lane: Lane = lane
        self._terms = terms
        self._nonce = nonce
        self._hello_s: float | None = None
        self._hello_wall_ns = 0

    def start(self, listener_key: bytes | None) -> bytes:
        """Check whom TLS has connected us to (None: no usable certificate). Raises WrongPeer."""
        if listener_key != self._wanted_key:
            got = peer_id_of(listener_key) if listener_key is not None else ""
            raise WrongPeer(address=self.address, wanted=self._wanted, got=got)
        return b""

    def receive(self, header: Body, now_s: float, wall_ns: int) -> Turn:
        """Take the header of the next frame. Raises Malformed, HandshakeFailed."""
        if self._hello_s is None:
            self._hello_s, self._hello_wall_ns = now_s, wall_ns
            self.limits = GREETING
            return Turn(send=self._proof(bytes(header)) + _frame(self._hello()))
        message = decode(header)
        if isinstance(message, Failure):
            raise HandshakeFailed(address=self.address, reason=message.text or message.code)
        if not isinstance(message, Welcome):
            raise HandshakeFailed(address=self.address, reason=f"{type(message).__name__} instead of a welcome")
        greeted = Greeted(
            peer=self._wanted,
            lane=self._lane,
            limits=FrameLimits(message.max_header, message.max_body),
            listens=(self.address,),
            libp2p=message.libp2p,
            clock_offset_ns=message.wall_ns - (self._hello_wall_ns + wall_ns) // 2,
            rtt_s=now_s - self._hello_s,
        )
        return Turn(greeted=greeted)

    def _proof(self, challenge: bytes) -> bytes:
        if len(challenge) != NONCE_BYTES:
            raise Malformed(what="challenge", reason=f"{len(challenge)} bytes instead of {NONCE_BYTES}")
        own_key = self._identity.public_key
        signature = self._identity.sign(_signed(self._wanted_key, own_key, challenge, self._nonce))
        return b"".join(map(bytes, encode_frame(own_key + self._nonce + signature)))

    def _hello(self) -> Hello:
        return Hello(
            swarm=self._terms.swarm,
            max_header=self._terms.limits.max_header,
            max_body=self._terms.limits.max_body,
            wall_ns=self._hello_wall_ns,
            lane=self._lane,
            listens=self._terms.listens,
        )


class ListenerHandshake:
    """The listener's side; `limits` hold for the next frame."""

    def __init__(self, identity: Identity, address: str, terms: Terms, nonce: bytes) -> None:
        self.limits = UNAUTHENTICATED
        self._identity = identity
        self.address = address
        self._terms = terms
        self._nonce = nonce
        self._peer: PeerId | None = None

    def start(self, listener_key: bytes | None) -> bytes:
        """Return the challenge; the dialer shows no certificate."""
        return b"".join(map(bytes, encode_frame(self._nonce)))

    def receive(self, header: Body, now_s: float, wall_ns: int) -> Turn:
        """Take the header of the next frame. Raises Malformed, HandshakeFailed."""
        if self._peer is None:
            self._peer = self._checked_peer(bytes(header))
            self.limits = GREETING
            return Turn()
        message = decode(header)
        if not isinstance(message, Hello):
            raise HandshakeFailed(address=self.address, reason=f"{type(message).__name__} instead of a hello")
        if not message.min_version <= VERSION <= message.max_version:
            versions = f"{message.min_version} to {message.max_version}"
            return self._refuse("wrong_version", f"this end speaks version {VERSION}, the other {versions}")
        if message.swarm != self._terms.swarm:
            return self._refuse("wrong_swarm", f"this peer is not of the swarm {message.swarm or 'that is public'}")
        welcome = Welcome(
            swarm=self._terms.swarm,
            max_header=self._terms.limits.max_header,
            max_body=self._terms.limits.max_body,
            wall_ns=wall_ns,
            libp2p=self._terms.libp2p,
            observed=self.address,
        )
        greeted = Greeted(
            peer=self._peer,
            lane=message.lane,
            limits=FrameLimits(message.max_header, message.max_body),
            listens=message.listens,
        )
        return Turn(send=_frame(welcome), greeted=greeted)

    def _checked_peer(self, proof: bytes) -> PeerId:
        if len(proof) != _PROOF_BYTES:
            raise Malformed(what="proof", reason=f"{len(proof)} bytes instead of {_PROOF_BYTES}")
        key, nonce, signature = (
            proof[:KEY_BYTES],
            proof[KEY_BYTES : KEY_BYTES + NONCE_BYTES],
            proof[-SIGNATURE_BYTES:],
        )
        if not verify(key, signature, _signed(self._identity.public_key, key, self._nonce, nonce)):
            raise HandshakeFailed(address=self.address, reason="its signature is not over this connection")
        return peer_id_of(key)

    def _refuse(self, code: str, reason: str) -> Turn:
        return refusal(self.address, Failure(code=code, retry="never", text=reason))


def refusal(address: str, failure: Failure) -> Turn:
    """Return how a listener says no to a dialer."""
    return Turn(send=_frame(failure), refused=HandshakeFailed(address=address, reason=failure.text))


def _signed(listener_key: bytes, dialer_key: bytes, listener_nonce: bytes, dialer_nonce: bytes) -> bytes:
    return LABEL + listener_key + dialer_key + listener_nonce + dialer_nonce


def _frame(message: Message) -> bytes:
    return b"".join(map(bytes, encode_frame(encode(message))))
