"""What the commands of `swarm-ledger` do. Each returns the program's exit code.

Results go to standard output, errors for people to standard error. With --json everything goes to standard output,
errors as {"error", "message", "remedy"}. Called by `__main__.py`.
"""

import asyncio
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from swarm_ledger import claims_file
from swarm_ledger.access import Access, Openers, OpenLedger
from swarm_ledger.accounts import Account, Address, address_text, parse_address
from swarm_ledger.channels import ChannelKey, Claim, Voucher, VoucherDigests
from swarm_ledger.earning import Earnings
from swarm_ledger.errors import BadOption, LedgerError, MissingPackage, NoChannel, TooEarly
from swarm_ledger.ledger import ChannelEntry, Ledger
from swarm_ledger.node_store import NodeStore, Redemption
from swarm_ledger.show import (
    CHANNEL_COLUMNS,
    EVENT_COLUMNS,
    channel_json,
    channel_row,
    error_json,
    event_json,
    event_row,
    for_terminal,
    ledger_json,
    moment,
)

FAILED = 1
INTERRUPTED = 130  # as shells report a program ended by Ctrl-C
PIPED_WIDTH = 240


def deploy(access: Access, token: str | None, close_delay_s: int, *, as_json: bool) -> int:
    """Make a contract."""

    async def run() -> None:
        if access.ledger != "evm":
            raise BadOption("--ledger", "only a chain takes new contracts: --ledger evm")
        if not 0 <= close_delay_s <= 2**32:
            raise BadOption("--close-delay", "between 0 and 2^32 seconds")
        from swarm_ledger.evm import opening
        from swarm_ledger.evm.deploying import deploy as make

        of_token = None if token is None else opening.address_option("--token", token)
        async with opening.endpoints_of(access) as endpoints:
            sending, signer = opening.sending_of(access), opening.load_account(access)
            made = await make(endpoints, signer, token=of_token, close_delay_s=close_delay_s, sending=sending)
            found = {"contract": address_text(made), "chain_id": await endpoints.chain_id()}
        _show(found, f"ledger {found['contract']} on chain {found['chain_id']}", as_json)

    return _guarded(run, as_json)


def account(access: Access, *, is_new: bool, as_json: bool) -> int:
    """Show a key file's address; make the file first if asked to."""

    async def run() -> None:
        if access.ledger != "evm":
            raise BadOption("--ledger", "only accounts on a chain have key files: --ledger evm")
        from swarm_ledger import keystore
        from swarm_ledger.evm import opening

        if is_new:
            file, made = opening.keystore_of(access), Account.generate(secrets.token_bytes)
            password = keystore.read_password(
                access.password_file, os.environ, prompt=f"New password for {file.name}", is_new=True
            )
            keystore.create(file, made, password)
        else:
            made = opening.load_account(access)
        _show({"account": address_text(made.address)}, address_text(made.address), as_json)

    return _guarded(run, as_json)


def balance(access: Access, openers: Openers, *, as_json: bool) -> int:
    """Show what there is."""

    async def run(ledger: Ledger) -> None:
        free, entries = await ledger.balance(), await ledger.channels()
        paying = sum(_left(entry) for entry in entries if entry.key.payer == ledger.address)
        paid = sum(_left(entry) for entry in entries if entry.key.payee == ledger.address)
        coins = await _coins(ledger)
        found = {
            **ledger_json(ledger),
            "free": str(free),
            "in_channels": str(paying),
            "held_for_account": str(paid),
            "wallet_wei": None if coins is None else str(coins),
        }
        if as_json:
            _print_json(found)
            return
        write = ledger.currency.format
        table = Table(show_header=False, box=None)
        table.add_row("account", address_text(ledger.address))
        table.add_row("free", write(free))
        table.add_row("in channels", write(paying))
        table.add_row("others hold for it", write(paid))
        if coins is not None:
            table.add_row("in the wallet, for gas", f"{coins / 10**18:.6f} of the chain's coin")
        _print_table(table)

    return _with_ledger(run, access, openers, as_json)


def deposit(access: Access, openers: Openers, amount: str, *, as_json: bool) -> int:
    """Put money in."""

    async def run(ledger: Ledger) -> None:
        units = _amount(ledger, amount)
        before = await ledger.balance()
        await ledger.deposit(units)
        credited = await ledger.balance() - before
        found = {**ledger_json(ledger), "deposited": str(units), "credited": str(credited)}
        _show(found, f"{ledger.currency.format(credited)} credited", as_json)

    return _with_ledger(run, access, openers, as_json)


