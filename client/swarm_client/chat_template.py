"""A model's own chat template, run in a sandbox: it came from a stranger.

Owns where the template is found and what it may use: jinja2's ImmutableSandboxedEnvironment with the few functions that
transformers offers to templates (`raise_exception`, `strftime_now`, `tojson`, the `generation` tag). Messages are
rebuilt from plain JSON values before the template sees them. Run by `template_process.py`, in bounded time and memory.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from swarm_client.errors import BadChat

MAX_RENDERED_CHARACTERS = 16 * 1024 * 1024
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """Turns messages into the text that the model was trained on."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], now: Callable[[], datetime]) -> None:
        """Raises BadChat for a template that is not one."""
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _environment(now).from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise BadChat(reason=str(error)) from error

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the text up to where the model's answer begins. Raises BadChat."""
        plain = plain_messages(messages)
        pieces, size = [], 0
        try:
            for piece in self._template.generate(messages=plain, add_generation_prompt=True, **self._special_tokens):
                pieces.append(piece)
                if (size := size + len(piece)) > MAX_RENDERED_CHARACTERS:
                    raise BadChat(reason=f"more than {MAX_RENDERED_CHARACTERS} characters come out")
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise BadChat(reason=str(error)) from error
        except (RecursionError, MemoryError) as error:
            raise BadChat(reason="it does not end") from error
        return "".join(pieces)


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Rebuild messages from plain JSON values. Raises BadChat for one without role and content."""
    for message in messages:
        if not isinstance(message.get("role"), str) or "content" not in message:
            raise BadChat(reason="a message without role and content")
    return [_plain(message) for message in messages]


def find_template(files: Mapping[str, bytes]) -> str | None:
    """Return a model's template from its small files; of several named ones, the one called `default`."""
    if (jinja := files.get("chat_template.jinja")) is not None:
        return jinja.decode(errors="replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = _object(files.get(name)).get("chat_template")
        if isinstance(template, list):
            named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
            template = named.get("default")
        if isinstance(template, str):
            return template
    return None


def special_tokens(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the texts of bos, eos and their like, which templates write out."""
    found: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        content = _object(files.get(file))
        for name in _SPECIAL_NAMES:
            value = content.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found[name] = text
    return found


def _object(content: bytes | None) -> dict[str, Any]:
    try:
        value = json.loads(content) if content is not None else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _plain(value: object) -> Any:
    """Rebuild a value from plain JSON types; anything else becomes text that names its type."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)  # a subclass may have methods that the sandbox does not know to be dangerous
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks answers for training; here it is only let through."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment(now: Callable[[], datetime]) -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(str(message))

    def strftime_now(form: str) -> str:
        return now().strftime(form)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """jinja2's own filter escapes for HTML."""
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols], cache_size=0
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment
