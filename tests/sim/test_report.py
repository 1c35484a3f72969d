"""Numbers from the logs of sessions."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from swarm_sim.report import Report, SessionLog, failures, first_token_ms, percentiles, report_view, token_ms

REPORT = Report(
    seed=1,
    nodes=2,
    sessions=3,
    finished=1,
    failed={"kv_full": 2},
    wrong=0,
    retries=1,
    crashes=4,
    left_over=0,
    tokens=1234,
    guesses_right=0,
    virtual_s=20.0,
    tokens_per_s=61.7,
    first_token_ms={"p50": 1.0, "p95": 2.0},
    token_ms=None,
    frames=99,
    megabytes=1.5,
    events=1000,
    unhandled=[],
    trace_hash="abc123",
    real_s=2.0,
)


def shown(report: Report) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(report_view(report))
    return capture.get()


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.integers(1, 100))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float], share: int) -> None:
    found = percentiles(values, share)
    assert found is not None
    (value,) = found.values()
    assert value in values
    assert sum(other <= value for other in values) >= share * len(values) / 100
    assert sum(other < value for other in values) <= share * len(values) / 100


def test_times_come_from_the_tokens_of_each_session() -> None:
    logs = [
        SessionLog(started_s=1.0, prompt_tokens=3, token_times_s=[1.5, 1.75, 2.25]),
        SessionLog(started_s=4.0, prompt_tokens=3, token_times_s=[4.25]),
        SessionLog(started_s=9.0, prompt_tokens=3, failure="kv_full"),
        SessionLog(started_s=9.0, prompt_tokens=3, failure="kv_full"),
        SessionLog(started_s=9.0, prompt_tokens=3, failure="no_route"),
    ]
    assert first_token_ms(logs) == {"p50": 250.0, "p95": 500.0}
    assert token_ms(logs) == {"p50": 250.0, "p95": 500.0, "p99": 500.0}
    assert failures(logs) == {"kv_full": 2, "no_route": 1}
    assert [log.has_finished for log in logs] == [True, True, False, False, False]
    assert first_token_ms(logs[2:]) is None


def test_people_see_what_programs_read() -> None:
    text = shown(REPORT)
    for part in (
        "1 of 3 finished",
        "2 kv_full",
        "1,234",
        "61.7 tokens/s",
        "p95 2.0 ms",
        "4 crashes",
        "abc123",
        "10.0x",
    ):
        assert part in text
    assert json.loads(json.dumps(REPORT.to_json()))["virtual_s_per_s"] == 10.0


@pytest.mark.parametrize(
    ("report", "text"),
    [
        (replace(REPORT, wrong=2), "2 sessions got tokens that the model does not compute"),
        (replace(REPORT, left_over=3), "3 sessions were left on nodes"),
        (replace(REPORT, unhandled=["ValueError: [x]"]), "unhandled: ValueError: [x]"),
    ],
)
def test_what_must_not_happen_is_said(report: Report, text: str) -> None:
    assert REPORT.is_right
    assert not report.is_right
    assert text in shown(report)
