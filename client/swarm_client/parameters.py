"""What a caller may ask of a generation: checked values, defaults, the seed; pure.

An argument that is given wins. What is not given comes from the model's generation_config.json if that says
`do_sample`; else decoding is greedy (temperature 0), with top_k, top_p and min_p switched off. A repetition penalty of
that file always counts, as it does in transformers. If nobody says how many tokens, it is DEFAULT_MAX_NEW_TOKENS.

Sampling without a seed draws one, and the result reports it: the same seed, prompt and parameters give the same tokens
whoever serves them. Several prompts with one given seed all use it; without one, each draws its own.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, TypedDict, TypeVar, get_args

import msgspec

from swarm_client.codec_choice import CodecChoice
from swarm_client.drafts import Drafter
from swarm_client.errors import InvalidParameter
from swarm_client.generation_config import SamplingDefaults
from swarm_net.messages import (
    MAX_BIASED_TOKENS,
    MAX_GRAMMAR_BYTES,
    Grammar,
    GrammarKind,
    SamplingSpec,
    TokenBias,
    encode_grammar,
)

DEFAULT_MAX_NEW_TOKENS = 256
MAX_NEW_TOKENS = 1_000_000
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_TOP_LOGPROBS = 20
MAX_PENALTY = 2.0
MAX_BIAS = 100.0
MAX_SAMPLES = 64
MAX_SEED = 2**63 - 1
_DRAWN_SEED_BITS = 53  # a JSON reader that knows only doubles keeps it exact
_ABOVE_ZERO = sys.float_info.min

T = TypeVar("T")


class Arguments(TypedDict, total=False):
    """The keyword arguments of generate() and stream()."""

    max_new_tokens: int | None  # at most so many; fewer where the model's context ends
    temperature: float | None  # 0: greedy
    top_p: float | None  # keep the likeliest tokens that together have this probability
    top_k: int | None  # keep the so many likeliest; 0: all
    min_p: float | None  # keep those with at least this share of the likeliest one's probability
    repetition_penalty: float | None  # above 1: what was there already becomes less likely
    stop: str | Sequence[str] | None  # where the text ends; not part of it
    seed: int | None
    logprobs: bool | int  # True: of the tokens; a number: of so many of the likeliest besides
    codec: CodecChoice | None  # of activations between nodes: "raw" (nothing is lost), "int8" or "auto"
    draft: str | Path | Drafter | None  # who guesses ahead: "ngram", a small model's directory or id, or one's own
    frequency_penalty: float | None  # above 0: the more often a token is in the answer, the less likely it becomes
    presence_penalty: float | None  # above 0: what is in the answer becomes less likely
    logit_bias: Mapping[int, float] | None  # by token id; -100 all but forbids a token, 100 all but forces it
    json_schema: str | Mapping[str, Any] | None  # the answer is JSON under this schema
    regex: str | None  # the answer matches this expression as a whole
    grammar: str | None  # the answer matches this grammar in xgrammar's EBNF, from its rule `root` on
    budget: str | float | None  # at most so much of the nodes' currency for this generation
    max_price: str | float | None  # of the nodes' currency, for a million tokens through the whole model


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """`Arguments` with what was not given."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: str | Sequence[str] | None = None
    seed: int | None = None
    logprobs: bool | int = False
    codec: CodecChoice | None = None
    draft: str | Path | Drafter | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    json_schema: str | Mapping[str, Any] | None = None
    regex: str | None = None
    grammar: str | None = None
    budget: str | float | None = None
    max_price: str | float | None = None


@dataclass(frozen=True, slots=True)
class Parameters:
    """Checked and complete; `seed` is None for greedy decoding."""

    max_new_tokens: int
    stop: tuple[str, ...]
    seed: int | None
    sampling: SamplingSpec
    codec: CodecChoice
    draft: str | Drafter | None = None  # "ngram", or a checkpoint's directory or id
    budget: Decimal | None = None
    max_price: Decimal | None = None


