"""The `swarm-ledger` program: its commands and their options.

Owns the command line alone; what a command does stands in `commands.py`, imported when one runs, so that `--help` is
quick. Which ledger and whose account also come from SWARM_LEDGER, SWARM_LEDGER_RPC (separated by commas),
SWARM_LEDGER_CONTRACT and SWARM_LEDGER_KEYSTORE.
"""

import importlib.metadata
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from swarm_ledger.access import Access, Kind, Openers

app = typer.Typer(
    name="swarm-ledger",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, errors too: {error, message, remedy}, exit code 1.")]
Amount = Annotated[str, typer.Argument(help="In the ledger's currency: 0.25.")]

# The options that say which ledger, and whose account; every command has them.
_ACCESS: dict[str, tuple[Any, Any]] = {
    "ledger": (
        Annotated[Kind, typer.Option("--ledger", envvar="SWARM_LEDGER", help="The swarm's own bank, or a contract.")],
        "embedded",
    ),
    "bootstrap": (
        Annotated[
            list[str] | None,
            typer.Option(
                "--bootstrap",
                metavar="ADDRESS",
                help="embedded: a node of the swarm; may be given several times [env: SWARM_BOOTSTRAP].",
            ),
        ],
        None,
    ),
    "account": (
        Annotated[
            Path | None,
            typer.Option(
                "--account",
                metavar="FILE",
                help="embedded: the account's key, such as account.key in a node's directory; default: this user's.",
            ),
        ],
        None,
    ),
    "rpc": (
        Annotated[
            list[str] | None,
            typer.Option(
                "--rpc",
                metavar="URL",
                help="evm: an endpoint of the chain; several are used in turn [env: SWARM_LEDGER_RPC].",
            ),
        ],
        None,
    ),
    "contract": (
        Annotated[
            str | None,
            typer.Option(
                "--contract", metavar="ADDRESS", envvar="SWARM_LEDGER_CONTRACT", help="evm: where the ledger is."
            ),
        ],
        None,
    ),
    "chain_id": (
        Annotated[int | None, typer.Option("--chain-id", help="evm: refuse endpoints of any other chain.")],
        None,
    ),
    "keystore": (
        Annotated[
            Path | None,
            typer.Option(
                "--keystore", metavar="FILE", envvar="SWARM_LEDGER_KEYSTORE", help="evm: the account's encrypted key."
            ),
        ],
        None,
    ),
    "password_file": (
        Annotated[
            Path | None,
            typer.Option(
                "--password-file",
                metavar="FILE",
                help="evm: the key's password is its first line; else SWARM_LEDGER_PASSWORD, else it is asked for.",
            ),
        ],
        None,
    ),
    "confirmations": (
        Annotated[int, typer.Option("--confirmations", help="evm: blocks until something counts.")],
        3,
    ),
    "max_gas_price_gwei": (
        Annotated[float, typer.Option("--max-gas-price", metavar="GWEI", help="evm: pay at most so much for gas.")],
        200.0,
    ),
}


def _show_version(asked: bool) -> None:
    if asked:
        print(f"swarm-ledger {importlib.metadata.version('swarm-inference')}")
        raise typer.Exit()


Version = Annotated[
    bool, typer.Option("--version", help="Show the release and exit.", callback=_show_version, is_eager=True)
]


@app.callback()
def _options(version: Version = False) -> None:
    """Look after the money that pays for GPU time: deposits, channels and what was earned."""


def _with_access(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes an `access` the options that make one."""
    own = [each for each in inspect.signature(command).parameters.values() if each.name != "access"]

    def run(**values: Any) -> None:
        chosen = {name: values.pop(name) for name in _ACCESS}
        chosen["rpc"] = _several(chosen["rpc"], "SWARM_LEDGER_RPC")
        chosen["bootstrap"] = _several(chosen["bootstrap"], "SWARM_BOOTSTRAP")
        command(access=Access(**chosen), **values)

    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _ACCESS.items()
    ]
    own = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in (*own, *shared)}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


@app.command()
@_with_access
def deploy(
    access: Access,
    context: typer.Context,
    token: Annotated[
        str | None, typer.Option("--token", metavar="ADDRESS", help="Count in this ERC-20; else the chain's coin.")
    ] = None,
    close_delay_s: Annotated[
        int, typer.Option("--close-delay", metavar="SECONDS", help="How long a payee can still redeem.")
    ] = 24 * 3600,
    json: Json = False,
) -> None:
    """Make a new ledger on a chain: nobody owns it, and it cannot be changed."""
    from swarm_ledger import commands

    raise typer.Exit(commands.deploy(access, token, close_delay_s, as_json=json))


@app.command()
@_with_access
def account(
    access: Access,
    context: typer.Context,
    new: Annotated[bool, typer.Option("--new", help="Make a key and encrypt it into the file of --keystore.")] = False,
    json: Json = False,
) -> None:
    """Show the address of a key file."""
    from swarm_ledger import commands

    raise typer.Exit(commands.account(access, is_new=new, as_json=json))


@app.command()
@_with_access
def balance(access: Access, context: typer.Context, json: Json = False) -> None:
    """Show what the account has: free, in channels, and what others have put aside for it."""
    from swarm_ledger import commands

    raise typer.Exit(commands.balance(access, _openers(context), as_json=json))


@app.command()
@_with_access
def deposit(access: Access, context: typer.Context, amount: Amount, json: Json = False) -> None:
    """Put money into the ledger."""
    from swarm_ledger import commands

    raise typer.Exit(commands.deposit(access, _openers(context), amount, as_json=json))


@app.command()
@_with_access
def channels(access: Access, context: typer.Context, json: Json = False) -> None:
    """List the open channels that the account pays from, or is paid by."""
    from swarm_ledger import commands

    raise typer.Exit(commands.channels(access, _openers(context), as_json=json))


@app.command()
@_with_access
def redeem(
    access: Access,
    context: typer.Context,
    vouchers: Annotated[
        str | None,
        typer.Argument(
            help="JSON file, - for standard input: a list of {payer, payee, signer, salt, cumulative, signature}."
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option("--store", metavar="FILE", help="The vouchers of a node that does not run, in its own folder."),
    ] = None,
    json: Json = False,
) -> None:
    """Collect what vouchers are worth; it goes to the payee that each names."""
    from swarm_ledger import commands

    raise typer.Exit(commands.redeem(access, _openers(context), vouchers, store, as_json=json))


@app.command()
@_with_access
def close(
    access: Access,
    context: typer.Context,
    channel: Annotated[str, typer.Argument(help="A channel's id, or its beginning, as `channels` shows it.")],
    refund: Annotated[
        bool, typer.Option("--refund", help="As the payee: give back at once what was not redeemed.")
    ] = False,
    json: Json = False,
) -> None:
    """Get what is left of a channel back: ask to close it, and after the delay run this again."""
    from swarm_ledger import commands

    raise typer.Exit(commands.close(access, _openers(context), channel, refund=refund, as_json=json))


@app.command()
@_with_access
def withdraw(
    access: Access,
    context: typer.Context,
    amount: Annotated[str, typer.Argument(help="In the ledger's currency, or: all.")],
    to: Annotated[str | None, typer.Option("--to", metavar="ADDRESS", help="Default: the account itself.")] = None,
    json: Json = False,
) -> None:
    """Take money out of the ledger."""
    from swarm_ledger import commands

    raise typer.Exit(commands.withdraw(access, _openers(context), amount, to, as_json=json))


@app.command()
@_with_access
def history(
    access: Access,
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", help="At most so many.", min=1)] = 100,
    json: Json = False,
) -> None:
    """List what happened to the account's money, the latest first."""
    from swarm_ledger import commands

    raise typer.Exit(commands.history(access, _openers(context), limit, as_json=json))


def _several(given: list[str] | None, variable: str) -> tuple[str, ...]:
    if given:
        return tuple(given)
    return tuple(item for text in os.environ.get(variable, "").split(",") if (item := text.strip()))


def _openers(context: typer.Context) -> Openers:
    return cast(Openers, context.obj or {})


def main(openers: Openers | None = None) -> None:
    """Run the program; `openers` adds the ledgers that cannot be reached from this package."""
    app(prog_name="swarm-ledger", obj=openers or {})


if __name__ == "__main__":
    main()
