"""Tokens keep flowing beside a long prompt, and the prompt gets on: one hop with a modelled machine."""

from dataclasses import replace
from statistics import mean, median

from hypothesis import given
from hypothesis import strategies as st

from swarm_node.pacing import MOST_CREDIT, WORTH_TOKENS, Pace
from swarm_node.scheduler import Scheduler
from tests.node.test_scheduler import work_of

PROMPT_TOKENS = 4096


def run(
    decode_s: float, token_s: float, away_s: float, piece_s: float = 0.0, *, prompt: bool, tokens: int = 120
) -> tuple[list[float], float | None]:
    """Decode one session whose next step comes `away_s` after each output, beside a prompt that comes after 20 steps.
    A batch with prefill in it takes `piece_s` longer, whatever it has.

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
        long = [part.piece.count for part in batch if part.work.session == b"long"]
        seconds = decode_s + token_s * sum(long) + (piece_s if long else 0.0)
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
    piece=st.floats(0.0, 1.0),  # in decode steps: what prefill costs however little it is, with a long context
)
def test_tokens_come_less_than_twice_as_slowly_beside_a_prompt(
    decode_ms: float, tokens_a_step: float, away: float, piece: float
) -> None:
    decode_s = decode_ms / 1e3
    machine = (decode_s, decode_s / tokens_a_step, away * decode_s, piece * decode_s)
    alone, _ = run(*machine, prompt=False)
    beside, _ = run(*machine, prompt=True)
    assert mean(beside[5:]) < 2 * median(alone)
    longest = MOST_CREDIT * decode_s + (WORTH_TOKENS / tokens_a_step + piece + 1) * decode_s
    assert sorted(beside[5:])[int(0.95 * len(beside[5:]))] < median(alone) + longest


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
    assert 0 < pace.prefill_budget(1.05, decodes=True, most=256) <= WORTH_TOKENS
    assert pace.prefill_budget(1.07, decodes=False, most=256) == 0  # the next step is due
    assert pace.prefill_budget(2.0, decodes=False, most=256) == 256


def test_what_prefill_took_is_charged() -> None:
    pace = Pace()
    for step in range(20):
        pace.took_decode(step * 0.03)
        pace.ran(step * 0.03 + 0.02, decode_tokens=1, prefill_tokens=0, seconds=0.02)
    assert pace.prefill_budget(0.6, decodes=True, most=256) > 0
    pace.ran(0.8, decode_tokens=1, prefill_tokens=16, seconds=0.2)
    assert pace.prefill_budget(0.8, decodes=True, most=256) == 0


def test_a_step_that_waits_for_prefill_is_charged() -> None:
    pace = Pace()
    for step in range(20):
        pace.took_decode(step * 0.03)
        pace.ran(step * 0.03 + 0.02, decode_tokens=1, prefill_tokens=0, seconds=0.02)
    pace.ran(0.8, decode_tokens=0, prefill_tokens=64, seconds=0.2)
    pace.took_decode(0.63)
    assert pace.prefill_budget(0.8, decodes=True, most=256) == 0
