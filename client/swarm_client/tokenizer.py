"""The model's tokenizer, from its tokenizer.json alone.

Owns encoding (with the special tokens that the file asks for, or without) and the choice of a detokenizer; the work is
done by the `tokenizers` library. Made by `model_files.py`.
"""

import json
from collections.abc import Callable

import tokenizers

from swarm_client.detokenizer import ByteDetokenizer, Detokenizer, WindowDetokenizer
from swarm_net.errors import Malformed


class Tokenizer:
    """Text to ids, and ids to text piece by piece."""

    def __init__(self, tokenizer_json: bytes) -> None:
        """Raises Malformed for a file that the library cannot read."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(tokenizer_json)
            decoder = json.loads(tokenizer_json).get("decoder") or {}
        except Exception as error:  # the library raises bare Exception
            raise Malformed(what="tokenizer.json", reason=str(error)) from error
        # Padding and truncation belong to training.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._is_byte_level = decoder.get("type") == "ByteLevel"

    @property
    def vocabulary(self) -> int:
        """How many ids there are, added ones among them."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def has_vocabulary_of(self, other: "Tokenizer") -> bool:
        """Tell whether both mean the same by each id."""
        return bool(self._tokenizer.get_vocab() == other._tokenizer.get_vocab())

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Return the ids of a text; `special_tokens` adds those that the model wants around every text."""
        return list(self._tokenizer.encode(text, add_special_tokens=special_tokens).ids)

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of ids, without special tokens."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def detokenizer(self) -> Detokenizer:
        """Return a fresh one, for one generation."""
        return ByteDetokenizer(self._token_bytes()) if self._is_byte_level else WindowDetokenizer(self.decode)

    def _token_bytes(self) -> Callable[[int], bytes]:
        special = {token for token, added in self._tokenizer.get_added_tokens_decoder().items() if added.special}
        id_to_token = self._tokenizer.id_to_token

        def token_bytes(token: int) -> bytes:
            text = None if token in special else id_to_token(token)
            if text is None:  # also an id of the padding that models have behind their vocabulary
                return b""
            try:
                return bytes([_BYTE_OF[character] for character in text])
            except KeyError:
                return str(text).encode()

        return token_bytes


def _byte_of() -> dict[str, int]:
    """Return GPT-2's table of characters that stand for bytes (openai/gpt-2, encoder.py, bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_of()
