"""The text as training sees it: what is held out, the two forms it is rendered in, and the batches drawn from it.

Owns the split and the sampling; knows nothing of models. Called by `train.py` and, a batch at a time, by `fit.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from swarm_sim.demo_model.tokenizer import CHAT, END

HELD_OUT_SHARE = 0.1
CHAT_SHARE = 0.2  # of the rows of a batch: enough to learn that END closes a speech in a chat

Encode = Callable[[str], list[int]]


class TextTooShort(Exception):
    """A text, or the part of it that is held out, does not fill one window."""

    def __init__(self, tokens: int, window: int) -> None:
        super().__init__(
            f"{tokens} tokens of text or of its held-out tenth do not fill a window of {window}: "
            "take a longer text or a shorter window"
        )
        self.tokens = tokens
        self.window = window


def split(text: str) -> tuple[str, str]:
    """Cut off the last tenth, at the end of a speech: whole scenes, so that training sees nothing of them."""
    cut = text.rfind("\n\n", 0, int(len(text) * (1 - HELD_OUT_SHARE))) + len("\n\n")
    return text[:cut], text[cut:]


def as_chat(text: str) -> str:
    """Render a play as the chat template would: a token closes each speech, in place of an empty line."""
    return CHAT + text.strip().replace("\n\n", END) + END


@dataclass(frozen=True, slots=True)
class TrainingText:
    """A text in plain form and as one long chat."""

    plain: Tensor  # [tokens]
    chat: Tensor  # [tokens], the first is CHAT
    chat_starts: Tensor  # [speeches], where in `chat` a speech starts that a whole window follows
    window: int

    @classmethod
    def encode(cls, text: str, encode: Encode, window: int) -> Self:
        """Raise TextTooShort if the text does not fill a window in either form."""
        plain, chat = torch.tensor(encode(text)), torch.tensor(encode(as_chat(text)))
        if (tokens := min(len(plain), len(chat))) <= window:
            raise TextTooShort(tokens, window)
        (end,) = encode(END)
        starts = torch.cat([torch.tensor([1]), (chat == end).nonzero().flatten() + 1])
        return cls(plain, chat, starts[starts + window <= len(chat)], window)

    def batch(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draw windows, each with the token that follows: chats and, mostly, plain text from anywhere."""
        drawn = []
        for _ in range(rows):
            if torch.rand((), generator=generator) < CHAT_SHARE:
                start = self.chat_starts[torch.randint(len(self.chat_starts), (), generator=generator)]
                drawn.append(torch.cat([self.chat[:1], self.chat[start : start + self.window]]))
            else:
                start = torch.randint(len(self.plain) - self.window, (), generator=generator)
                drawn.append(self.plain[start : start + self.window + 1])
        return torch.stack(drawn)  # [rows, window + 1]


def held_out_rows(tokens: list[int], window: int) -> Tensor:
    """Cut tokens into windows, each with the token that follows; a rest that fills no window is left out."""
    if len(tokens) <= window:
        raise TextTooShort(len(tokens), window)
    return torch.tensor(tokens).unfold(0, window + 1, window)  # [rows, window + 1]
