"""A span of the digest model behind the node's `Executor` interface, in modelled time.

Owns the KV of its sessions and the time that a batch takes; the arithmetic is `digest_model.py`'s. It accepts only what
a real executor could compute: a piece that leaves a gap in what is cached fails.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from swarm_net.prefixes import PREFIX_CHUNK_TOKENS
from swarm_net.session_errors import PositionGap
from swarm_node.executor import Draw, Drawn, Output, Piece, Prefix, SpanFacts
from swarm_sim import digest_model
from swarm_sim.digest_model import DIGEST_BYTES, BlockCache

MAX_CONTEXT_TOKENS = 8192
MAX_KEPT_CHUNKS = 256


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a machine is: a batch reads every block's weights once and then computes its tokens."""

    block_s: float = 0.0008
    token_block_s: float = 0.00004

    def batch_s(self, blocks: int, tokens: int) -> float:
        """Return how long a batch takes."""
        return blocks * (self.block_s + tokens * self.token_block_s)

    def scaled(self, factor: float) -> "Speed":
        """Return a machine that takes `factor` times as long."""
        return Speed(self.block_s * factor, self.token_block_s * factor)


def digest_facts(start: int, end: int, num_blocks: int, *, kv_tokens: int) -> SpanFacts:
    """Return what a node must know of a span of the digest model."""
    return SpanFacts(
        start=start,
        end=end,
        num_blocks=num_blocks,
        hidden_bytes=DIGEST_BYTES,
        vocab_size=digest_model.VOCABULARY,
        max_context=MAX_CONTEXT_TOKENS,
        dtype="digest",
        numeric_class="digest",
        page_size=16,
        kv_tokens=kv_tokens,
        rewind="any",
        block_digests=tuple(hashlib.blake2b(b"%d" % block, digest_size=8).digest() for block in range(start, end)),
    )


class DigestExecutor:
    """Runs any part of a span of the digest model; a session runs the same blocks from its first step to its last."""

    def __init__(self, facts: SpanFacts, speed: Speed) -> None:
        self.facts = facts
        self._speed = speed
        self._caches: dict[bytes, list[BlockCache]] = {}  # by session, of the blocks that it runs here
        self._named: dict[bytes, Prefix] = {}
        self._kept: OrderedDict[tuple[bytes, bytes], list[BlockCache]] = OrderedDict()  # of prefixes, oldest first

    def duration_s(self, pieces: Sequence[Piece]) -> float:
        start, end = pieces[0].blocks
        return self._speed.batch_s(end - start, sum(piece.count for piece in pieces))

    def run(self, pieces: Sequence[Piece]) -> list[Output]:
        return [self._run(piece) for piece in pieces]

    def adopt(self, session: bytes, prefix: Prefix) -> int:
        """Copy what a session left under the longest of these names, as a real executor shares its pages."""
        kept = 0
        for place, digest in enumerate(prefix.digests):
            if (caches := self._kept.get((prefix.scope, digest))) is None:
                break
            self._caches[session] = [cache.copy() for cache in caches]
            kept = (place + 1) * PREFIX_CHUNK_TOKENS
        self._named[session] = prefix
        return kept

    def drop(self, session: bytes) -> None:
        self._caches.pop(session, None)
        self._named.pop(session, None)

    def _run(self, piece: Piece) -> Output:
        caches = self._caches.get(piece.session)
        if caches is None:
            caches = self._caches[piece.session] = [BlockCache(block) for block in range(*piece.blocks)]
        if piece.position > len(caches[0]):
            return PositionGap(position=piece.position, cached=len(caches[0]))
        for cache in caches:
            cache.truncate(piece.position)
        outputs = []
        for activation in self._inputs(piece):
            for cache in caches:
                activation = cache.append(activation)
            outputs.append(activation)
            self._keep_prefix(piece.session, caches)
        if piece.blocks[1] < self.facts.num_blocks:
            return b"".join(outputs)
        return _judge(outputs, piece.draw) if piece.draw is not None else None

    def _keep_prefix(self, session: bytes, caches: list[BlockCache]) -> None:
        chunks, rest = divmod(len(caches[0]), PREFIX_CHUNK_TOKENS)
        prefix = self._named.get(session)
        if prefix is None or rest or chunks > len(prefix.digests):
            return
        self._kept.setdefault((prefix.scope, prefix.digests[chunks - 1]), [cache.copy() for cache in caches])
        if len(self._kept) > MAX_KEPT_CHUNKS:
            self._kept.popitem(last=False)

    def _inputs(self, piece: Piece) -> list[bytes]:
        data = bytes(piece.data)
        if piece.blocks[0] == 0:
            return [digest_model.embed(int(token)) for token in np.frombuffer(data, "<i4")]
        return [data[i : i + DIGEST_BYTES] for i in range(0, len(data), DIGEST_BYTES)]


def _judge(outputs: Sequence[bytes], draw: Draw) -> tuple[Drawn, ...]:
    """Draw behind the known token, and behind each draft for as long as it is what was drawn."""
    sampling, drawn = draw.sampling, list[Drawn]()
    seed = sampling.seed if sampling.temperature > 0 else None
    for output, draft in zip(outputs[-len(draw.drafts) - 1 :], (*draw.drafts, None), strict=True):
        drawn.append(Drawn(digest_model.draw(output, seed)))
        if drawn[-1].token != draft:
            break
    return tuple(drawn)
