"""Requests that a bank has answered, so that who lost an answer may ask again and no request is carried out twice.

Owns the table of them; called by `bank_service.py` inside the transaction that carries a request out. An answer is kept
for an hour beyond its request's expiry. What was forgotten stays refused even if the clock is set back.
"""

from typing import Final

from swarm_ledger.accounts import Address
from swarm_ledger.store_file import StoreFile

KEPT_S: Final = 3600

TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS answered (account BLOB, id BLOB, request BLOB NOT NULL, expires_s INTEGER NOT NULL,"
    " answer BLOB NOT NULL, PRIMARY KEY (account, id)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS answered_by_expiry ON answered (expires_s)",
    "CREATE TABLE IF NOT EXISTS forgotten (one INTEGER PRIMARY KEY CHECK (one = 1), until_s INTEGER NOT NULL)",
)


class AnsweredRequests:
    """The answers that a bank still knows."""

    def __init__(self, store: StoreFile) -> None:
        self._store = store

    def find(self, account: Address, request_id: bytes) -> tuple[bytes, bytes] | None:
        """Return the digest of the request that had this id, and what was answered."""
        row = self._store.row("SELECT request, answer FROM answered WHERE account = ? AND id = ?", account, request_id)
        return None if row is None else (row[0], row[1])

    def is_forgotten(self, expires_s: int) -> bool:
        """Tell whether a request that expires then may have been answered and forgotten."""
        row = self._store.row("SELECT until_s FROM forgotten")
        return row is not None and expires_s < row[0]

    def add(
        self, account: Address, request_id: bytes, request: bytes, expires_s: int, answer: bytes, now_s: float
    ) -> None:
        """Keep an answer, and forget old ones."""
        until_s = int(now_s) - KEPT_S
        if self._store.execute("DELETE FROM answered WHERE expires_s < ?", until_s):
            self._store.execute(
                "INSERT INTO forgotten VALUES (1, ?)"
                " ON CONFLICT (one) DO UPDATE SET until_s = max(until_s, excluded.until_s)",
                until_s,
            )
        values = (account, request_id, request, expires_s, answer)
        self._store.execute("INSERT INTO answered VALUES (?, ?, ?, ?, ?)", *values)
