"""A model of digests: cheap to run, and wrong at once if anything in its order is.

Owns the arithmetic, once for the executor and once for the check. In place of attention, what a block computes at a
position is a digest of its input there and of its own digest at the position before, so that it depends on every token
up to there, as a real block does. A token that was lost, repeated, swapped or cached wrongly changes all tokens behind.

    x[p, 0]     = digest(token at p)
    x[p, b + 1] = digest(b, p, x[p - 1, b + 1], x[p, b])
    next token  = digest(x[p, blocks], seed) mod vocabulary
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence

DIGEST_BYTES = 16
VOCABULARY = 32_000

_ZERO = bytes(DIGEST_BYTES)
_place = struct.Struct("<II").pack


def embed(token: int) -> bytes:
    """Return the input of block 0 for a token."""
    return hashlib.blake2b(struct.pack("<i", token), digest_size=DIGEST_BYTES, person=b"embed").digest()


def draw(activation: bytes, seed: int | None = None) -> int:
    """Return the token that the last block's output stands for; with a seed, the one that is sampled."""
    noise = b"" if seed is None else seed.to_bytes(8, "little")
    digest = hashlib.blake2b(activation + noise, digest_size=8, person=b"draw").digest()
    return int.from_bytes(digest, "little") % VOCABULARY


class BlockCache:
    """What one block has computed for one session, by position: its KV."""

    def __init__(self, block: int) -> None:
        self.block = block
        self._outputs: list[bytes] = []

    def __len__(self) -> int:
        return len(self._outputs)

    def copy(self) -> "BlockCache":
        """Return a cache that goes its own way from here."""
        other = BlockCache(self.block)
        other._outputs = self._outputs.copy()
        return other

    def truncate(self, tokens: int) -> None:
        """Forget all but the first tokens."""
        del self._outputs[tokens:]

    def append(self, activation: bytes) -> bytes:
        """Run the block on its input at the next position and return its output."""
        before = self._outputs[-1] if self._outputs else _ZERO
        head = _place(self.block, len(self._outputs))
        output = hashlib.blake2b(head + before + activation, digest_size=DIGEST_BYTES).digest()
        self._outputs.append(output)
        return output


def continuation(prompt: Sequence[int], num_blocks: int, seed: int | None = None) -> Iterator[int]:
    """Yield the tokens behind a prompt, for as long as asked: what a swarm has to answer."""
    caches = [BlockCache(block) for block in range(num_blocks)]
    tokens = list(prompt)
    while True:
        for token in tokens:
            activation = embed(token)
            for cache in caches:
                activation = cache.append(activation)
        token = draw(activation, seed)
        yield token
        tokens = [token]