def resolve(asked: Asked, defaults: SamplingDefaults, entropy: Callable[[int], bytes]) -> Parameters:
    """Return checked parameters with every default filled in.

    Args:
        asked: the caller's arguments.
        defaults: what the model's generation_config.json says.
        entropy: returns n random bytes; asked only where a seed has to be drawn.

    Raises InvalidParameter.
    """
    sampled = defaults if defaults.do_sample else SamplingDefaults()
    temperature = _first(asked.temperature, sampled.temperature, 1.0 if defaults.do_sample else 0.0)
    top_p = _first(asked.top_p, sampled.top_p, 1.0)
    top_k = _first(asked.top_k, sampled.top_k, 0)
    min_p = _first(asked.min_p, sampled.min_p, 0.0)
    penalty = _first(asked.repetition_penalty, defaults.repetition_penalty, 1.0)
    max_new_tokens = _first(asked.max_new_tokens, defaults.max_new_tokens, DEFAULT_MAX_NEW_TOKENS)

    _check_number("temperature", temperature, 0.0, 100.0, "a number from 0 (greedy) to 100")
    _check_number("top_p", top_p, _ABOVE_ZERO, 1.0, "a number above 0 and up to 1 (1: off)")
    _check_number("min_p", min_p, 0.0, 1.0, "a number from 0 (off) to 1")
    _check_number("repetition_penalty", penalty, 0.01, 100.0, "a number from 0.01 to 100 (1: off)")
    frequency_penalty, presence_penalty = asked.frequency_penalty or 0.0, asked.presence_penalty or 0.0
    off_or = f"a number from -{MAX_PENALTY:g} to {MAX_PENALTY:g} (0: off)"
    _check_number("frequency_penalty", frequency_penalty, -MAX_PENALTY, MAX_PENALTY, off_or)
    _check_number("presence_penalty", presence_penalty, -MAX_PENALTY, MAX_PENALTY, off_or)
    _check_int("top_k", top_k, 0, 2**31 - 1, "a whole number, 0 (off) or more")
    _check_int("max_new_tokens", max_new_tokens, 1, MAX_NEW_TOKENS, f"a whole number from 1 to {MAX_NEW_TOKENS}")
    if asked.seed is not None:
        _check_int("seed", asked.seed, 0, MAX_SEED, "a whole number from 0 to 2**63 - 1")
    codec = asked.codec or "raw"
    if codec not in get_args(CodecChoice):
        raise InvalidParameter("codec", codec, "raw, int8 or auto")
    top_logprobs = 0
    if not isinstance(asked.logprobs, bool):
        _check_int(
            "logprobs", asked.logprobs, 0, MAX_TOP_LOGPROBS, f"True, False, or a number up to {MAX_TOP_LOGPROBS}"
        )
        top_logprobs = asked.logprobs
    seed = None
    if temperature > 0:
        seed = asked.seed if asked.seed is not None else int.from_bytes(entropy(8)) >> (64 - _DRAWN_SEED_BITS)
    return Parameters(
        max_new_tokens=max_new_tokens,
        stop=_read_stop(asked.stop),
        seed=seed,
        sampling=SamplingSpec(
            temperature=float(temperature),
            top_k=top_k,
            top_p=float(top_p),
            min_p=float(min_p),
            repetition_penalty=float(penalty),
            seed=seed or 0,
            logprobs=asked.logprobs is not False,
            top_logprobs=top_logprobs,
            grammar=_read_grammar(asked),
            frequency_penalty=float(frequency_penalty),
            presence_penalty=float(presence_penalty),
            logit_bias=_read_logit_bias(asked.logit_bias or {}),
        ),
        codec=codec,
        draft=_read_draft(asked.draft),
        budget=read_money("budget", asked.budget),
        max_price=read_money("max_price", asked.max_price),
    )


def read_money(name: str, value: str | float | None) -> Decimal | None:
    if value is None:
        return None
    try:
        amount = Decimal(str(value))
    except InvalidOperation as error:
        raise InvalidParameter(name, value, "an amount, 0 or more") from error
    if not amount.is_finite() or amount < 0:
        raise InvalidParameter(name, value, "an amount, 0 or more")
    return amount


