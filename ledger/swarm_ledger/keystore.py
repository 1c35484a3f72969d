"""Keys of accounts in encrypted files (Web3 Secret Storage, version 3), as wallets and other programs write them.

Passwords come from a file, from the environment or from a prompt; never from a command line, where every user of the
machine can read them. Neither they nor keys are shown, logged or put into errors. Called by `swarm-ledger` and by
whoever pays or is paid on a chain.
"""

import getpass
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from swarm_ledger.accounts import Account, address_text
from swarm_ledger.errors import BadKeyFile
from swarm_ledger.recursion_limit import kept_recursion_limit

with kept_recursion_limit():
    from eth_account import Account as Keyfile

PASSWORD_VARIABLE: Final = "SWARM_LEDGER_PASSWORD"  # noqa: S105
MOST_BYTES: Final = 16_384
_OTHERS: Final = 0o077


def create(file: Path, account: Account, password: str, *, work_factor: int | None = None) -> None:
    """Write an account's key for its owner alone (0600), never over another file.

    `work_factor` is scrypt's; without one a guess of the password costs a second and 256 MB. Raises BadKeyFile.
    """
    text = json.dumps(Keyfile.encrypt(account.secret, password, kdf="scrypt", iterations=work_factor))
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    except FileExistsError as error:
        raise BadKeyFile(file=str(file), reason="it exists, and keys are never overwritten") from error
    except OSError as error:
        raise BadKeyFile(file=str(file), reason=error.strerror or "it cannot be written") from error


def load(file: Path, password: str) -> Account:
    """Return the account in a file. Raises BadKeyFile, also for a file that others than its owner can read."""
    keyfile = _read(file)
    try:
        secret = bytes(Keyfile.decrypt(keyfile, password))
    except ValueError as error:
        reason = "wrong password" if "MAC" in str(error) else "not an encrypted key"
        raise BadKeyFile(file=str(file), reason=reason) from None
    except (TypeError, KeyError, NotImplementedError):
        raise BadKeyFile(file=str(file), reason="not an encrypted key (version 3)") from None
    account = Account(secret)
    named = keyfile.get("address")
    if isinstance(named, str) and named.lower().removeprefix("0x") not in ("", account.address.hex()):
        reason = f"it names another account than its key's, {address_text(account.address)}"
        raise BadKeyFile(file=str(file), reason=reason)
    return account


def read_password(file: Path | None, environment: Mapping[str, str], *, prompt: str, is_new: bool = False) -> str:
    """Return a password: the first line of a file, else of the environment, else what a person types.

    Raises BadKeyFile where there is nobody to ask, or where it was typed differently the second time.
    """
    if file is not None:
        try:
            with file.open(encoding="utf-8") as stream:
                return stream.readline(MOST_BYTES).rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise BadKeyFile(file=str(file), reason="the password cannot be read from it") from error
    if (given := environment.get(PASSWORD_VARIABLE)) is not None:
        return given
    if not sys.stdin.isatty():
        raise BadKeyFile(file="password", reason=f"none in {PASSWORD_VARIABLE}, no --password-file, nobody to ask")
    password = getpass.getpass(f"{prompt}: ")
    if is_new and getpass.getpass(f"{prompt} again: ") != password:
        raise BadKeyFile(file="password", reason="the second one is another one")
    return password


def _read(file: Path) -> dict[str, object]:
    try:
        with file.open(encoding="utf-8") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            text = stream.read(MOST_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it cannot be read"
        raise BadKeyFile(file=str(file), reason=reason) from error
    if os.name == "posix" and mode & _OTHERS:
        raise BadKeyFile(file=str(file), reason=f"others can read it (mode {mode & 0o777:04o}): chmod 600")
    try:
        found = json.loads(text) if len(text) <= MOST_BYTES else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadKeyFile(file=str(file), reason="not an encrypted key")
    return found
