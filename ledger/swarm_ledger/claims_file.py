"""Vouchers as JSON: a list of {payer, payee, signer, salt, cumulative, signature}; pure.

For what is kept or redeemed elsewhere. Addresses and signatures are hexadecimal; large numbers may be text.
"""

import json
from collections.abc import Sequence
from typing import Any

from swarm_ledger.accounts import SIGNATURE_BYTES, address_text, parse_address
from swarm_ledger.channels import ChannelKey, Claim
from swarm_ledger.errors import BadOption


def read(text: str) -> list[Claim]:
    """Return the claims in a text. Raises BadOption."""
    try:
        rows = json.loads(text)
        if not isinstance(rows, list):
            raise ValueError("not a list")
        return [_claim(row) for row in rows]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise BadOption("vouchers", f"not a list of vouchers: {what}") from error


def write(claims: Sequence[Claim]) -> str:
    """Return the text that `read` reads."""
    rows = [
        {
            "payer": address_text(claim.key.payer),
            "payee": address_text(claim.key.payee),
            "signer": address_text(claim.key.signer),
            "salt": str(claim.key.salt),
            "cumulative": str(claim.cumulative),
            "signature": "0x" + claim.signature.hex(),
        }
        for claim in claims
    ]
    return json.dumps(rows, indent=1) + "\n"


def _claim(row: Any) -> Claim:
    salt, cumulative = int(row["salt"]), int(row["cumulative"])
    signature = bytes.fromhex(row["signature"].removeprefix("0x"))
    if not 0 <= salt < 1 << 256 or not 0 <= cumulative < 1 << 128 or len(signature) != SIGNATURE_BYTES:
        raise ValueError("a number or signature that no voucher has")
    payer, payee, signer = (parse_address(row[role]) for role in ("payer", "payee", "signer"))
    return Claim(ChannelKey(payer, payee, signer, salt), cumulative, signature)
