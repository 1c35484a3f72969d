"""What the commands of `swarm-client` do. Each returns the program's exit code.

Results go to standard output; the summary, and errors for people, go to standard error. With --json everything goes to
standard output, errors as {"error", "message", "remedy"}. Called by `__main__.py`.
"""

import asyncio
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from swarm_client.blocking import RemoteModel
from swarm_client.errors import ClientError, InvalidParameter, NoBootstrap
from swarm_client.money import WalletOptions
from swarm_client.parameters import Arguments, read_money
from swarm_client.results import Generation
from swarm_client.show import (
    Failed,
    error_json,
    for_terminal,
    generation_json,
    model_json,
    route_json,
    summary_line,
)
from swarm_client.world import real_world
from swarm_ledger.errors import LedgerError
from swarm_net.directory import RemoteDirectory
from swarm_net.endpoint import Endpoint
from swarm_net.errors import NetError
from swarm_net.messages import ModelSummary

FAILED = 1
PIPED_WIDTH = 240
INTERRUPTED = 130  # as shells report a program ended by Ctrl-C


@dataclass(frozen=True, slots=True)
class Constraints:
    """Options that have to be read before they are arguments."""

    logit_bias: list[str]
    json_schema: str | None
    grammar: str | None

    def read(self) -> Arguments:
        """Return them as arguments. Raises InvalidParameter."""
        return {
            "logit_bias": dict(_read_bias(text) for text in self.logit_bias) or None,
            "json_schema": _text_or_file(self.json_schema),
            "grammar": None if self.grammar is None else _read_file("grammar", self.grammar),
        }


@dataclass(frozen=True, slots=True)
class Purse:
    """What an answer is paid from."""

    wallet: str | None
    daily_budget: str | None
    rpc: list[str]
    keystore: Path | None
    password_file: Path | None

    def connect(self, model: str, bootstrap: list[str]) -> RemoteModel:
        """Find a model, to be paid for from here. Raises InvalidParameter."""
        daily = read_money("daily_budget", self.daily_budget)
        if self.wallet == "none":
            return RemoteModel.connect(model, bootstrap, wallet="none")
        options = WalletOptions(
            folder=Path(self.wallet) if self.wallet else None,
            daily_budget=daily,
            rpc=tuple(self.rpc),
            keystore=self.keystore,
            password_file=self.password_file,
        )
        return RemoteModel.connect(model, bootstrap, wallet=options)


def generate(
    model: str,
    bootstrap: list[str],
    prompt: str | None,
    ids: str | None,
    arguments: Arguments,
    *,
    constraints: Constraints,
    purse: Purse,
    samples: int,
    as_json: bool,
) -> int:
    """Continue a prompt, given as text, as ids or on standard input; with several samples JSON is a list."""

    def run() -> None:
        given = _prompt(prompt, ids)
        asked: Arguments = {**arguments, **constraints.read()}
        with purse.connect(model, bootstrap) as remote:
            if samples != 1:
                _show_samples(remote.samples(given, samples, **asked), as_json)
                return
            if as_json:
                _print_json(generation_json(remote.generate(given, **asked)))
                return
            generation = _stream(remote, given, asked)
        if generation is not None:
            _to_people().print(summary_line(generation), style="dim", markup=False, highlight=False)

    return _guarded(run, as_json)


def chat(
    model: str,
    bootstrap: list[str],
    system: str | None,
    arguments: Arguments,
    *,
    constraints: Constraints,
    purse: Purse,
    as_json: bool,
) -> int:
    """Talk: each line is a message, the history goes along. With JSON, each answer is one line."""

    def run() -> None:
        asked: Arguments = {**arguments, **constraints.read()}
        messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        with purse.connect(model, bootstrap) as remote:
            while (line := _line(as_json)) is not None:
                if not line.strip():
                    continue
                messages.append({"role": "user", "content": line})
                answer = _answer(remote, messages, asked, as_json)
                if answer is None:
                    messages.pop()
                else:
                    messages.append({"role": "assistant", "content": answer})

    return _guarded(run, as_json)


def models(bootstrap: list[str], *, as_json: bool) -> int:
    """List what is served."""

    def run() -> None:
        summaries = asyncio.run(_models(bootstrap))
        if as_json:
            _print_json([model_json(summary) for summary in summaries])
            return
        table = Table("model", "revision", "blocks", "nodes", "replicas", "missing", box=None)
        for summary in summaries:
            missing = ", ".join(f"{start}:{end}" for start, end in summary.missing)
            counts = (summary.blocks, summary.nodes, summary.replicas)
            name, revision = escape(for_terminal(summary.model.name)), summary.model.revision[:12]
            table.add_row(name, revision, *map(str, counts), missing or "-")
        _print_table(table)

    return _guarded(run, as_json)


