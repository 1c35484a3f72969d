"""The key of an account in a file."""

import os
from pathlib import Path

import pytest

from swarm_ledger.accounts import Account
from swarm_ledger.errors import BadKeyFile
from swarm_ledger.wallet_file import load_or_create
from tests.ledger.parties import counting


def test_the_first_start_makes_a_key_and_later_ones_read_it(tmp_path: Path) -> None:
    file = tmp_path / "new" / "wallet"
    first = load_or_create(file, counting())
    assert first.address == Account((1).to_bytes(32, "big")).address
    assert load_or_create(file).address == first.address
    assert [path.name for path in file.parent.iterdir()] == ["wallet"]
    assert repr(first) == "Account(0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf)"


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "wallet"
    load_or_create(file)
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o640)
    with pytest.raises(BadKeyFile, match="0640"):
        load_or_create(file)


@pytest.mark.parametrize("content", ["", "00" * 32, "ff" * 32, "ab" * 31, "ab" * 33, "zz" * 32, "ab" * 5000, "é" * 32])
def test_a_file_without_a_key_is_refused_and_never_quoted(tmp_path: Path, content: str) -> None:
    file = tmp_path / "wallet"
    file.write_text(content, encoding="utf-8")
    file.chmod(0o600)
    with pytest.raises(BadKeyFile) as caught:
        load_or_create(file)
    assert str(caught.value) == f"{file}: it holds no secp256k1 key"
    assert caught.value.__cause__ is None


def test_a_place_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadKeyFile):
        load_or_create(tmp_path / "file" / "wallet")
