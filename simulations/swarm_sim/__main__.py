"""`swarm-sim`: simulate a swarm in virtual time, or run a real one on this machine.

Owns the command line alone. Imports stay light here, so that `--help` answers at once.
"""

import json
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from swarm_net.version import release

app = typer.Typer(
    name="swarm-sim",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")]


def _show_version(asked: bool) -> None:
    if asked:
        print(f"swarm-sim {release()}")
        raise typer.Exit()


Version = Annotated[
    bool, typer.Option("--version", help="Show the release and exit.", callback=_show_version, is_eager=True)
]


@app.callback()
def _options(version: Version = False) -> None:
    """Simulate a swarm, or run a real one on this machine."""


@app.command()
def run(
    *,
    nodes: Annotated[int, typer.Option(help="How many nodes serve.")] = 30,
    sessions: Annotated[int, typer.Option(help="How many sessions generate.")] = 100,
    regions: Annotated[int, typer.Option(help="How many regions they live in, up to 6.")] = 3,
    crash_rate: Annotated[float, typer.Option(help="Crashes of each node in an hour.")] = 0.0,
    blocks: Annotated[int, typer.Option(help="Blocks of the model.")] = 24,
    duration: Annotated[float, typer.Option(help="Virtual seconds in which the sessions begin.")] = 60.0,
    drafts: Annotated[float, typer.Option(help="Clients guess ahead; so large a share of guesses is right.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same run, to the trace hash.")] = 1,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every event there: where two runs differ, so do these.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the real node and client code in virtual time over a simulated network, and check every token.

    Exits with 1 if a token was wrong, an exception was lost, a session was left behind, or none has finished.
    """
    with _Errors(as_json):
        from swarm_sim.run import run_command
        from swarm_sim.scenario import Scenario

        scenario = Scenario(
            nodes=nodes,
            sessions=sessions,
            regions=regions,
            crashes_per_node_hour=crash_rate,
            blocks=blocks,
            duration_s=duration,
            seed=seed,
            right_share=drafts,
        )
        if not run_command(scenario, trace_file=trace, as_json=as_json):
            raise typer.Exit(1)


@app.command()
def local(
    *,
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A checkpoint's directory; default: the demo model.")
    ] = None,
    nodes: Annotated[int, typer.Option(help="How many node processes share the model's blocks.")] = 3,
    prompt: Annotated[str, typer.Option(help="What the model continues.")] = "ROMEO:",
    max_new_tokens: Annotated[int, typer.Option(help="How many tokens it generates at most.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.8,
    seed: Annotated[int, typer.Option(help="Of the sampling: the same seed, the same text.")] = 1,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    price: Annotated[
        str, typer.Option(metavar="AMOUNT", help="Credits for an hour of each node; 0: free; default: by its hardware.")
    ] = "",
    ledger: Annotated[
        Literal["embedded", "evm"], typer.Option(help="Paid at a bank of the swarm, or on a chain started for it.")
    ] = "embedded",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the swarm running until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Start a real swarm of processes on this machine, generate with it, show where the time went, stop it."""
    with _Errors(as_json):
        from swarm_sim.local import LocalOptions, local_command

        options = LocalOptions(
            model=model,
            nodes=nodes,
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            dtype=dtype,
            price=price,
            ledger=ledger,
            keep=keep,
            as_json=as_json,
        )
        raise typer.Exit(local_command(options))


class _Errors:
    """Turns errors that a person can act on into words and exit code 1; anything else is a bug and keeps its trace."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, Exception) and callable(remedy := getattr(error, "remedy", None)):
            self._exit(error, str(remedy()))

    def _exit(self, error: Exception, remedy: str) -> NoReturn:
        if self._as_json:
            from swarm_client.errors import code

            print(json.dumps({"error": code(error), "message": str(error), "remedy": remedy}))
        else:
            from rich.console import Console

            console = Console(stderr=True, highlight=False)
            console.print("[bold red]error[/]", end=" ")
            console.print(str(error), markup=False, soft_wrap=True)
            console.print(f"      {remedy}", markup=False, soft_wrap=True)
        raise typer.Exit(1)


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
