"""What amounts are counted in, and how people write them; money is an integer of the smallest unit everywhere else."""

from dataclasses import dataclass
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow
from typing import Final

# Nothing is rounded on the way in: 2^128 has 39 digits, which is more than the usual context keeps.
_MAX_DIGITS: Final = 40
_EXACT: Final = Context(prec=60, traps=[Inexact, InvalidOperation, Overflow])


@dataclass(frozen=True, slots=True)
class Currency:
    """A unit and its smallest part: one is 10 ** decimals of it."""

    symbol: str
    decimals: int

    def parse(self, text: str) -> int:
        """Return an amount in the smallest unit. Raises ValueError for what is no amount, or finer than that."""
        try:
            exact = _EXACT.scaleb(_EXACT.create_decimal(text), self.decimals)
        except (Inexact, InvalidOperation, Overflow) as error:
            raise ValueError(f"{text!r} is not an amount") from error
        if not exact.is_finite() or exact < 0 or exact.adjusted() >= _MAX_DIGITS or exact != exact.to_integral_value():
            raise ValueError(f"{text!r} is not an amount of {self.symbol} with at most {self.decimals} decimals")
        return int(exact)

    def format(self, amount: int, digits: int | None = None) -> str:
        """Write an amount with its unit: exactly, or rounded to so many significant digits."""
        return f"{self.number(amount, digits)} {self.symbol}"

    def number(self, amount: int, digits: int | None = None) -> str:
        """Write an amount without its unit."""
        value = _EXACT.scaleb(Decimal(amount), -self.decimals)
        if digits is not None and value:
            value = Context(prec=digits).plus(value)
        text = f"{value:f}"
        if "." in text:
            text = text.rstrip("0").rstrip(".")
        return text or "0"


CREDITS: Final = Currency("credits", 9)
ETHER: Final = Currency("ETH", 18)
