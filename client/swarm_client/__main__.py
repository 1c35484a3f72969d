"""The `swarm-client` program: its commands and their options.

Owns the command line alone; what a command does stands in `commands.py`, imported when one runs, so that `--help` is
quick. Bootstrap addresses also come from SWARM_BOOTSTRAP (separated by commas), the model from SWARM_MODEL.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from swarm_net.version import release

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Bootstrap = Annotated[
    list[str] | None,
    typer.Option(
        "--bootstrap",
        metavar="ADDRESS",
        help="A node of the swarm, as `swarm-node start` prints it; may be given several times [env: SWARM_BOOTSTRAP].",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model", envvar="SWARM_MODEL", help="Name, name@revision, revision, or a directory with its tokenizer."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, errors too: {error, message, remedy}, exit code 1.")]
MaxNewTokens = Annotated[int | None, typer.Option("--max-new-tokens", help="At most so many (256).")]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", help="0: greedy. Default: greedy, unless the model's generation_config samples."),
]
TopK = Annotated[int | None, typer.Option("--top-k", help="Keep the so many likeliest tokens; 0: all.")]
TopP = Annotated[float | None, typer.Option("--top-p", help="Keep the likeliest with this probability together.")]
MinP = Annotated[float | None, typer.Option("--min-p", help="Keep those with this share of the likeliest's.")]
RepetitionPenalty = Annotated[
    float | None, typer.Option("--repetition-penalty", help="Above 1: what was there is less likely.")
]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Text to stop at; may be given several times.")]
Seed = Annotated[int | None, typer.Option("--seed", help="The same seed gives the same tokens.")]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="ngram|DIR|none",
        help="Guess ahead, by the text so far or a small model in a directory: faster, the same tokens.",
    ),
]

Codec = Annotated[
    Literal["raw", "int8", "auto"] | None,
    typer.Option("--codec", help="Activations between nodes: raw (lossless, default), int8 (half the bytes), auto."),
]


def _show_version(asked: bool) -> None:
    if asked:
        print(f"swarm-client {release()}")
        raise typer.Exit()


Version = Annotated[
    bool, typer.Option("--version", help="Show the release and exit.", callback=_show_version, is_eager=True)
]

FrequencyPenalty = Annotated[
    float | None, typer.Option("--frequency-penalty", help="Above 0: the more often in the answer, the less likely.")
]
PresencePenalty = Annotated[
    float | None, typer.Option("--presence-penalty", help="Above 0: what is in the answer is less likely.")
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option("--logit-bias", metavar="ID=VALUE", help="-100 forbids a token, 100 forces it; may be given again."),
]
JsonSchema = Annotated[
    str | None,
    typer.Option("--json-schema", metavar="FILE|TEXT", help="The answer is JSON under this schema."),
]
Regex = Annotated[str | None, typer.Option("--regex", help="The answer matches this expression as a whole.")]
GrammarFile = Annotated[
    str | None, typer.Option("--grammar", metavar="FILE", help="The answer matches this grammar (EBNF, rule `root`).")
]
Budget = Annotated[
    str | None, typer.Option("--budget", metavar="AMOUNT", help="At most so much of the nodes' currency for an answer.")
]
MaxPrice = Annotated[
    str | None,
    typer.Option("--max-price", metavar="AMOUNT", help="Of the nodes' currency, for a million tokens; 0: free nodes."),
]
WalletFolder = Annotated[
    str | None,
    typer.Option(
        "--wallet", envvar="SWARM_WALLET", metavar="DIR|none", help="The account that pays; none: free nodes alone."
    ),
]
DailyBudget = Annotated[
    str | None,
    typer.Option(
        "--daily-budget", envvar="SWARM_DAILY_BUDGET", metavar="AMOUNT", help="At most so much a day, for all answers."
    ),
]

RpcUrls = Annotated[
    list[str] | None,
    typer.Option(
        "--rpc", metavar="URL", help="An endpoint of the chain that nodes are paid on [env: SWARM_LEDGER_RPC]."
    ),
]
Keystore = Annotated[
    Path | None,
    typer.Option(
        "--keystore", metavar="FILE", envvar="SWARM_LEDGER_KEYSTORE", help="The encrypted key that pays on a chain."
    ),
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        "--password-file", metavar="FILE", help="Of the keystore; else SWARM_LEDGER_PASSWORD, else it is asked for."
    ),
]


@app.callback()
def _options(version: Version = False) -> None:
    """Generate text with models that live in a swarm."""


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str | None, typer.Argument(help="Text to continue; without it, standard input.")] = None,
    bootstrap: Bootstrap = None,
    ids: Annotated[str | None, typer.Option("--ids", help="Token ids instead of text: 1,2,3.")] = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    stop: Stop = None,
    seed: Seed = None,
    codec: Codec = None,
    draft: Draft = None,
    frequency_penalty: FrequencyPenalty = None,
    presence_penalty: PresencePenalty = None,
    logit_bias: LogitBias = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    grammar: GrammarFile = None,
    budget: Budget = None,
    max_price: MaxPrice = None,
    wallet: WalletFolder = None,
    daily_budget: DailyBudget = None,
    rpc: RpcUrls = None,
    keystore: Keystore = None,
    password_file: PasswordFile = None,
    samples: Annotated[
        int, typer.Option("-n", "--n", help="So many answers at once, with the seeds --seed and those behind it.")
    ] = 1,
    logprobs: Annotated[bool, typer.Option("--logprobs", help="With --json: the tokens' log-probabilities.")] = False,
    top_logprobs: Annotated[
        int | None, typer.Option("--top-logprobs", help="With --json: also those of so many of the likeliest tokens.")
    ] = None,
    json: Json = False,
) -> None:
    """Continue a prompt."""
    from swarm_client import commands

    raise typer.Exit(
        commands.generate(
            model,
            _addresses(bootstrap),
            prompt,
            ids,
            {
                "max_new_tokens": max_new_tokens,
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "min_p": min_p,
                "repetition_penalty": repetition_penalty,
                "stop": stop,
                "seed": seed,
                "codec": codec,
                "draft": draft,
                "frequency_penalty": frequency_penalty,
                "presence_penalty": presence_penalty,
                "regex": regex,
                "budget": budget,
                "max_price": max_price,
                "logprobs": logprobs if top_logprobs is None else top_logprobs,
            },
            constraints=commands.Constraints(logit_bias or [], json_schema, grammar),
            purse=commands.Purse(wallet, daily_budget, _urls(rpc), keystore, password_file),
            samples=samples,
            as_json=json,
        )
    )


@app.command()
def chat(
    model: Model,
    bootstrap: Bootstrap = None,
    system: Annotated[str | None, typer.Option("--system", help="What the model is told first.")] = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    stop: Stop = None,
    seed: Seed = None,
    codec: Codec = None,
    draft: Draft = None,
    frequency_penalty: FrequencyPenalty = None,
    presence_penalty: PresencePenalty = None,
    logit_bias: LogitBias = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    grammar: GrammarFile = None,
    budget: Budget = None,
    max_price: MaxPrice = None,
    wallet: WalletFolder = None,
    daily_budget: DailyBudget = None,
    rpc: RpcUrls = None,
    keystore: Keystore = None,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Talk with a model. Ctrl-C stops an answer, Ctrl-D ends."""
    from swarm_client import commands

    raise typer.Exit(
        commands.chat(
            model,
            _addresses(bootstrap),
            system,
            {
                "max_new_tokens": max_new_tokens,
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "min_p": min_p,
                "repetition_penalty": repetition_penalty,
                "stop": stop,
                "seed": seed,
                "codec": codec,
                "draft": draft,
                "frequency_penalty": frequency_penalty,
                "presence_penalty": presence_penalty,
                "regex": regex,
                "budget": budget,
                "max_price": max_price,
            },
            constraints=commands.Constraints(logit_bias or [], json_schema, grammar),
            purse=commands.Purse(wallet, daily_budget, _urls(rpc), keystore, password_file),
            as_json=json,
        )
    )


@app.command()
def models(bootstrap: Bootstrap = None, json: Json = False) -> None:
    """List the models that the swarm serves."""
    from swarm_client import commands

    raise typer.Exit(commands.models(_addresses(bootstrap), as_json=json))


@app.command()
def route(
    model: Model,
    bootstrap: Bootstrap = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Tokens that there must be room for.")] = 1,
    json: Json = False,
) -> None:
    """Show the route that a session would take now."""
    from swarm_client import commands

    raise typer.Exit(commands.route(model, _addresses(bootstrap), max_tokens, as_json=json))


def _addresses(given: list[str] | None) -> list[str]:
    if given:
        return given
    return [address for text in os.environ.get("SWARM_BOOTSTRAP", "").split(",") if (address := text.strip())]


def _urls(given: list[str] | None) -> list[str]:
    return given or [url for text in os.environ.get("SWARM_LEDGER_RPC", "").split(",") if (url := text.strip())]


def main() -> None:
    """Run the program."""
    app(prog_name="swarm-client")


if __name__ == "__main__":
    main()
