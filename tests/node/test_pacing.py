"""Tokens keep flowing beside a long prompt, and the prompt gets on: one hop with a modelled machine."""

from dataclasses import replace
from statistics import median

from hypothesis import given
from hypothesis import strategies as st

from swarm_node.pacing import LEAST_TOKENS, Pace
from swarm_node.scheduler import Scheduler
from tests.node.test_scheduler import work_of

PROMPT_TOKENS = 4096


def run(
    decode_s: float, token_s: float, away_s: float, *, prompt: bool, tokens: int = 120
) -> tuple[list[float], float | None]:
    """Decode one session whose next step comes `away_s` after each output, beside a prompt that comes after 20 steps.

    Returns the seconds between its tokens from then on, and how long the prompt took if it ended.
    """
    scheduler, now_s = Scheduler(), 0.0
    arrivals, outputs, prefilled_s, began_s = [(0.0, 0)], [], None, 0.0
    while len(outputs) < tokens + 20:
        if prompt and len(outputs) == 20 and not began_s:
            scheduler.add(work_of(b"long", 0, PROMPT_TOKENS))
            began_s = now_s
        while arrivals and arrivals[0][0] <= now_s:
            arrived_s, position = arrivals.pop(0)
            scheduler.add(replace(work_of(b"chat", position, 1), arrived_s=arrived_s))
        batch = scheduler.next(now_s)
        if not batch:
            now_s = min(arrivals[0][0], scheduler.wait_until_s or arrivals[0][0])
            continue
        # As on a processor: the weights are read once a batch, each token of prefill is computed on top.
        seconds = decode_s + token_s * sum(part.piece.count for part in batch if part.work.session == b"long")
        scheduler.ran(batch, now_s, now_s + seconds)
        now_s += seconds
        for part in batch:
            if part.work.session == b"chat":
                outputs.append(now_s)
                arrivals.append((now_s + away_s, len(outputs)))
            elif part.is_end:
                prefilled_s = now_s - began_s
    behind = outputs[20:]
    return [later - earlier for earlier, later in zip(outputs[19:], behind, strict=False)], prefilled_s


@given(
    decode_ms=st.floats(2.0, 50.0),
    tokens_a_step=st.floats(10.0, 400.0),  # of prefill, in the time of a decode step
    away=st.floats(0.0, 8.0),  # in decode steps: the other hops
)
def test_tokens_come_less_than_twice_as_slowly_beside_a_prompt(
    decode_ms: float, tokens_a_step: float, away: float
) -> None:
    decode_s = decode_ms / 1e3
    alone, _ = run(decode_s, decode_s / tokens_a_step, away * decode_s, prompt=False)
    beside, _ = run(decode_s, decode_s / tokens_a_step, away * decode_s, prompt=True)
    assert median(beside[2:]) < 2 * median(alone)
    assert sorted(beside[2:])[int(0.95 * len(beside[2:]))] < 2 * median(alone) + LEAST_TOKENS * decode_s / tokens_a_step


def test_the_prompt_gets_on() -> None:
    _, prefilled_s = run(0.020, 0.0005, 0.020, prompt=True, tokens=200)
    assert prefilled_s is not None
    assert prefilled_s < 5 * (PROMPT_TOKENS * 0.0005)


def test_a_prompt_alone_runs_in_whole_chunks_also_when_decoding_has_ended() -> None:
    pace = Pace()
    assert pace.prefill_budget(0.0, decodes=False, most=256) == 256
    pace.ran(1.0, decode_tokens=1, prefill_tokens=0, seconds=0.02)
    pace.took_decode(1.03)
    pace.ran(1.05, decode_tokens=1, prefill_tokens=0, seconds=0.02)
    assert pace.prefill_budget(1.05, decodes=True, most=256) == LEAST_TOKENS
    pace.ran(1.1, decode_tokens=0, prefill_tokens=256, seconds=0.148)
    assert pace.prefill_budget(1.1, decodes=True, most=256) == 27
    assert pace.prefill_budget(1.06, decodes=False, most=256) == 0
    assert pace.prefill_budget(pace.expected_s, decodes=False, most=256) == LEAST_TOKENS
    assert pace.prefill_budget(2.0, decodes=False, most=256) == 256
