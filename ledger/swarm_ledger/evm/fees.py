"""What a transaction may cost, and how a stuck one gets dearer (EIP-1559); pure. Prices are wei for one gas."""

from dataclasses import dataclass
from typing import Final

from swarm_ledger.errors import GasTooExpensive

GWEI: Final = 10**9
_BUMP_PARTS: Final = 8  # nodes replace a transaction by one that pays at least 10 % more; this is 12.5 %


@dataclass(frozen=True, slots=True)
class GasPrice:
    """What the chain asks for at the moment."""

    base_fee: int
    tip: int


@dataclass(frozen=True, slots=True)
class Fee:
    """What a transaction offers."""

    max_fee: int
    tip: int


def first_fee(price: GasPrice, most: int) -> Fee:
    """Return an offer that holds while the base fee doubles, if the operator's limit allows.

    Raises GasTooExpensive where the next block would not take a transaction at that limit.
    """
    if price.base_fee + 1 > most:
        raise GasTooExpensive(price=price.base_fee, most=most)
    max_fee = min(2 * price.base_fee + price.tip, most)
    return Fee(max_fee, min(price.tip, max_fee - price.base_fee))


def higher_fee(fee: Fee, price: GasPrice, most: int) -> Fee | None:
    """Return an offer that replaces one that is stuck; None if the operator's limit does not allow it."""
    max_fee, tip = _bumped(fee.max_fee), _bumped(fee.tip)
    if max_fee > most:
        return None
    max_fee = min(max(max_fee, 2 * price.base_fee + price.tip), most)
    return Fee(max_fee, min(max(tip, price.tip), max_fee))


def _bumped(amount: int) -> int:
    return amount + amount // _BUMP_PARTS + 1
