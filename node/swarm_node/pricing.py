"""What a node asks for its work: rates from what it measured, a price from its operator or from its hardware; pure.

A unit's rating is what it took on this machine, one session alone; batches earn more an hour than they are rated at,
which is the operator's gain from serving many at once.
"""

from dataclasses import dataclass
from typing import Final

from swarm_ledger.accounts import Address
from swarm_ledger.channels import Domain
from swarm_ledger.currencies import Currency
from swarm_ledger.quotes import BUCKET_ENDS, Quote, Rates, price_bytes

WINDOW_NS: Final = 2_000_000_000  # of rated time that a stranger may owe
MIN_ALLOCATION_NS: Final = 10_000_000_000  # of rated time that a channel has to be worth for a session to begin
QUOTE_LIFETIME_S: Final = 24 * 3600
NS: Final = 1_000_000_000

# Credits for an hour: about what such a machine costs to own and to run; a server's core with fast matrix units is 1.
# The first name that the device's contains counts.
HARDWARE: Final = (
    ("H200", "150"),
    ("H100", "120"),
    ("A100", "70"),
    ("L40", "40"),
    ("A6000", "35"),
    ("5090", "40"),
    ("4090", "25"),
    ("3090", "14"),
    ("A10", "20"),
    ("L4", "18"),
    ("T4", "8"),
    ("cuda", "12"),
    ("mps", "6"),
    ("cpu", "1"),
)


@dataclass(frozen=True, slots=True)
class Measured:
    """What the rating is made of: tokens a second through the whole span."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    head_blocks: float = 0.0  # what norm and head cost a drawn position, in blocks; 0 where the span has none


def default_price(device: str, currency: Currency) -> int:
    """Return the price of an hour of a device, by its name, in the smallest unit."""
    name = device.lower()
    price = next((price for known, price in HARDWARE if known.lower() in name), HARDWARE[-1][1])
    return currency.parse(price)


def rate(measured: Measured, blocks: int) -> Rates:
    """Return the nanoseconds of each unit, from what a span of so many blocks does on this machine.

    Attention's share grows with the context; it was measured at short ones, so farther buckets are rated a quarter
    higher each: what attention adds to a dense model of a few billion weights.
    """
    units = blocks + measured.head_blocks
    prefill = NS / measured.prefill_tokens_per_s / units
    decode = NS / measured.decode_tokens_per_s / units
    guess = min(decode, (prefill + decode) / 2)
    head = round(decode * measured.head_blocks)

    def by_context(first: float) -> tuple[int, ...]:
        return tuple(max(1, round(first * (1 + place / 4))) for place in range(len(BUCKET_ENDS) + 1))

    return Rates(
        prefill=by_context(prefill),
        decode=by_context(decode),
        draft=by_context(guess),
        replay=by_context(prefill),
        cached=round(prefill / 10),
        embedding=1,
        head=head,
        logprobs=head // 4,
        page_second=max(1, round(decode / 10)),
    )


def make_quote(
    now_s: float,
    *,
    rates: Rates,
    price_per_hour: int,
    page_size: int,
    domain: Domain,
    payee: Address,
    currency: Currency,
    seal_key: bytes,
    bank_peer: str = "",
    bank_addresses: tuple[str, ...] = (),
) -> Quote:
    """Return the price list of a node from now on."""
    return Quote(
        price_per_hour=price_bytes(price_per_hour),
        rates=rates,
        window_ns=WINDOW_NS,
        min_allocation_ns=MIN_ALLOCATION_NS,
        page_size=page_size,
        chain_id=domain.chain_id,
        contract=domain.contract,
        payee=payee,
        currency=currency.symbol,
        decimals=currency.decimals,
        seal_key=seal_key,
        seq=int(now_s * 1000),
        expires_s=int(now_s) + QUOTE_LIFETIME_S,
        bank_peer=bank_peer,
        bank_addresses=bank_addresses[:2],
    )