def channels(access: Access, openers: Openers, *, as_json: bool) -> int:
    """List channels."""

    async def run(ledger: Ledger) -> None:
        entries = await ledger.channels()
        if as_json:
            _print_json({**ledger_json(ledger), "channels": [channel_json(each, ledger.address) for each in entries]})
            return
        table = Table(*CHANNEL_COLUMNS, box=None)
        for entry in entries:
            table.add_row(*channel_row(entry, ledger.address, ledger.currency))
        _print_table(table)

    return _with_ledger(run, access, openers, as_json)


def redeem(access: Access, openers: Openers, vouchers: str | None, store: Path | None, *, as_json: bool) -> int:
    """Collect vouchers from a file, or from a node's store."""

    async def run(ledger: Ledger) -> None:
        if (vouchers is None) == (store is None):
            raise BadOption("vouchers", "give a file of them, or --store")
        if store is not None:
            claims, paid = await _redeem_stored(ledger, store)
        else:
            claims = claims_file.read(_text("vouchers", vouchers or ""))
            digests = VoucherDigests(ledger.domain)
            for claim in claims:  # one that is bad would have the ledger refuse them all
                digests.check(Voucher(claim.key.id, claim.cumulative, claim.signature), claim.key.signer)
            paid = await ledger.redeem(claims)
        found = {**ledger_json(ledger), "vouchers": len(claims), "paid": str(paid)}
        _show(found, f"{ledger.currency.format(paid)} for {_payees(claims)}", as_json)

    return _with_ledger(run, access, openers, as_json)


def close(access: Access, openers: Openers, channel: str, *, refund: bool, as_json: bool) -> int:
    """Ask to close a channel, or finish it."""

    async def run(ledger: Ledger) -> None:
        entry = _find(await ledger.channels(), channel)
        key, state = entry.key, entry.state
        closes_at_s = state.closes_at_s
        if key.payer != ledger.address and not refund:
            raise BadOption("--refund", "this gives all that was not redeemed back to the payer: redeem, then say so")
        if key.payer == ledger.address and not closes_at_s:
            await ledger.request_close(key)
            after = await ledger.channel(key.id)
            closes_at_s = after.closes_at_s if after else 0
            is_closed = False
        else:
            is_closed = await _finish(ledger, key)
        if is_closed:
            line = f"closed; {ledger.currency.format(_left(entry))} are back with {address_text(key.payer)}"
        else:
            line = f"closing: run this again after {moment(closes_at_s)} UTC"
        found = {
            **ledger_json(ledger),
            "channel": "0x" + key.id.hex(),
            "closed": is_closed,
            "closes_at_s": None if is_closed else closes_at_s,
        }
        _show(found, line, as_json)

    return _with_ledger(run, access, openers, as_json)


def withdraw(access: Access, openers: Openers, amount: str, to: str | None, *, as_json: bool) -> int:
    """Take money out."""

    async def run(ledger: Ledger) -> None:
        units = await ledger.balance() if amount == "all" else _amount(ledger, amount)
        receiver = ledger.address if to is None else _address("--to", to)
        await ledger.withdraw(units, receiver)
        found = {**ledger_json(ledger), "withdrawn": str(units), "to": address_text(receiver)}
        _show(found, f"{ledger.currency.format(units)} to {address_text(receiver)}", as_json)

    return _with_ledger(run, access, openers, as_json)


def history(access: Access, openers: Openers, limit: int, *, as_json: bool) -> int:
    """List what happened."""

    async def run(ledger: Ledger) -> None:
        events = await ledger.history(limit)
        if as_json:
            _print_json({**ledger_json(ledger), "events": [event_json(event) for event in events]})
            return
        table = Table(*EVENT_COLUMNS, box=None)
        for event in events:
            table.add_row(*event_row(event, ledger.currency))
        _print_table(table)

    return _with_ledger(run, access, openers, as_json)


# -- parts -------------------------------------------------------------------------------------------------------------


def _with_ledger(run: Callable[[Ledger], Awaitable[None]], access: Access, openers: Openers, as_json: bool) -> int:
    async def opened() -> None:
        async with _opener(access, openers)(access) as ledger:
            await run(ledger)

    return _guarded(opened, as_json)


