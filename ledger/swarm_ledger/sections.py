"""What client and hop say to each other under a session's seal: with Open, its grant, and the steps. Pure.

    OpenSection    client -> hop    which quote, which channel, the voucher that counts so far
    GrantSection   hop -> client    the window that it gives, what it counts, the best voucher that it has
    PaySection     client -> hop    a voucher, and for how many more seconds KV is leased; with a step or on its own

Several hops' sections share the one field of a step: `pack` and `first_of` put them in a row.
"""

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from swarm_ledger.accounts import ADDRESS_BYTES, SIGNATURE_BYTES, Address
from swarm_ledger.channels import ChannelId, ChannelKey, Voucher
from swarm_ledger.errors import BadSection
from swarm_ledger.quotes import RawAddress

MAX_SECTION_BYTES = 1024
_AMOUNT_BYTES = 16
_LEASE_BYTES = 4
_Section = TypeVar("_Section")

Salt = Annotated[bytes, Meta(max_length=32)]
Amount = Annotated[bytes, Meta(max_length=_AMOUNT_BYTES)]
Signature = Annotated[bytes, Meta(max_length=SIGNATURE_BYTES)]


class OpenSection(Struct, array_like=True, frozen=True):
    """What a hop has to know of the payment before it takes a session."""

    quote: Annotated[bytes, Meta(max_length=32)]  # the digest of the quote that the client has read
    payer: RawAddress
    signer: RawAddress
    salt: Salt
    cumulative: Amount  # of the best voucher so far
    signature: Signature

    def key(self, payee: Address) -> ChannelKey:
        """Return the channel that the session is paid from."""
        return ChannelKey(Address(self.payer), payee, Address(self.signer), int.from_bytes(self.salt, "big"))

    def voucher(self, channel: ChannelId) -> Voucher:
        return Voucher(channel, int.from_bytes(self.cumulative, "big"), self.signature)


class GrantSection(Struct, array_like=True, frozen=True):
    """What a hop answers: its count stands in smallest units of its quote's currency."""

    window: Amount  # that may be owed at any time
    earned: Amount  # in this channel, sessions that ended in debt among them
    cumulative: Amount  # of the best voucher that it has; nothing signed: 0
    signature: Signature
    lease_s: Annotated[int, Meta(ge=0, le=2**31)] = 0


def open_section(quote: bytes, key: ChannelKey, best: Voucher) -> bytes:
    """Return the bytes of an OpenSection."""
    assert len(key.payer) == len(key.signer) == ADDRESS_BYTES
    salt = key.salt.to_bytes(32, "big").lstrip(b"\0")
    return _encode(OpenSection(quote, key.payer, key.signer, salt, amount_bytes(best.cumulative), best.signature))


def read_open(data: bytes) -> OpenSection:
    """Return the OpenSection in some bytes. Raises BadSection."""
    return _read(data, _decode_open)


def grant_section(*, window: int, earned: int, best: Voucher, lease_s: int) -> bytes:
    """Return the bytes of a GrantSection."""
    return _encode(
        GrantSection(amount_bytes(window), amount_bytes(earned), amount_bytes(best.cumulative), best.signature, lease_s)
    )


def read_grant(data: bytes) -> GrantSection:
    """Return the GrantSection in some bytes. Raises BadSection."""
    return _read(data, _decode_grant)


def pay_section(voucher: Voucher, leased_s: int = 0) -> bytes:
    """Return the bytes that carry a voucher: how long KV was leased on in all, its signature, the amount.

    Both are totals: whichever section is lost on its way, the next one makes up for it.
    """
    signature = voucher.signature or bytes(SIGNATURE_BYTES)  # of nothing, where only the lease goes on
    return leased_s.to_bytes(_LEASE_BYTES, "big") + signature + amount_bytes(voucher.cumulative)


def read_pay(data: bytes, channel: ChannelId) -> tuple[Voucher, int]:
    """Return the voucher in some bytes, and the seconds. Raises BadSection."""
    signature_end = _LEASE_BYTES + SIGNATURE_BYTES
    if not signature_end <= len(data) <= signature_end + _AMOUNT_BYTES:
        raise BadSection(f"a voucher of {len(data)} bytes")
    voucher = Voucher(channel, int.from_bytes(data[signature_end:], "big"), data[_LEASE_BYTES:signature_end])
    return voucher, int.from_bytes(data[:_LEASE_BYTES], "big")


def pack(sections: list[bytes]) -> bytes:
    """Return sections for hops in a row, empty ones for hops that get none; nothing if all are empty."""
    if not any(sections):
        return b""
    return b"".join(len(section).to_bytes(2, "big") + section for section in sections)


def first_of(packed: bytes) -> tuple[bytes, bytes]:
    """Return the first hop's section and what is for the hops behind it. Raises BadSection."""
    if not packed:
        return b"", b""
    end = 2 + int.from_bytes(packed[:2], "big")
    if len(packed) < end or end > 2 + MAX_SECTION_BYTES:
        raise BadSection("shorter than it says, or too long")
    return packed[2:end], packed[end:]


def amount_bytes(amount: int) -> bytes:
    """Return an amount in as few bytes as it needs, big-endian."""
    return amount.to_bytes((amount.bit_length() + 7) // 8, "big")


_encode = msgspec.msgpack.Encoder().encode
_decode_open = msgspec.msgpack.Decoder(OpenSection)
_decode_grant = msgspec.msgpack.Decoder(GrantSection)


def _read(data: bytes, decoder: "msgspec.msgpack.Decoder[_Section]") -> _Section:
    if len(data) > MAX_SECTION_BYTES:
        raise BadSection(f"{len(data)} bytes, at most {MAX_SECTION_BYTES}")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadSection(str(error)) from error
