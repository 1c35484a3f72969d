"""Which bank a swarm uses, and who hosts it: the answer to a question that any node that is paid can be asked. Pure.

The bank is pinned by the address of its key; where it is hosted may change.
"""

import json
from dataclasses import dataclass
from typing import Final

from swarm_ledger.accounts import Address, address_text, parse_address
from swarm_ledger.errors import LedgerUnreachable

SERVICE: Final = "bank"  # under which links carry it
WHERE: Final = "where"  # the question
MAX_ANSWER_BYTES: Final = 4096
MAX_ADDRESSES: Final = 8


@dataclass(frozen=True, slots=True)
class BankPlace:
    """A bank's address, and the peer that hosts it with where that can be dialed."""

    bank: Address
    peer: str
    addresses: tuple[str, ...]

    def encode(self) -> bytes:
        """Return the answer to the question where the bank is, and what is kept of it."""
        said = {"bank": address_text(self.bank), "peer": self.peer, "addresses": list(self.addresses)}
        return json.dumps(said).encode()

    @classmethod
    def decode(cls, data: bytes) -> "BankPlace":
        """Return the place in an answer. Raises LedgerUnreachable for what is none."""
        try:
            if len(data) > MAX_ANSWER_BYTES:
                raise ValueError(f"{len(data)} bytes")
            said = json.loads(data)
            addresses = tuple(str(address) for address in said["addresses"])[:MAX_ADDRESSES]
            return cls(parse_address(str(said["bank"])), str(said["peer"]), addresses)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise LedgerUnreachable(where="the swarm's bank", reason=f"an answer that names none: {error}") from error
