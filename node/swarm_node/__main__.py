"""`swarm-node`: start a node, look after it, show its settings.

Owns the command line alone. Imports stay light here, so that `--help` answers at once: `program.py`, with torch behind
it, is imported when a node really starts.
"""

import asyncio
import contextlib
import inspect
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic.fields import FieldInfo

from swarm_net.version import release
from swarm_node.data_dir import RunningNode, default_base, is_locked, running
from swarm_node.errors import NoBankHere, NoSuchNode
from swarm_node.settings import SWITCHES, Settings, metavar, resolve

app = typer.Typer(
    name="swarm-node",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Show where each setting comes from.", no_args_is_help=True)
app.add_typer(config_app, name="config")

Config = Annotated[Path | None, typer.Option(metavar="FILE", help="TOML file with these settings.")]
Flag = str | list[str] | bool | None
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]
NodeName = Annotated[str, typer.Option("--node", metavar="NAME", help="Name or data directory; default: all.")]


def _show_version(asked: bool) -> None:
    if asked:
        print(f"swarm-node {release()}")
        raise typer.Exit()


Version = Annotated[
    bool, typer.Option("--version", help="Show the release and exit.", callback=_show_version, is_eager=True)
]


@app.callback()
def _options(version: Version = False) -> None:
    """Serve a span of a model's blocks to a swarm."""


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes `**flags` one option for each setting, so that names and help stand in one place."""
    own = [each for each in inspect.signature(command).parameters.values() if each.kind is not each.VAR_KEYWORD]
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=_annotation(name, field),
        )
        for name, field in Settings.model_fields.items()
    ]
    command.__signature__ = inspect.Signature([*options, *own])  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in (*options, *own)}
    return command


def _annotation(name: str, field: FieldInfo) -> Any:
    flag = "--" + name.replace("_", "-")
    if name in SWITCHES:
        return Annotated[bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", help=field.description, metavar=" ")]
    kind = list[str] if isinstance(field.default, list) else str
    return Annotated[kind | None, typer.Option(flag, help=field.description, metavar=metavar(name))]


@app.command()
@_with_settings
def start(*, config: Config = None, as_json: Json = False, **flags: Flag) -> None:
    """Load a span and serve it until Ctrl-C."""
    with _Errors(as_json):
        sourced = resolve(flags, os.environ, config)
        from swarm_node import program

        program.main(sourced.settings, as_json=as_json, warnings=sourced.warnings)


@config_app.command("show")
@_with_settings
def config_show(*, config: Config = None, as_json: Json = False, **flags: Flag) -> None:
    """Show every setting's value and origin: flag, environment, file or default."""
    with _Errors(as_json):
        sourced = resolve(flags, os.environ, config)
        values = sourced.settings.model_dump()
        if as_json:
            print(
                json.dumps({name: {"value": value, "origin": sourced.origins[name]} for name, value in values.items()})
            )
            return
        from swarm_node.reporting import show_settings

        show_settings(values, sourced)


@app.command()
def status(node: NodeName = "", as_json: Json = False) -> None:
    """Show the nodes that run on this machine."""
    with _Errors(as_json):
        from swarm_node.operator import ask_all, show_status

        rows = asyncio.run(ask_all(_running(node)))
        if as_json:
            print(json.dumps(rows))
            return
        from rich.console import Console

        show_status(rows, Console())


@app.command()
def stop(node: NodeName = "", as_json: Json = False) -> None:
    """Stop a node, or all nodes of this machine, and wait until they have ended."""
    with _Errors(as_json):
        found = _running(node)
        for each in found:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(each.pid, signal.SIGTERM)
        deadline_s = time.monotonic() + 30
        while any(_runs(each) for each in found) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        ended = [{"node": each.name, "pid": each.pid, "stopped": not _runs(each)} for each in found]
        if as_json:
            print(json.dumps(ended))
        else:
            for each_ended in ended:
                print(f"{each_ended['node']} {'stopped' if each_ended['stopped'] else 'still stops'}")
        if not all(each_ended["stopped"] for each_ended in ended):
            raise typer.Exit(1)


@app.command()
def mint(
    account: Annotated[str, typer.Argument(metavar="ACCOUNT", help="Address of a client's or node's account.")],
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="Of credits, such as 2 or 0.5.")],
    node: NodeName = "",
    as_json: Json = False,
) -> None:
    """Give an account credits, as the operator of the node that hosts the swarm's bank."""
    with _Errors(as_json):
        from swarm_ledger.accounts import parse_address
        from swarm_ledger.currencies import CREDITS
        from swarm_node.operator import ask_mint

        try:
            to, units = parse_address(account), CREDITS.parse(amount)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        host = next((each for each in _running(node) if "bank" in each.state), None)
        if host is None:
            raise NoBankHere
        minted = asyncio.run(ask_mint(host, to, units))
        if as_json:
            print(json.dumps(minted))
        else:
            print(f"{CREDITS.format(units)} minted; {account} has {CREDITS.format(int(minted['balance']))}")


def _runs(node: RunningNode) -> bool:
    """Whether a node has not ended: its lock goes first, its process a moment later."""
    import psutil

    try:
        return is_locked(node.path) or psutil.Process(node.pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _running(name: str) -> list[RunningNode]:
    if not (found := running(default_base(), name)):
        raise NoSuchNode(name, tuple(each.name for each in running(default_base())))
    return found


class _Errors:
    """Turns errors that a person can act on into words and exit code 1; anything else is a bug and keeps its trace."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) >= 1:
            error = error.exceptions[0]
        if isinstance(error, Exception) and callable(remedy := getattr(error, "remedy", None)):
            self._exit(error, str(remedy()))

    def _exit(self, error: Exception, remedy: str) -> NoReturn:
        from swarm_node.reporting import report_error

        report_error(error, remedy, _code(error), as_json=self._as_json)
        raise typer.Exit(1)


def _code(error: Exception) -> str:
    """The error's name for programs: its code, or its class in snake case."""
    code: Any = getattr(error, "code", None)
    if isinstance(code, str):
        return code
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in type(error).__name__).lstrip("_")


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
