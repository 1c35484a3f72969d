"""Files of money: their mode, their lock, their versions, and disks that fail."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_ledger.errors import BrokenStore, StoreInUse
from swarm_ledger.store_file import StoreFile, blob, number

TABLES = ("CREATE TABLE IF NOT EXISTS notes (number INTEGER PRIMARY KEY, text TEXT NOT NULL)",)


def opened(file: Path | None, *, kind: bytes = b"Test", version: int = 1) -> StoreFile:
    return StoreFile(file, kind=kind, version=version, tables=TABLES, is_durable=False)


def notes(store: StoreFile) -> list[str]:
    return [text for (text,) in store.rows("SELECT text FROM notes ORDER BY number")]


def note(store: StoreFile, text: str) -> None:
    store.execute("INSERT INTO notes (text) VALUES (?)", text)


def fail_after(store: StoreFile, text: str) -> None:
    """Note something in a transaction, and in a part of it, and raise ValueError."""
    with store.transaction():
        note(store, text)
        with store.transaction():
            note(store, text)
        raise ValueError


def test_a_transaction_is_whole_or_nothing_and_so_is_a_part_of_it() -> None:
    store = opened(None)
    with store.transaction():
        note(store, "kept")
        with pytest.raises(ValueError):
            fail_after(store, "undone with its part")
        with store.transaction():
            note(store, "kept with its part")
    with pytest.raises(ValueError):
        fail_after(store, "undone as a whole")
    assert notes(store) == ["kept", "kept with its part"]


def test_what_was_written_is_there_for_the_next_process(tmp_path: Path) -> None:
    file = tmp_path / "new" / "store.db"
    store = opened(file)
    with store.transaction():
        note(store, "one")
    with store.transaction(is_durable=True):
        note(store, "two")
    store.close()
    again = opened(file)
    assert notes(again) == ["one", "two"]
    again.close()


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    store = opened(file)
    with store.transaction():
        note(store, "secret")
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600] * len(list(tmp_path.iterdir()))
    store.close()
    file.chmod(0o644)
    with pytest.raises(BrokenStore, match="others can read it"):
        opened(file)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    store = opened(file)
    with pytest.raises(StoreInUse):
        opened(file)
    code = f"import sqlite3; sqlite3.connect({str(file)!r}, timeout=0).execute('SELECT * FROM notes').fetchall()"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert "database is locked" in other.stderr
    # Being refused has not given up the lock of the first one (POSIX would have, if the file had been closed).
    with pytest.raises(StoreInUse):
        opened(file)
    store.close()
    opened(file).close()


def test_files_of_another_kind_or_version_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    opened(file).close()
    with pytest.raises(BrokenStore, match="another kind"):
        opened(file, kind=b"Else")
    with pytest.raises(BrokenStore, match="another version"):
        opened(file, version=2)
    foreign = tmp_path / "foreign.db"
    database = sqlite3.connect(foreign)
    database.execute("CREATE TABLE theirs (x)")
    database.close()
    foreign.chmod(0o600)
    with pytest.raises(BrokenStore, match="another kind"):
        opened(foreign)


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_that_is_no_store_is_told_as_broken(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "store.db"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(BrokenStore):
        opened(file)
    assert file.read_bytes() == content


def test_a_place_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokenStore):
        opened(tmp_path / "file" / "store.db")


FULL_DISK = """
import resource, sys
from pathlib import Path
from swarm_ledger.errors import BrokenStore
from swarm_ledger.store_file import StoreFile
TABLES = ("CREATE TABLE IF NOT EXISTS notes (number INTEGER PRIMARY KEY, text TEXT NOT NULL)",)
store = StoreFile(Path(sys.argv[1]), kind=b"Test", version=1, tables=TABLES, is_durable=True)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
written = 0
try:
    while written < 1000:
        with store.transaction():
            store.execute("INSERT INTO notes (text) VALUES (?)", "x" * 1000)
        written += 1
except BrokenStore as error:
    print(type(error).__name__)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    with store.transaction():
        store.execute("INSERT INTO notes (text) VALUES ('after')")
    assert len(store.rows("SELECT 1 FROM notes")) == written + 1
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of file sizes are tested on Linux")
def test_a_disk_without_room_breaks_nothing_and_goes_on_when_there_is_some(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "store.db")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (run.stdout.strip(), run.returncode) == ("BrokenStore", 0), run.stderr


@given(st.lists(st.integers(0, 2**128 - 1), min_size=2, max_size=2))
def test_stored_amounts_keep_their_order(amounts: list[int]) -> None:
    low, high = sorted(amounts)
    assert blob(low) <= blob(high)
    assert number(blob(high)) == high
