"""Whole swarms in virtual time: right answers, crashes survived, nothing left, and every run like the one before."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from swarm_sim.errors import BadOption
from swarm_sim.run import run_command
from swarm_sim.scenario import Scenario
from swarm_sim.simulation import simulate
from swarm_sim.trace import Trace

SMALL = Scenario(nodes=8, sessions=12, blocks=12, duration_s=20.0)
CRASHING = Scenario(nodes=12, sessions=25, blocks=12, duration_s=40.0, crashes_per_node_hour=90.0, seed=2)


def test_a_swarm_without_crashes_finishes_every_session() -> None:
    seen: list[tuple[int, int]] = []
    report = simulate(SMALL, progress=lambda done, total: seen.append((done, total)))
    assert report.finished == report.sessions == 12
    assert report.is_right
    assert (report.failed, report.wrong, report.retries, report.crashes, report.left_over) == ({}, 0, 0, 0, 0)
    assert report.first_token_ms is not None
    assert report.token_ms is not None
    assert report.first_token_ms["p50"] <= report.first_token_ms["p95"]
    assert report.token_ms["p50"] <= report.token_ms["p95"] <= report.token_ms["p99"]
    assert report.tokens >= 12 * 8
    assert report.virtual_s > report.tokens / report.tokens_per_s - 1e-6
    assert seen == [(number, 12) for number in range(1, 13)]


def test_crashes_change_routes_but_never_tokens() -> None:
    reports = [simulate(replace(CRASHING, seed=seed)) for seed in (1, 2, 3)]
    for report in reports:
        assert report.is_right, report
        assert report.crashes > 5
        assert report.finished + sum(report.failed.values()) == report.sessions
        assert "hangs" not in report.failed
    assert sum(report.retries for report in reports) > 0
    assert sum(report.finished for report in reports) > 0


def test_a_swarm_of_one_node_and_one_region_is_a_swarm() -> None:
    report = simulate(Scenario(nodes=1, sessions=3, regions=1, blocks=2, duration_s=0.0))
    assert report.finished == 3
    assert report.is_right


def test_other_seeds_are_other_runs() -> None:
    hashes = {
        simulate(Scenario(nodes=3, sessions=2, blocks=4, duration_s=1.0, seed=seed)).trace_hash for seed in (1, 2, 3)
    }
    assert len(hashes) == 3


def test_one_seed_gives_one_trace_in_processes_with_other_hashes(tmp_path: Path) -> None:
    options = ["--nodes=12", "--sessions=25", "--blocks=12", "--duration=40", "--crash-rate=90", "--seed=2"]
    reports, traces = [], []
    for hash_seed in ("1", "2"):
        trace = tmp_path / hash_seed
        output = subprocess.run(
            [sys.executable, "-m", "swarm_sim", "run", *options, "--json", "--trace", str(trace)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        reports.append(json.loads(output.stdout))
        traces.append(trace.read_text().splitlines())
    for line, (first, second) in enumerate(zip(*traces, strict=False)):
        assert first == second, f"the runs part at line {line}"
    for report in reports:
        del report["real_s"], report["virtual_s_per_s"]
    assert reports[0] == reports[1]
    assert reports[0]["trace_hash"] == simulate(CRASHING).trace_hash


def test_the_trace_names_frames_and_tokens(tmp_path: Path) -> None:
    with (tmp_path / "trace").open("w") as log:
        report = simulate(Scenario(nodes=2, sessions=2, blocks=4, duration_s=1.0), trace=Trace(log))
    lines = (tmp_path / "trace").read_text().splitlines()
    assert len(lines) == report.events
    assert sum(" token " in line for line in lines) == report.tokens
    assert sum(line.split()[1] in ("decode", "bulk") for line in lines) == report.frames
    assert not any("0x" in line for line in lines)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--nodes", {"nodes": 0}),
        ("--sessions", {"sessions": 0}),
        ("--regions", {"regions": 7}),
        ("--blocks", {"blocks": 0}),
        ("--crash-rate", {"crashes_per_node_hour": -1.0}),
        ("--duration", {"duration_s": float("nan")}),
    ],
)
def test_a_scenario_that_cannot_be_is_refused(option: str, values: dict[str, float]) -> None:
    with pytest.raises(BadOption, match=option):
        Scenario(**values)  # type: ignore[arg-type]


def test_a_run_that_nobody_gets_anything_of_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = Scenario(nodes=1, sessions=2, crashes_per_node_hour=3600.0, duration_s=30.0, seed=3)
    assert not run_command(nothing, trace_file=None, as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert (report["finished"], report["wrong"]) == (0, 0)
    assert run_command(SMALL, trace_file=None, as_json=True)
