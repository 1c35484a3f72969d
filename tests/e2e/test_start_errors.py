"""A node that cannot start says why and what to do, before it loads anything that takes long."""

import json
import shutil
import socket
from pathlib import Path

import pytest

from tests.e2e.conftest import BLOCKS, run_node


def start_error(tmp_path: Path, *arguments: str) -> dict[str, str]:
    base = ("start", "--json", "--dht", "off", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "node"))
    ran = run_node(*base, *arguments)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    event = json.loads(ran.stdout.splitlines()[-1])
    assert event["event"] == "error"
    assert event["remedy"]
    assert not (tmp_path / "node").exists(), "a failed start leaves its data directory behind"
    return event


def test_what_is_wrong_with_the_model(tmp_path: Path, checkpoint: Path) -> None:
    assert start_error(tmp_path, "--model", str(tmp_path / "nowhere"))["error"] == "checkpoint_not_found"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert start_error(tmp_path, "--model", str(empty))["error"] == "config_missing"
    assert start_error(tmp_path)["error"] == "bad_setting"

    corrupted = tmp_path / "corrupted"
    shutil.copytree(checkpoint, corrupted)
    with (corrupted / "model.safetensors").open("r+b") as file:
        file.truncate(10_000)
    error = start_error(tmp_path, "--model", str(corrupted))
    assert error["error"] in ("checkpoint_broken", "bad_manifest")
    assert "model.safetensors" in error["message"]


@pytest.mark.parametrize("blocks", [f"0:{BLOCKS + 1}", "3:3", "4:2"])
def test_a_span_outside_the_model(tmp_path: Path, checkpoint: Path, blocks: str) -> None:
    error = start_error(tmp_path, "--model", str(checkpoint), "--blocks", blocks)
    assert error["error"] == "bad_blocks"
    assert f"0:{BLOCKS}" in error["message"]


def test_a_port_in_use(tmp_path: Path, checkpoint: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = start_error(tmp_path, "--model", str(checkpoint), "--listen", f"127.0.0.1:{port}")
    assert error["error"] == "port_in_use"
    assert str(port) in error["message"]


def test_a_bootstrap_that_is_dead_or_no_address(tmp_path: Path, checkpoint: Path) -> None:
    peer = "12D3KooWQLxB2o82kZcE9WiXHU1AUdT1SwevGubkungSGa5yusn5"
    error = start_error(tmp_path, "--model", str(checkpoint), "--bootstrap", f"/ip4/127.0.0.1/tcp/1/p2p/{peer}")
    assert error["error"] == "bootstrap_failed"
    assert start_error(tmp_path, "--model", str(checkpoint), "--bootstrap", "host:1")["error"] == "bootstrap_failed"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--device", "cuda:99"), "bad_setting"),
        (("--blocks", f"0:{BLOCKS + 1}"), "bad_blocks"),
        (("--kv-memory", "1000TiB", "--blocks", "0:2"), "not_enough_memory"),
    ],
)
def test_what_can_be_checked_alone_is_checked_before_joining(
    arguments: tuple[str, ...], error: str, tmp_path: Path, checkpoint: Path
) -> None:
    peer = "12D3KooWQLxB2o82kZcE9WiXHU1AUdT1SwevGubkungSGa5yusn5"
    dead = f"/ip4/127.0.0.1/tcp/1/p2p/{peer}"
    assert start_error(tmp_path, "--model", str(checkpoint), "--bootstrap", dead, *arguments)["error"] == error


def test_a_kv_memory_that_holds_nothing(tmp_path: Path, checkpoint: Path) -> None:
    assert start_error(tmp_path, "--model", str(checkpoint), "--kv-memory", "1KiB")["error"] == "kv_pool_too_small"