def _read_draft(draft: str | Path | Drafter | None) -> str | Drafter | None:
    if draft is None or isinstance(draft, Drafter):
        return draft
    if not isinstance(draft, str | Path) or not str(draft):
        raise InvalidParameter("draft", draft, '"ngram", "none", the directory of a small model, or a Drafter')
    return None if draft == "none" else str(draft)


def resolve_samples(
    asked: Asked, samples: int, defaults: SamplingDefaults, entropy: Callable[[int], bytes]
) -> list[Parameters]:
    """Return the parameters of several samples of one prompt: their seeds follow one another. Raises as `resolve`."""
    _check_int("n", samples, 1, MAX_SAMPLES, f"a whole number from 1 to {MAX_SAMPLES}")
    first = resolve(asked, defaults, entropy)
    seeds = [None if first.seed is None else (first.seed + number) % (MAX_SEED + 1) for number in range(samples)]
    return [
        replace(first, seed=seed, sampling=msgspec.structs.replace(first.sampling, seed=seed or 0)) for seed in seeds
    ]


def _read_logit_bias(logit_bias: Mapping[int, float]) -> tuple[TokenBias, ...]:
    allowed = f"up to {MAX_BIASED_TOKENS} token ids, each with a number from -{MAX_BIAS:g} to {MAX_BIAS:g}"
    if not isinstance(logit_bias, Mapping) or len(logit_bias) > MAX_BIASED_TOKENS:
        raise InvalidParameter("logit_bias", logit_bias, allowed)
    for token, bias in logit_bias.items():
        _check_int("logit_bias", token, 0, 2**31 - 1, allowed)
        _check_number("logit_bias", bias, -MAX_BIAS, MAX_BIAS, allowed)
    return tuple(TokenBias(token, float(bias)) for token, bias in sorted(logit_bias.items()))


def _read_grammar(asked: Asked) -> bytes:
    """Return the grammar's bytes, empty where none was asked for."""
    kinds: dict[str, tuple[GrammarKind, object]] = {
        "json_schema": ("json_schema", asked.json_schema),
        "regex": ("regex", asked.regex),
        "grammar": ("ebnf", asked.grammar),
    }
    given = [(name, kind, value) for name, (kind, value) in kinds.items() if value is not None]
    if not given:
        return b""
    name, kind, value = given[0]
    if len(given) > 1:
        raise InvalidParameter(given[1][0], given[1][2], f"one of json_schema, regex and grammar; {name} is given too")
    allowed = f"a text of 1 to {MAX_GRAMMAR_BYTES} bytes"
    if name == "json_schema":
        allowed = f"a JSON schema of at most {MAX_GRAMMAR_BYTES} bytes: an object, or its text"
        value = _schema_text(value, allowed)
    if not isinstance(value, str) or not 1 <= len(value.encode()) <= MAX_GRAMMAR_BYTES:
        raise InvalidParameter(name, value, allowed)
    return encode_grammar(Grammar(kind=kind, text=value))


def _schema_text(schema: object, allowed: str) -> str:
    try:
        if isinstance(schema, str):
            schema = json.loads(schema)
        if not isinstance(schema, Mapping):
            raise InvalidParameter("json_schema", schema, allowed)
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidParameter("json_schema", schema, allowed) from error


def _read_stop(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else stop
    allowed = f"a string or up to {MAX_STOPS} strings of 1 to {MAX_STOP_CHARACTERS} characters"
    if not isinstance(stops, Sequence) or len(stops) > MAX_STOPS:
        raise InvalidParameter("stop", stop, allowed)
    for text in stops:
        if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            raise InvalidParameter("stop", stop, allowed)
    return tuple(dict.fromkeys(stops))


def _first(asked: T | None, default: T | None, otherwise: T) -> T:
    return asked if asked is not None else default if default is not None else otherwise


def _check_number(name: str, value: object, least: float, most: float, allowed: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidParameter(name, value, allowed)


def _check_int(name: str, value: object, least: int, most: int, allowed: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidParameter(name, value, allowed)
