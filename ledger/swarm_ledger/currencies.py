"""What amounts are counted in, and how people write them; money is an integer of the smallest unit everywhere else."""

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Final


@dataclass(frozen=True, slots=True)
class Currency:
    """A unit and its smallest part: one is 10 ** decimals of it."""

    symbol: str
    decimals: int

    def parse(self, text: str) -> int:
        """Return an amount in the smallest unit. Raises ValueError for what is no amount, or finer than that."""
        try:
            exact = Decimal(text).scaleb(self.decimals)
        except InvalidOperation as error:
            raise ValueError(f"{text!r} is not an amount") from error
        if not exact.is_finite() or exact < 0 or exact != exact.to_integral_value():
            raise ValueError(f"{text!r} is not an amount of {self.symbol} with at most {self.decimals} decimals")
        return int(exact)

    def format(self, amount: int, digits: int | None = None) -> str:
        """Write an amount with its unit: exactly, or rounded to so many significant digits."""
        value = Decimal(amount).scaleb(-self.decimals)
        if digits is not None and value:
            value = round(value, digits - 1 - value.adjusted())
        text = f"{value:f}"
        if "." in text:
            text = text.rstrip("0").rstrip(".")
        return f"{text or '0'} {self.symbol}"


CREDITS: Final = Currency("credits", 9)
ETHER: Final = Currency("ETH", 18)
