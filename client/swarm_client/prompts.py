"""What a prompt can be, and how a list of prompts is told from one prompt.

    str                         text, tokenized with the model's own special tokens
    [int, ...]                  token ids, used as they are
    [{"role", "content"}, ...]  chat messages, rendered by the model's template
    [prompt, ...]               several of the above: they run as concurrent sessions

The first element decides: an int makes a list ids, a mapping makes it a chat, a string or a list makes it several
prompts. A list that mixes them is refused, and so is an empty one: it could be any of them. Called by `model.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swarm_client.errors import EmptyPrompt, InvalidParameter

Chat = Sequence[Mapping[str, Any]]
Prompt = str | Sequence[int] | Chat
Prompts = Prompt | Sequence[Prompt]

_ALLOWED = "a string, a list of token ids, a list of chat messages, or a list of such prompts"


@dataclass(frozen=True, slots=True)
class TextPrompt:
    text: str


@dataclass(frozen=True, slots=True)
class IdsPrompt:
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    messages: tuple[Mapping[str, Any], ...]


OnePrompt = TextPrompt | IdsPrompt | ChatPrompt


def read_prompts(prompts: Prompts) -> OnePrompt | list[OnePrompt]:
    """Return what kind of prompt this is, or a list where several were given.

    Raises EmptyPrompt, InvalidParameter.
    """
    if _holds_several(prompts):
        return [read_prompt(prompt) for prompt in prompts]  # type: ignore[arg-type]
    return read_prompt(prompts)  # type: ignore[arg-type]


def read_prompt(prompt: Prompt) -> OnePrompt:
    """Return what kind of prompt this is; several are refused. Raises EmptyPrompt, InvalidParameter."""
    if isinstance(prompt, str):
        if not prompt:
            raise EmptyPrompt
        return TextPrompt(prompt)
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray | memoryview):
        raise InvalidParameter("prompt", prompt, _ALLOWED)
    if not prompt:
        raise EmptyPrompt
    if all(isinstance(item, Mapping) for item in prompt):
        return ChatPrompt(tuple(item for item in prompt if isinstance(item, Mapping)))
    ids = tuple(item for item in prompt if isinstance(item, int) and not isinstance(item, bool))
    if len(ids) != len(prompt):
        raise InvalidParameter("prompt", prompt, _ALLOWED)
    return IdsPrompt(ids)


def _holds_several(prompts: Prompts) -> bool:
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not prompts:
        return False
    return isinstance(prompts[0], str) or (isinstance(prompts[0], Sequence) and not isinstance(prompts[0], bytes))
