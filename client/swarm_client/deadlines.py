"""How long to wait for a route before it counts as silent; pure.

A hop that died without a word is noticed by its link's heartbeats; these deadlines are for one that lives and does not
answer, or whose successor is cut off. They come from what the hops' own records promise, generously: given up too
early, a session that only waits in a queue would be computed twice. Used by `live_session.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from swarm_net.routing import Hop

UNKNOWN_PREFILL_TOKENS_PER_S = 20.0
UNKNOWN_DECODE_TOKENS_PER_S = 1.0
# Beside sessions that decode, a hop may compute no more than so many tokens of a prompt with each of their steps.
PREFILL_TOKENS_A_STEP = 8


@dataclass(frozen=True, slots=True)
class Patience:
    """`factor` times what the records promise, never less than the floor, never more than the ceiling: a hop that calls
    itself slow cannot hold a session up for ever."""

    factor: float = 10.0
    step_floor_s: float = 15.0
    step_ceiling_s: float = 60.0
    token_ceiling_s: float = 2.0  # for each token of the step on top
    dial_timeout_s: float = 5.0
    opening_floor_s: float = 5.0


def opening_deadline_s(hops: int, patience: Patience) -> float:
    """Return how long an opening may take: each hop dials the next one, over two lanes."""
    return patience.opening_floor_s + hops * patience.dial_timeout_s


def result_deadline_s(hops: Sequence[Hop], tokens: int, patience: Patience) -> float:
    """Return how long the answer to a step of so many tokens may take."""
    promised_s = 0.0
    for hop in hops:
        record = hop.record
        share = (hop.end - hop.start) / (record.end - record.start)
        prefill_tokens_per_s = record.prefill_tokens_per_s or UNKNOWN_PREFILL_TOKENS_PER_S
        decode_tokens_per_s = record.decode_tokens_per_s or UNKNOWN_DECODE_TOKENS_PER_S
        promised_s += (tokens - 1) * share / prefill_tokens_per_s + share / decode_tokens_per_s
        promised_s += (tokens - 1) / PREFILL_TOKENS_A_STEP * share / decode_tokens_per_s
        promised_s += record.load.queued_tokens / prefill_tokens_per_s
    ceiling_s = patience.step_ceiling_s + tokens * patience.token_ceiling_s
    return max(patience.step_floor_s, min(patience.factor * promised_s, ceiling_s))
