"""What a node asks for its work: the price list that it signs, and what ties the node to the account that is paid.

A **quote** rates each kind of unit in nanoseconds of the node's own hardware and puts a price on an hour of it. It
travels inside the node's record, which the node's Ed25519 key signs; the quote is signed by the payee's key as well, as
the **binding**: so neither can be exchanged without the other (ledger of the payee, Ed25519 key of the node).

Pure: keys and the present are arguments.
"""

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from swarm_ledger.accounts import ADDRESS_BYTES, NOBODY, Account, Address, keccak, signer_of
from swarm_ledger.channels import Domain, binding_digest
from swarm_ledger.errors import BadBinding, BadQuote, BadSignature

BUCKET_ENDS: Final = (1024, 4096, 16_384, 65_536)  # of positions; whatever is behind the last is the fifth bucket
MAX_QUOTE_BYTES: Final = 512
NS_PER_HOUR: Final = 3600 * 1_000_000_000

RawAddress = Annotated[bytes, Meta(min_length=ADDRESS_BYTES, max_length=ADDRESS_BYTES)]
Rated = Annotated[int, Meta(ge=0, le=10**12)]  # nanoseconds
ByContext = Annotated[tuple[Rated, ...], Meta(min_length=1, max_length=len(BUCKET_ENDS) + 1)]


class Rates(Struct, array_like=True, frozen=True):
    """Nanoseconds that a unit is rated at. Of a token in one block, by its position's bucket (the last one given counts
    for all behind it): `prefill`, `decode`, `draft` (a guess that is verified), `replay` (known tokens computed anew
    after another hop failed). Of a token in one block: `cached` (computed before and kept). Of a token: `embedding` at
    the first hop. Of a drawn position: `head` at the last hop, and `logprobs` on top where they are asked for. Of a KV
    page of the whole span and a second of its lease: `page_second`."""

    prefill: ByContext
    decode: ByContext
    draft: ByContext
    replay: ByContext
    cached: Rated = 0
    embedding: Rated = 0
    head: Rated = 0
    logprobs: Rated = 0
    page_second: Rated = 0


class Quote(Struct, array_like=True, frozen=True):
    """A node's price list for its span; all amounts in the smallest unit of the currency."""

    price_per_hour: Annotated[bytes, Meta(max_length=16)]  # big-endian: wei do not fit into MessagePack's integers
    rates: Rates
    window_ns: Rated  # rated time that a stranger may owe
    min_allocation_ns: Rated  # rated time that a channel has to be worth when a session is opened
    page_size: Annotated[int, Meta(ge=1, le=65_536)]
    chain_id: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    contract: RawAddress
    payee: RawAddress
    currency: Annotated[str, Meta(max_length=16)]
    decimals: Annotated[int, Meta(ge=0, le=36)]
    seal_key: Annotated[bytes, Meta(min_length=32, max_length=32)]  # X25519: what is sent to this hop alone
    seq: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    expires_s: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    bank_peer: Annotated[str, Meta(max_length=64)] = ""  # who hosts the embedded bank
    bank_addresses: Annotated[tuple[Annotated[str, Meta(max_length=128)], ...], Meta(max_length=2)] = ()

    @property
    def price(self) -> int:
        """The price of an hour."""
        return int.from_bytes(self.price_per_hour, "big")

    @property
    def domain(self) -> Domain:
        """The ledger that its vouchers are for."""
        return Domain(self.chain_id, Address(self.contract))

    def amount(self, rated_ns: int) -> int:
        """Return what so much rated time costs, rounded down."""
        return rated_ns * self.price // NS_PER_HOUR

    def per_million_tokens(self, blocks: int) -> int:
        """Return what decoding a million tokens through so many blocks costs, short contexts, head included."""
        return self.amount(1_000_000 * (blocks * self.rates.decode[0] + self.rates.head))


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Quote).decode


def price_bytes(price_per_hour: int) -> bytes:
    """Return a price as a quote holds it. Raises BadQuote for one that no channel could pay."""
    if not 0 <= price_per_hour < 1 << 100:
        raise BadQuote("a price below nothing, or beyond everything")
    return price_per_hour.to_bytes((price_per_hour.bit_length() + 7) // 8, "big")


def encode_quote(quote: Quote) -> bytes:
    """Return a quote's bytes. Raises BadQuote for one that is too large for a record."""
    data = _encode(quote)
    if len(data) > MAX_QUOTE_BYTES:
        raise BadQuote(f"{len(data)} bytes, at most {MAX_QUOTE_BYTES}")
    return data


def decode_quote(data: bytes) -> Quote:
    """Return the quote in some bytes. Raises BadQuote."""
    if len(data) > MAX_QUOTE_BYTES:
        raise BadQuote(f"{len(data)} bytes, at most {MAX_QUOTE_BYTES}")
    try:
        quote = _decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadQuote(str(error)) from error
    if quote.price and Address(quote.payee) == NOBODY:
        raise BadQuote("a price, and nobody to pay it to")
    price_bytes(quote.price)
    return quote


def quote_digest(data: bytes) -> bytes:
    """Return what names a quote: 16 bytes of the digest of its bytes."""
    return keccak(b"quote/1\0" + data)[:16]


def sign_binding(quote: Quote, ed25519_key: bytes, payee: Account) -> bytes:
    """Return the payee's signature that it is this node that serves for it, until the quote expires.

    The node's own signature is the one of the record that both travel in.
    """
    return payee.sign(_binding(quote, ed25519_key))


def check_binding(quote: Quote, binding: bytes, ed25519_key: bytes, now_s: float) -> None:
    """Raise BadBinding unless the payee of a quote has signed for the node with this key; BadQuote if it expired."""
    if quote.expires_s <= now_s:
        raise BadQuote("it has expired")
    try:
        signer = signer_of(_binding(quote, ed25519_key), binding)
    except BadSignature as error:
        raise BadBinding("its signature is malformed") from error
    if signer != quote.payee:
        raise BadBinding("the payee has not signed for this node")


def _binding(quote: Quote, ed25519_key: bytes) -> bytes:
    return binding_digest(quote.domain, ed25519_key, Address(quote.payee), quote.seq, quote.expires_s)


def bucket(position: int) -> int:
    """Return which bucket of contexts a position belongs to."""
    for number, end in enumerate(BUCKET_ENDS):
        if position < end:
            return number
    return len(BUCKET_ENDS)


def rate_at(rates: Sequence[int], number: int) -> int:
    """Return the rate of a bucket; the last one given counts for all behind it."""
    return rates[number] if number < len(rates) else rates[-1]
