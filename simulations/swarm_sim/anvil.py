"""anvil, the chain for developers, as a process of its own: found on this machine, or fetched once with npm.

The npm package brings a ready binary. It goes into the user's cache, never into a project. Used by the end-to-end tests
and by swarms on one machine that are paid on a chain.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import platformdirs
from filelock import FileLock, Timeout

PACKAGE: Final = "@foundry-rs/anvil@1.4.4"
START_TIMEOUT_S: Final = 20.0
INSTALL_TIMEOUT_S: Final = 120.0
CHAIN_ID: Final = 31337


def find() -> Path | None:
    """Return anvil's binary if it is installed, or was fetched before."""
    if (found := shutil.which("anvil")) is not None:
        return Path(found)
    fetched = sorted(_cache().glob("node_modules/@foundry-rs/anvil-*/bin/anvil*"))
    return fetched[0] if fetched else None


def fetch() -> Path | None:
    """Return anvil's binary, and fetch it first where npm can; None where it cannot."""
    if (found := find()) is not None:
        return found
    if (npm := shutil.which("npm")) is None:
        return None
    _cache().mkdir(parents=True, exist_ok=True)
    with (
        contextlib.suppress(subprocess.SubprocessError, OSError, Timeout),
        FileLock(_cache() / "lock", timeout=INSTALL_TIMEOUT_S),
    ):
        if find() is None:
            subprocess.run(  # noqa: S603
                [
                    npm,
                    "install",
                    "--prefix",
                    str(_cache()),
                    "--no-audit",
                    "--no-fund",
                    "--ignore-scripts",
                    "--fetch-retries=0",
                    PACKAGE,
                ],
                check=True,
                capture_output=True,
                timeout=INSTALL_TIMEOUT_S,
            )
    return find()


@contextlib.contextmanager
def running(binary: Path, *, block_time_s: float | None = None) -> Iterator[str]:
    """Run a chain on a free port; gives its URL. Without a block time each transaction gets a block at once.

    Raises TimeoutError if it does not answer.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(binary), "--port", str(port), "--silent", "--chain-id", str(CHAIN_ID)]
    if block_time_s is not None:
        command += ["--block-time", str(block_time_s)]
    process = subprocess.Popen(  # noqa: S603
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "FOUNDRY_DISABLE_NIGHTLY_WARNING": "1"},
    )
    try:
        _wait_for(url, process)
        yield url
    finally:
        process.terminate()
        process.wait()


def call(url: str, method: str, *params: object) -> object:
    """Ask a chain on this machine one thing, such as to mine or to let time pass."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310
        result: object = json.load(response).get("result")
        return result


def _wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            call(url, "eth_chainId")
            return
        time.sleep(0.05)
    raise TimeoutError("anvil does not answer")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _cache() -> Path:
    return platformdirs.user_cache_path("swarm-inference") / "anvil"
