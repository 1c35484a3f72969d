"""What a node and its grammar processes say to each other, and how it is framed: `u32 length | MessagePack`.

    server     Ready, then a descriptor for each grammar
    grammar    Compile -> Compiled or Refused, then a descriptor for each session
    session    Follow -> Masks or Refused, as often as there are tokens

Both ends are ours, on one machine and of one version, so nothing here is negotiated; but a process that a stranger's
grammar has broken may say anything. Used by `grammar_process.py` and by the node (`grammars.py`); imports no xgrammar.
"""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

LENGTH_BYTES: Final = 4
MAX_FRAME_BYTES: Final = 64 << 20

GrammarKind = Literal["json_schema", "regex", "ebnf"]


class Ready(Struct, tag=True, frozen=True):
    """The vocabulary has been read."""


class Compile(Struct, tag=True, frozen=True):
    """Compile this."""

    kind: GrammarKind
    text: str


class Compiled(Struct, tag=True, frozen=True):
    """It is a grammar."""


class Follow(Struct, tag=True, frozen=True):
    """Keep so many tokens of the answer, put these behind them, and say what may follow.

    The last `drafts` of `ids` are guesses: say what may stand in place of each of them too.
    """

    keep: Annotated[int, Meta(ge=0)]
    ids: tuple[int, ...]
    drafts: Annotated[int, Meta(ge=0)] = 0


class Masks(Struct, tag=True, frozen=True):
    """One row for each guess up to the first that may not stand there, and one behind them if there is none.

    A row is a bit for each token of the vocabulary, the first token in the lowest bit of the first byte.
    """

    rows: tuple[bytes, ...]


class Refused(Struct, tag=True, frozen=True):
    """It cannot be compiled, or the answer does not match it."""

    reason: str


Message = Ready | Compile | Compiled | Follow | Masks | Refused

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Return a message as a frame."""
    body = _encoder.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


def length_of(head: bytes) -> int:
    """Return how long the body behind this head is. Raises ValueError for more than a frame may have."""
    length = int.from_bytes(head, "little")
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes, at most {MAX_FRAME_BYTES} are allowed")
    return length


def decode(body: bytes) -> Message:
    """Return the message in a frame's body. Raises ValueError."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
