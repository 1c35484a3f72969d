"""Which ledger a program is to use, and whose account: what the command line says, before anything is opened.

The seam between `swarm-ledger` and what it may not import: an embedded ledger is reached over the swarm's links, so the
program that has links gives an `OpenLedger` to `__main__.main`. The one for chains stands in `evm/opening.py`.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from swarm_ledger.ledger import Ledger

Kind = Literal["embedded", "evm"]


@dataclass(frozen=True, slots=True)
class Access:
    """The options that all commands share."""

    ledger: Kind
    rpc: tuple[str, ...] = ()
    contract: str | None = None
    chain_id: int | None = None
    keystore: Path | None = None
    password_file: Path | None = None
    confirmations: int = 3
    max_gas_price_gwei: float = 200.0
    bootstrap: tuple[str, ...] = ()  # of an embedded ledger: nodes of its swarm
    account: Path | None = None  # and the key file


OpenLedger = Callable[[Access], AbstractAsyncContextManager[Ledger]]
Openers = Mapping[Kind, OpenLedger]
