"""Encrypted key files and where their passwords come from."""

import json
import os
from pathlib import Path

import pytest
from eth_account import Account as Wallet

from swarm_ledger import keystore
from swarm_ledger.accounts import Account
from swarm_ledger.errors import BadKeyFile

ACCOUNT = Account(b"k" * 32)
QUICK = 2  # scrypt's work factor: a test needs no safety


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "key.json"
    keystore.create(file, ACCOUNT, "correct horse", work_factor=QUICK)
    return file


def test_a_key_comes_back_and_is_its_owners_alone(file: Path) -> None:
    assert keystore.load(file, "correct horse").address == ACCOUNT.address
    assert file.stat().st_mode & 0o777 == 0o600
    assert ACCOUNT.secret.hex() not in file.read_text()


def test_other_programs_can_read_it_and_write_what_we_read(file: Path, tmp_path: Path) -> None:
    assert bytes(Wallet.decrypt(file.read_text(), "correct horse")) == ACCOUNT.secret
    for kdf in ("pbkdf2", "scrypt"):
        other = tmp_path / kdf
        other.write_text(json.dumps(Wallet.encrypt(ACCOUNT.secret, "pass", kdf=kdf, iterations=QUICK)))
        other.chmod(0o600)
        assert keystore.load(other, "pass").secret == ACCOUNT.secret


def test_a_wrong_password_is_told_and_not_repeated(file: Path) -> None:
    with pytest.raises(BadKeyFile, match="wrong password") as raised:
        keystore.load(file, "battery staple")
    assert "staple" not in str(raised.value) + raised.value.remedy()


def test_a_key_is_never_written_over_another_file(file: Path) -> None:
    before = file.read_text()
    with pytest.raises(BadKeyFile, match="never overwritten"):
        keystore.create(file, Account(b"z" * 32), "x", work_factor=QUICK)
    assert file.read_text() == before


def test_a_file_that_others_can_read_is_refused(file: Path) -> None:
    file.chmod(0o640)
    with pytest.raises(BadKeyFile, match="0640"):
        keystore.load(file, "correct horse")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pony",
        "[]",
        "{}",
        '{"version": 3}',
        '{"version": 9, "crypto": {}}',
        "{" * 20_000,
        '{"version": 3, "crypto": 1}',
    ],
)
def test_what_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key.json"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(BadKeyFile, match="not an encrypted key"):
        keystore.load(file, "x")


def test_a_file_that_names_another_account_is_refused(file: Path) -> None:
    text = json.loads(file.read_text())
    text["address"] = "11" * 20
    file.write_text(json.dumps(text))
    with pytest.raises(BadKeyFile, match="another account"):
        keystore.load(file, "correct horse")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadKeyFile, match="No such file"):
        keystore.load(tmp_path / "none", "x")
    with pytest.raises(BadKeyFile, match="No such file"):
        keystore.create(tmp_path / "none" / "key", ACCOUNT, "x", work_factor=QUICK)


def test_passwords_come_from_a_file_then_the_environment_then_a_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "password"
    file.write_text("of the file\nsecond line\n")
    environment = {keystore.PASSWORD_VARIABLE: "of the environment"}
    assert keystore.read_password(file, environment, prompt="Password") == "of the file"
    assert keystore.read_password(None, environment, prompt="Password") == "of the environment"
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        with pytest.raises(BadKeyFile, match="nobody to ask"):
            keystore.read_password(None, {}, prompt="Password")
    with pytest.raises(BadKeyFile, match="cannot be read"):
        keystore.read_password(tmp_path / "none", {}, prompt="Password")