def _opener(access: Access, openers: Openers) -> OpenLedger:
    if (given := openers.get(access.ledger)) is not None:
        return given
    if access.ledger == "evm":
        from swarm_ledger.evm.opening import open_evm

        return open_evm
    raise BadOption("--ledger", f"this program has no way to the {access.ledger} ledger: --ledger evm")


def _guarded(run: Callable[[], Awaitable[None]], as_json: bool) -> int:
    """Run a command; say what went wrong, and what to do, without a traceback."""
    logging.basicConfig(level=logging.ERROR)

    async def awaited() -> None:
        await run()

    try:
        asyncio.run(awaited())
    except LedgerError as error:
        return _fail(error, as_json)
    except ModuleNotFoundError as error:
        if error.name not in ("web3", "eth_account", "eth_abi"):
            raise
        return _fail(MissingPackage(package=error.name, extra="evm"), as_json)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        return FAILED
    return 0


def _fail(error: LedgerError, as_json: bool) -> int:
    if as_json:
        _print_json(error_json(error))
    else:
        console = Console(stderr=True)
        console.print(for_terminal(str(error)), style="red", markup=False, highlight=False, soft_wrap=True)
        console.print(for_terminal(error.remedy()), markup=False, highlight=False, soft_wrap=True)
    return FAILED


def _open_store(ledger: Ledger, file: Path) -> NodeStore:
    if not file.is_file():
        raise BadOption("--store", f"{file} is no file; a node keeps vouchers-*.sqlite in its folder")
    return NodeStore(file, ledger.domain, ledger.address)


async def _redeem_stored(ledger: Ledger, file: Path) -> tuple[list[Claim], int]:
    """Redeem what a node has kept, and note that in its store; returns the vouchers and what was paid."""
    store = _open_store(ledger, file)
    try:
        earnings = Earnings(VoucherDigests(ledger.domain), ledger.address)
        store.restore(earnings)
        channels = [channel for channel in earnings.channels.values() if channel.best.signature]
        claims = [Claim(each.key, each.best.cumulative, each.best.signature) for each in channels]
        paid = await ledger.redeem(claims)
        for channel in channels:
            if (state := await ledger.channel(channel.id)) is not None:
                earnings.learn(channel.key, state)
        store.record(Redemption(int(time.time()), paid, len(claims)), channels)
    finally:
        store.close()
    return claims, paid


async def _coins(ledger: Ledger) -> int | None:
    """Return what pays for gas; None where nothing does."""
    if ledger.domain.chain_id == 0:
        return None
    from swarm_ledger.evm.evm_ledger import EvmLedger

    return await ledger.coins() if isinstance(ledger, EvmLedger) else None


def _amount(ledger: Ledger, text: str) -> int:
    try:
        return ledger.currency.parse(text)
    except ValueError as error:
        raise BadOption("amount", str(error)) from error


def _address(option: str, text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise BadOption(option, str(error)) from error


def _find(entries: Sequence[ChannelEntry], text: str) -> ChannelEntry:
    digits = text.lower().removeprefix("0x")
    found = [entry for entry in entries if digits and entry.key.id.hex().startswith(digits)]
    if len(found) > 1:
        raise BadOption("channel", f"{len(found)} channels begin with {text}")
    if not found:
        raise NoChannel
    return found[0]


async def _finish(ledger: Ledger, key: ChannelKey) -> bool:
    """Close a channel for good; False if it is too early, by the ledger's clock."""
    try:
        await ledger.finish_close(key)
    except TooEarly:
        return False
    return True


def _left(entry: ChannelEntry) -> int:
    return entry.state.allocated - entry.state.claimed


def _payees(claims: Sequence[Claim]) -> str:
    payees = {address_text(claim.key.payee) for claim in claims}
    return payees.pop() if len(payees) == 1 else f"{len(payees)} payees"


def _text(name: str, path: str) -> str:
    if path == "-":
        return sys.stdin.read()
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadOption(name, f"{path} cannot be read ({error})") from error


def _show(found: dict[str, Any], line: str, as_json: bool) -> None:
    if as_json:
        _print_json(found)
    else:
        print(for_terminal(line), flush=True)


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False), flush=True)


def _print_table(table: Table) -> None:
    # Addresses are there to be copied: a file or a pipe gets them whole, on lines as long as they have to be.
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    Console(width=width).print(table, markup=False)
