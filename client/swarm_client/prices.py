"""What nodes ask, read from their records; pure.

Owns the comparison with what a person allows: a node's share of the model has to cost at most its share of the price,
so that a route of such nodes costs at most the whole, wherever it enters and leaves their spans.
"""

from decimal import Decimal

from swarm_ledger.errors import BadQuote
from swarm_ledger.quotes import Quote, decode_quote
from swarm_net.records import QUOTE_EXTENSION, Record


def quote_of(record: Record) -> Quote | None:
    """Return a node's price list, None where its work is free. Raises BadQuote."""
    data = record.extensions.get(QUOTE_EXTENSION)
    if data is None:
        return None
    quote = decode_quote(data)
    return quote if quote.price else None


def is_affordable(record: Record, max_price: Decimal | None) -> bool:
    """Whether a node's blocks cost at most their share of a price for a million tokens; None: whatever they cost."""
    try:
        quote = quote_of(record)
    except BadQuote:
        return False
    if quote is None or max_price is None:
        return True
    return price_per_million(quote, record) * record.num_blocks <= max_price * (record.end - record.start)


def price_per_million(quote: Quote, record: Record) -> Decimal:
    """Return what a node takes for a million tokens through its span, in units of its currency."""
    return Decimal(quote.per_million_tokens(record.end - record.start)).scaleb(-quote.decimals)
