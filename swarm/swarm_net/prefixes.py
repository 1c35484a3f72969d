"""How the beginning of a prompt is named, so that hops can say how much of it they still hold: pure.

Owns the hash chain over token ids that `Open.prefix` carries, and the scope in which a hop may share what it computed.
A digest stands for all tokens up to the end of its chunk, for the model's revision, and for a salt that only the client
knows: nobody else can ask for it, or tell from it what the tokens are. Used by the client and by the node.

A hop behind the first cannot check that the activations it was sent belong to the digests it was told. So what it
keeps is found again only by the same client, along the same hops before it, of which the last is authenticated by its
link: whoever could slip in wrong keys and values there computes that session's activations anyway.
"""

from collections.abc import Sequence
from hashlib import blake2b
from struct import Struct

from swarm_net.messages import Open

PREFIX_CHUNK_TOKENS = 64
MAX_PREFIX_CHUNKS = 1024
DIGEST_BYTES = 16


def prefix_digests(token_ids: Sequence[int], *, revision: str, salt: bytes) -> tuple[bytes, ...]:
    """Return one digest for each whole chunk of a prompt, each covering all chunks before it.

    The last token is never in them: it has to be computed, since the next one is drawn from its row.
    """
    digest = blake2b(revision.encode(), key=salt[:64], digest_size=DIGEST_BYTES, person=b"swarm prefix").digest()
    chunks = min((len(token_ids) - 1) // PREFIX_CHUNK_TOKENS, MAX_PREFIX_CHUNKS)
    digests, pack_ids = [], Struct(f"<{PREFIX_CHUNK_TOKENS}i").pack
    for start in range(0, chunks * PREFIX_CHUNK_TOKENS, PREFIX_CHUNK_TOKENS):
        ids = token_ids[start : start + PREFIX_CHUNK_TOKENS]
        digest = blake2b(digest + pack_ids(*ids), digest_size=DIGEST_BYTES).digest()
        digests.append(digest)
    return tuple(digests)


def prefix_scope(message: Open, *, upstream: str, everyone: bool) -> bytes:
    """Return who may share keys and values with this session at the receiving hop.

    Whatever they depend on besides the tokens is in it: the blocks run here, the hops before and their number formats,
    the codec. `upstream` is the authenticated peer that the message came from. With `everyone` clients share with each
    other, and a client, or a hop before this one, can then poison what others read.
    """
    own = message.hops[message.hop]
    scope = blake2b(digest_size=32, person=b"swarm scope")
    parts = [f"{own.start}:{own.end}", message.codec, message.adapter]
    parts += [f"{hop.peer} {hop.start}:{hop.end} {hop.dtype}" for hop in message.hops[: message.hop]]
    if not everyone:
        parts += [upstream, message.client]
    for part in parts:
        scope.update(len(part).to_bytes(4, "little") + part.encode())
    return scope.digest()
