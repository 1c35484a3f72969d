"""Which span a node that may choose should serve: what the swarm lacks, else where it helps throughput most.

Owns the choice for `swarm-node start --blocks auto`; the node decides when to ask. Pure, from records alone: every
node decides for itself, and chance keeps nodes that start together from deciding alike.

A swarm is as fast as its weakest block, so the worth of a window is what it adds to the sum over blocks of a soft
minimum of throughput, -exp(-SHARPNESS * throughput / mean): little where there is plenty, much where there is little.
"""

from collections.abc import Iterable
from itertools import accumulate
from math import exp

from swarm_net.records import Record
from swarm_net.routing import UNKNOWN_RATE_TOKENS_PER_S, Randomness

SHARPNESS = 8.0
ALIGNMENT_BONUS = 0.03  # of the worth, for each edge where another span begins or ends: routes then need fewer hops


def choose_span(
    records: Iterable[Record], num_blocks: int, capacity_blocks: int, my_rate: float, rng: Randomness
) -> tuple[int, int]:
    """Return the span [start, end) to serve, of as many blocks as fit.

    `records` are those of the model's other nodes, `my_rate` the tokens per second that this node gives through
    `capacity_blocks` blocks.
    """
    if capacity_blocks < 1 or num_blocks < 1:
        raise ValueError("a span has at least one block")
    width = min(capacity_blocks, num_blocks)
    others = [each for each in records if each.num_blocks == num_blocks and each.state != "draining"]
    throughput = _throughput(others, num_blocks)  # [num_blocks], tokens/s
    worth = _worth(throughput, max(my_rate, 1e-9))
    lacking = [0, *accumulate(int(tokens_per_s == 0) for tokens_per_s in throughput)]
    worth_before = [0.0, *accumulate(worth)]
    edges = {0, num_blocks} | {each.start for each in others} | {each.end for each in others}

    def score(start: int) -> tuple[int, int, float, float]:
        end = start + width
        lacked = lacking[end] - lacking[start]
        aligned = (start in edges) + (end in edges)
        gain = (worth_before[end] - worth_before[start]) * (1 + ALIGNMENT_BONUS * aligned)
        # Rounded, or sums of equal things in other orders would differ and leave nothing to chance.
        return lacked, aligned if lacked else 0, round(gain, 9), rng.random()

    start = max(range(num_blocks - width + 1), key=score)
    return start, start + width


def _throughput(records: Iterable[Record], num_blocks: int) -> list[float]:
    tokens_per_s = [0.0] * num_blocks
    for record in records:
        for block in range(record.start, record.end):
            tokens_per_s[block] += record.decode_tokens_per_s or UNKNOWN_RATE_TOKENS_PER_S
    return tokens_per_s


def _worth(throughput: list[float], my_rate: float) -> list[float]:
    """Return what serving each block adds to its soft minimum."""
    mean = sum(throughput) / len(throughput) or my_rate
    gain = 1 - exp(-SHARPNESS * my_rate / mean)
    return [exp(SHARPNESS * (1 - tokens_per_s / mean)) * gain for tokens_per_s in throughput]
