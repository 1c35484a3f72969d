"""What people and programs are told while a span is downloaded and loaded."""

import json

import pytest

from swarm_node.reporting import JsonReporter, PeopleReporter

MIB = 1 << 20


def test_programs_hear_bytes_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    now_s = 100.0
    with JsonReporter(lambda: now_s).progress("blocks 0:2") as advance:
        advance("fetch", 50 * MIB, 200 * MIB)  # what an earlier download left counts for no rate
        for _ in range(1000):
            advance("fetch", 50 * MIB + 1, 200 * MIB)  # not worth a line
        now_s += 2.0
        advance("fetch", 100 * MIB, 200 * MIB)
        advance("read", 0, 10)
        advance("record", 3, 14)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["stage"] for event in events] == ["fetch", "fetch", "read", "record"]
    assert events[0]["bytes_per_s"] is None
    assert (events[1]["done_bytes"], events[1]["total_bytes"]) == (100 * MIB, 200 * MIB)
    assert (events[1]["bytes_per_s"], events[1]["left_s"]) == (25 * MIB, 4.0)
    assert (events[3]["done"], events[3]["total"]) == (3, 14)
    assert not any("bytes" in name for name in events[3])


def test_people_get_a_bar_for_each_stage() -> None:
    with PeopleReporter().progress("blocks 0:2") as advance:
        for stage in ("fetch", "read", "record", "digest"):
            advance(stage, 0, 0)
            advance(stage, 5, 10)
