"""Quotes, and a client and a node that pay each other, for tests of what happens between them."""

from swarm_ledger.channels import Domain
from swarm_ledger.quotes import Quote, Rates, price_bytes
from swarm_ledger.sealing import SealKey
from tests.ledger.parties import HERE, PAYEES

RATES = Rates(
    prefill=(500, 700, 900),
    decode=(9000, 11_000),
    draft=(1200,),
    replay=(450, 650),
    cached=3,
    embedding=40,
    head=20_000,
    logprobs=5000,
    page_second=100,
)


def quote_of(
    price_per_hour: int = 3600 * 10**9,
    *,
    window_ns: int = 1_000_000,
    min_allocation_ns: int = 0,
    rates: Rates = RATES,
    domain: Domain = HERE,
    expires_s: int = 2_000_000_000,
) -> Quote:
    """Return a quote; at the default price a nanosecond costs one smallest unit."""
    return Quote(
        price_per_hour=price_bytes(price_per_hour),
        rates=rates,
        window_ns=window_ns,
        min_allocation_ns=min_allocation_ns,
        page_size=16,
        chain_id=domain.chain_id,
        contract=domain.contract,
        payee=PAYEES[0].address,
        currency="credits",
        decimals=9,
        seal_key=SealKey(bytes([3]) * 32).public,
        seq=1,
        expires_s=expires_s,
    )
