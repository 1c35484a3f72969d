"""The key of an account in a plain file: for credits of an embedded ledger, which are worth what a group makes of them.

Keys of accounts on a chain belong into the encrypted `keystore.py`. Nodes and clients call this when they start.
"""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from swarm_ledger.accounts import KEY_BYTES, Account
from swarm_ledger.errors import BadKeyFile

_TEXT_BYTES = 2 * KEY_BYTES + 1  # hexadecimal, and the end of the line


def load_or_create(file: Path, entropy: Callable[[int], bytes] = secrets.token_bytes) -> Account:
    """Return the account whose key a file keeps, and make both on the first start.

    Raises BadKeyFile for a file that holds no such key, or that others than its owner can read.
    """
    try:
        if not file.exists():
            _create(file, Account.generate(entropy))
        return _load(file)
    except OSError as error:
        raise BadKeyFile(file=str(file), reason=error.strerror or str(error)) from error


def load(file: Path) -> Account:
    """Return the account whose key a file keeps. Raises BadKeyFile, also where there is none."""
    try:
        return _load(file)
    except OSError as error:
        raise BadKeyFile(file=str(file), reason=error.strerror or str(error)) from error


def _load(file: Path) -> Account:
    with file.open("rb") as stream:
        mode = os.fstat(stream.fileno()).st_mode
        text = stream.read(_TEXT_BYTES + 1)
    if os.name == "posix" and mode & 0o077:
        raise BadKeyFile(file=str(file), reason=f"others can read it (mode {mode & 0o777:04o})")
    try:
        secret = bytes.fromhex(text.decode("ascii"))
        if len(secret) != KEY_BYTES:
            raise ValueError
        return Account(secret)
    except ValueError:  # not repeated: what stands in the file may be most of a key
        raise BadKeyFile(file=str(file), reason="it holds no secp256k1 key") from None


def _create(file: Path, account: Account) -> None:
    """Write the key beside its place and link it there: a crash leaves no half of it, and of two first starts at once
    one wins for both."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(account.secret.hex().encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(draft, file)
        except FileExistsError:
            return
    finally:
        draft.unlink(missing_ok=True)
