"""Tells the swarm what this node serves, again and again, until it stops.

Owns the record: its contents, its sequence numbers and when a fresh one is due. The directory carries it. What fails is
tried again at the next turn: a node that cannot be found still serves those who know it.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from swarm_ledger.quotes import quote_digest
from swarm_net.directory import Directory
from swarm_net.errors import NetError
from swarm_net.identity import Identity
from swarm_net.links import Clock
from swarm_net.messages import Load, ModelId
from swarm_net.records import GRAMMAR_EXTENSION, QUOTE_EXTENSION, Record, State, sign
from swarm_node.executor import SpanFacts

log = logging.getLogger(__name__)

LIFETIME_S = 180.0
PERIOD_S = 45.0  # three misses in a row, and the record still stands
RETRY_S = 5.0
PUBLISH_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Announcement:
    """What stays the same from record to record."""

    model: ModelId
    facts: SpanFacts
    addresses: tuple[str, ...]
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    software: str
    region: str = ""
    takes_grammar: bool = False


class Announcer:
    """Publishes a node's record."""

    def __init__(
        self,
        announcement: Announcement,
        *,
        identity: Identity,
        directory: Directory,
        libp2p: Callable[[], tuple[str, ...]],
        load: Callable[[], Load],
        clock: Clock,
        rng: Random,
        quote: Callable[[], tuple[bytes, bytes]] | None = None,  # and its binding; None: work is free
    ) -> None:
        self._says = announcement
        self._identity = identity
        self._directory = directory
        self._libp2p = libp2p
        self._load = load
        self._clock = clock
        self._rng = rng
        self._quote = quote
        self._is_published = False

    def record(self, state: State = "online") -> Record:
        """The node's record as of now."""
        says, now_ns = self._says, self._clock.wall_ns()
        facts = says.facts
        extensions = {GRAMMAR_EXTENSION: b""} if says.takes_grammar else {}
        quote, binding = self._quote() if self._quote is not None else (b"", b"")
        if quote:
            extensions[QUOTE_EXTENSION] = quote
        return Record(
            sequence=now_ns // 1_000_000,
            published_ns=now_ns,
            expires_ns=now_ns + int(LIFETIME_S * 1e9),
            peer=self._identity.peer_id,
            model=says.model,
            num_blocks=facts.num_blocks,
            start=facts.start,
            end=facts.end,
            state=state,
            dtype=facts.dtype,
            quantization=facts.quantization,
            page_size=facts.page_size,
            rewind=facts.rewind,
            codecs=facts.codecs,
            prefill_tokens_per_s=says.prefill_tokens_per_s,
            decode_tokens_per_s=says.decode_tokens_per_s,
            load=self._load(),
            max_context=facts.max_context,
            addresses=says.addresses,
            libp2p=self._libp2p(),
            region=says.region,
            block_digests=b"".join(facts.block_digests),
            software=says.software,
            quote=quote_digest(quote) if quote else b"",
            binding=binding,
            extensions=extensions,
        )

    async def publish(self, state: State = "online", *, timeout_s: float = PUBLISH_TIMEOUT_S) -> bool:
        """Publish a fresh record; False, and a line in the log, if that failed."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._directory.publish(sign(self.record(state), self._identity))
        except (NetError, TimeoutError) as error:
            log.warning("record not published: %s", error or "no answer in time")
            self._is_published = False
        else:
            self._is_published = True
        return self._is_published

    async def run(self) -> None:
        """Keep what was published once alive, with jitter: nodes that started together do not stay together."""
        while True:
            wait_s = PERIOD_S if self._is_published else RETRY_S
            await asyncio.sleep(wait_s * self._rng.uniform(0.8, 1.2))
            await self.publish()
