"""`swarm-node` as people call it, without starting a node; the other programs' `--version` beside its own."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import swarm_client.__main__
import swarm_node.__main__
import swarm_sim.__main__
from swarm_net.version import release


@pytest.mark.parametrize("program", [swarm_node.__main__.app, swarm_client.__main__.app, swarm_sim.__main__.app])
def test_version(program: typer.Typer) -> None:
    shown = CliRunner().invoke(program, ["--version"])
    assert shown.exit_code == 0
    assert shown.stdout.split()[1:] == [release()]
    assert "--version" in CliRunner().invoke(program, ["--help"]).stdout


def test_settings_are_shown_whole_and_with_units(tmp_path: Path) -> None:
    long = "/somewhere/" + "deep/" * 40
    arguments = ["config", "show", "--model", long, "--kv-memory", "512MiB"]
    environment = {"COLUMNS": "80", "SWARM_NODE_THRAEDS": "2"}
    shown = CliRunner().invoke(swarm_node.__main__.app, arguments, env=environment).stdout
    cells = [line.split("\u2502")[2].strip() for line in shown.splitlines() if line.count("\u2502") == 4]
    assert long in "".join(cells)
    assert "512MiB" in cells
    assert "SWARM_NODE_THREADS" in shown

    as_json = CliRunner().invoke(swarm_node.__main__.app, [*arguments, "--json"], env=environment).stdout
    assert json.loads(as_json)["kv_memory"] == {"value": 512 << 20, "origin": "--kv-memory"}


@pytest.mark.parametrize(("flag", "value"), [("--bank", "on"), ("--no-bank", "off")])
def test_a_switch_is_a_flag_without_a_value(flag: str, value: str) -> None:
    shown = CliRunner().invoke(swarm_node.__main__.app, ["config", "show", flag, "--json"]).stdout
    assert json.loads(shown)["bank"] == {"value": value, "origin": "--bank"}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["0x1234", "5"], "20 bytes"),
        ([f"0x{'11' * 20}", "five"], "not an amount"),
        ([f"0x{'11' * 20}", "5", "--node", "/nowhere"], "no node"),
    ],
)
def test_minting_needs_an_account_an_amount_and_a_node(arguments: list[str], reason: str) -> None:
    shown = CliRunner().invoke(swarm_node.__main__.app, ["mint", *arguments], env={"COLUMNS": "200"})
    assert shown.exit_code != 0
    assert reason in shown.output