def route(model: str, bootstrap: list[str], max_tokens: int, *, as_json: bool) -> int:
    """Show the route that would be taken."""

    def run() -> None:
        with RemoteModel.connect(model, bootstrap) as remote:
            found = remote.route(max_tokens)
        if as_json:
            _print_json(route_json(found))
            return
        table = Table(
            "hop", "blocks", "peer", "prefill tokens/s", "decode tokens/s", "busy", "KV tokens free", box=None
        )
        for place, hop in enumerate(found.hops):
            record = hop.record
            table.add_row(
                str(place),
                f"{hop.start}:{hop.end}",
                record.peer,
                f"{record.prefill_tokens_per_s:.0f}",
                f"{record.decode_tokens_per_s:.0f}",
                f"{record.load.busy:.0%}",
                str(record.load.kv_tokens_free),
            )
        _print_table(table)

    return _guarded(run, as_json)


# -- parts -------------------------------------------------------------------------------------------------------------


def _guarded(run: Callable[[], None], as_json: bool) -> int:
    """Run a command; say what went wrong, and what to do, without a traceback."""
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s: %(message)s")  # routes given up stand in the result
    logging.getLogger("swarm_net.snapshot").setLevel(logging.WARNING)  # which of several revisions was taken does not
    try:
        run()
    except (ClientError, NetError, LedgerError) as error:
        if as_json:
            _print_json(error_json(error))
        else:
            _say_error(error)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        return FAILED
    return 0


def _prompt(prompt: str | None, ids: str | None) -> str | list[int]:
    if ids is not None:
        if prompt is not None:
            raise InvalidParameter("ids", ids, "ids, or else a prompt: not both")
        try:
            return [int(number) for number in ids.split(",")] if ids.strip() else []
        except ValueError as error:
            raise InvalidParameter("ids", ids, "whole numbers separated by commas: 1,2,3") from error
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise InvalidParameter("prompt", "", "a text as argument or on standard input, or --ids 1,2,3")
    return sys.stdin.read()


def _read_bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError as error:
        raise InvalidParameter("logit_bias", text, "ID=VALUE, a token id and a number: 42=-100") from error


def _text_or_file(schema: str | None) -> str | None:
    """Return a schema that was given as text or as the name of a file."""
    return schema if schema is None or schema.lstrip().startswith("{") else _read_file("json_schema", schema)


def _read_file(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidParameter(name, path, f"a file that can be read ({error})") from error


def _show_samples(generations: list[Generation], as_json: bool) -> None:
    if as_json:
        _print_json([generation_json(generation) for generation in generations])
        return
    shown: Callable[[str], str] = for_terminal if sys.stdout.isatty() else str
    for generation in generations:
        print(shown(generation.text), flush=True)
        _to_people().print(summary_line(generation), style="dim", markup=False, highlight=False)


def _stream(
    remote: RemoteModel, prompt: str | list[int] | Sequence[dict[str, str]], arguments: Arguments
) -> Generation | None:
    """Write text as it comes; None if Ctrl-C stopped it."""
    shown: Callable[[str], str] = for_terminal if sys.stdout.isatty() else str
    with remote.stream(prompt, **arguments) as stream:
        for token in stream:
            sys.stdout.write(shown(token.text))
            sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    return stream.generation


def _answer(remote: RemoteModel, messages: Sequence[dict[str, str]], arguments: Arguments, as_json: bool) -> str | None:
    """Give one answer; None where there was none, for an error that another message may not meet."""
    try:
        if as_json:
            generation: Generation | None = remote.generate(list(messages), **arguments)
            assert generation is not None
            _print_json(generation_json(generation))
            return generation.text
        generation = _stream(remote, list(messages), arguments)
    except KeyboardInterrupt:
        sys.stdout.write("\n")
        return None
    except (ClientError, NetError, LedgerError) as error:
        if as_json:
            _print_json(error_json(error))
        else:
            _say_error(error)
        return None
    if generation is None:
        return None
    _to_people().print(summary_line(generation), style="dim", markup=False, highlight=False)
    return generation.text


def _line(as_json: bool) -> str | None:
    """Read a message; None at the end of input."""
    try:
        return input("" if as_json or not sys.stdin.isatty() else "> ")
    except EOFError:
        return None


async def _models(bootstrap: list[str]) -> list[ModelSummary]:
    if not bootstrap:
        raise NoBootstrap
    world = real_world()
    endpoint = Endpoint(peer=world.peer, transport=world.transport, clock=world.clock)
    try:
        return await RemoteDirectory(endpoint, bootstrap).models()
    finally:
        await endpoint.close()


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False), flush=True)


def _print_table(table: Table) -> None:
    # Peer ids are there to be copied: a file or a pipe gets them whole, on lines as long as they have to be.
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    Console(width=width).print(table, markup=False)


def _say_error(error: Failed) -> None:
    console = _to_people()
    console.print(for_terminal(str(error)), style="red", markup=False, highlight=False, soft_wrap=True)
    console.print(for_terminal(error.remedy()), markup=False, highlight=False, soft_wrap=True)


def _to_people() -> Console:
    return Console(stderr=True)
