"""A SQLite file that one process has open: what everything about money is kept in.

Owns the file's mode and lock, the version of its tables, transactions, and what can go wrong with a disk. What stands
in the tables is the business of `bank.py`, `node_store.py` and `client_store.py`. Not for two threads at once.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from swarm_ledger.errors import BrokenStore, LedgerError, StoreInUse

AMOUNT_BYTES: Final = 16

Value = int | str | bytes


class StoreFile:
    """A database of this process; `file` None keeps it in memory, for the simulator and for tests.

    A transaction survives the end of the process. `is_durable`: it survives the end of the machine, too.
    """

    def __init__(
        self, file: Path | None, *, kind: bytes, version: int, tables: Sequence[str], is_durable: bool
    ) -> None:
        self.name = "a store in memory" if file is None else str(file)
        self._depth = 0
        self._is_durable = is_durable
        if file is not None:
            _make_private(file)
        try:
            # Statements begin and end transactions themselves; a lock that another process holds is not waited for.
            self._database = sqlite3.connect(
                file or ":memory:", isolation_level=None, timeout=0, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise self._failure(error) from error
        try:
            # Locked from the first access to the end; the index of the log needs no shared memory then.
            self.execute("PRAGMA locking_mode = EXCLUSIVE")
            self.execute("PRAGMA journal_mode = WAL")
            self._synchronize(is_durable)
            with self.transaction():
                self._prepare(int.from_bytes(kind, "big"), version, tables)
        except BaseException:
            self._database.close()
            raise

    @contextmanager
    def transaction(self, *, is_durable: bool = False) -> Iterator[None]:
        """Do all of it or nothing; within another transaction, all of this part or nothing of it."""
        is_outermost = self._depth == 0
        part = f"part_{self._depth}"
        raises_level = is_outermost and is_durable and not self._is_durable
        if raises_level:
            self._synchronize(True)
        self.execute("BEGIN IMMEDIATE" if is_outermost else f"SAVEPOINT {part}")
        self._depth += 1
        try:
            yield
            self.execute("COMMIT" if is_outermost else f"RELEASE {part}")
        except BaseException:
            # SQLite itself may have rolled back, for want of room.
            if self._database.in_transaction:
                with suppress(LedgerError):
                    self.execute("ROLLBACK" if is_outermost else f"ROLLBACK TO {part}")
            raise
        finally:
            self._depth -= 1
            if raises_level:
                self._synchronize(False)

    def execute(self, statement: str, *values: Value) -> int:
        """Run a statement; returns how many rows it has changed. Raises BrokenStore, StoreInUse."""
        try:
            return self._database.execute(statement, values).rowcount
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def execute_many(self, statement: str, rows: Iterable[Sequence[Value]]) -> None:
        """Run a statement for each row of values. Raises BrokenStore."""
        try:
            self._database.executemany(statement, rows)
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def rows(self, query: str, *values: Value) -> list[tuple[Any, ...]]:
        """Return what a query finds. Raises BrokenStore."""
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def row(self, query: str, *values: Value) -> tuple[Any, ...] | None:
        """Return the first row that a query finds. Raises BrokenStore."""
        found = self.rows(query, *values)
        return found[0] if found else None

    def close(self) -> None:
        """Give the file back."""
        self._database.close()

    def _synchronize(self, is_durable: bool) -> None:
        self.execute(f"PRAGMA synchronous = {'FULL' if is_durable else 'NORMAL'}")

    def _prepare(self, kind: int, version: int, tables: Sequence[str]) -> None:
        found = self._number("PRAGMA application_id"), self._number("PRAGMA user_version")
        if found == (0, 0) and self._number("SELECT count(*) FROM sqlite_master") == 0:
            self.execute(f"PRAGMA application_id = {kind}")
            self.execute(f"PRAGMA user_version = {version}")
        elif found[0] != kind:
            raise BrokenStore(file=self.name, reason="a file of another kind")
        elif found[1] != version:
            reason = f"made by another version: its tables are number {found[1]}, this program has {version}"
            raise BrokenStore(file=self.name, reason=reason)
        for table in tables:
            self.execute(table)

    def _number(self, query: str) -> int:
        row = self.row(query)
        assert row is not None
        return int(row[0])

    def _failure(self, error: sqlite3.Error) -> LedgerError:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            return StoreInUse(file=self.name)
        return BrokenStore(file=self.name, reason=str(error))


def blob(amount: int) -> bytes:
    """Return an amount as it is stored: beyond SQLite's integers, and still in order."""
    return amount.to_bytes(AMOUNT_BYTES, "big")


def number(stored: bytes) -> int:
    """Return a stored amount."""
    return int.from_bytes(stored, "big")


def _make_private(file: Path) -> None:
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            # Not opened: closing a file gives up the locks that this process has on it (POSIX).
            mode = file.stat().st_mode
            if os.name == "posix" and mode & 0o077:
                reason = f"others can read it (mode {mode & 0o777:04o})"
                raise BrokenStore(file=str(file), reason=reason) from None
    except OSError as error:
        raise BrokenStore(file=str(file), reason=error.strerror or str(error)) from error
