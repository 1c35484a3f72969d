"""The libp2p daemon as a child process: started with a peer's identity, watched, and never left behind.

Owns the process, its key file and its control socket; what is said through it is `dht.py`. The daemon is go-libp2p's
p2pd as hivemind ships it. We start it ourselves because hivemind's own way leaves it running for half a minute when
starting is cancelled, tells nobody when it dies, and lets Ctrl-C in a terminal kill it before its parent has stopped.

It ends by itself when its last control connection ends, so it does not outlive a parent that is killed either; before
the first connection it waits `_UNUSED_S`. It listens on TCP only: the QUIC that it bundles has known holes.
"""

import asyncio
import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from swarm_net.errors import DirectoryDown
from swarm_net.identity import Identity
from swarm_net.tasks import TaskScope

START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 2.0
_UNUSED_S = 10
_MAX_LINE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonConfig:
    """Where the daemon listens and whom it dials first: libp2p addresses, `/ip4/.../tcp/...`."""

    program: Path
    data_dir: Path
    listen: tuple[str, ...]
    announce: tuple[str, ...]
    initial_peers: tuple[str, ...]
    client_mode: bool


class Daemon:
    """A running daemon; `control` is the address of its socket."""

    def __init__(self, process: asyncio.subprocess.Process, run_dir: Path) -> None:
        self._process = process
        self._run_dir = run_dir
        self._tasks = TaskScope()
        self._last_line = ""

    @property
    def control(self) -> str:
        return f"/unix{self._run_dir}/control.sock"

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(cls, identity: Identity, config: DaemonConfig) -> "Daemon":
        """Start a daemon and return when it can be controlled. Raises DirectoryDown; a failure leaves nothing."""
        # Not in the data directory: a socket's path has at most 107 bytes.
        run_dir = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="swarm-libp2p-"))
        try:
            key_file = await asyncio.to_thread(_write_key, identity, config.data_dir)
            process = await asyncio.create_subprocess_exec(
                str(config.program),
                *_arguments(config, key_file, run_dir),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                limit=_MAX_LINE_BYTES,
                env={**os.environ, "GOLOG_LOG_LEVEL": "fatal"},
            )
        except BaseException as error:
            shutil.rmtree(run_dir, ignore_errors=True)
            if isinstance(error, OSError):
                raise DirectoryDown(reason=f"the libp2p daemon cannot be started: {error}") from error
            raise
        daemon = cls(process, run_dir)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await daemon._ready()
        except BaseException as error:
            await asyncio.shield(daemon.stop())
            if isinstance(error, TimeoutError):
                raise DirectoryDown(reason=f"the libp2p daemon is not ready after {START_TIMEOUT_S:g} s") from error
            raise
        return daemon

    async def wait(self) -> int:
        """Return the exit code when the process has ended; a negative one is a signal's number."""
        return await self._process.wait()

    def terminate(self) -> None:
        """Ask the process to end; `wait` tells when it has."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    async def stop(self) -> None:
        """End the process, the hard way if it takes longer than STOP_TIMEOUT_S, and remove its socket."""
        self.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        finally:
            await self._tasks.close()
            shutil.rmtree(self._run_dir, ignore_errors=True)

    async def _ready(self) -> None:
        while await self._read_line():
            if self._last_line.startswith("Peer ID:"):
                self._tasks.start(self._drain(), name="drain the libp2p daemon's output")
                return
        raise DirectoryDown(reason=f"the libp2p daemon ended: {self._last_line}")

    async def _drain(self) -> None:
        """Read what it says, or it would stop when the pipe is full."""
        while await self._read_line():
            pass

    async def _read_line(self) -> bool:
        assert self._process.stdout is not None
        try:
            line = await self._process.stdout.readline()
        except ValueError:  # longer than the limit: asyncio has dropped it
            return True
        if line.strip():
            self._last_line = line.decode(errors="replace").strip()[:500]
        return bool(line)


def _write_key(identity: Identity, data_dir: Path) -> Path:
    """Write the identity as libp2p's protobuf PrivateKey{Type: Ed25519 = 1, Data: seed and public key}."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = data_dir / "libp2p.key"
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(bytes((0x08, 0x01, 0x12, 64)) + identity.seed + identity.public_key)
    return file


def _arguments(config: DaemonConfig, key_file: Path, run_dir: Path) -> list[str]:
    arguments = [
        f"-listen=/unix{run_dir}/control.sock",
        f"-id={key_file}",
        f"-idleTimeout={_UNUSED_S}s",
        "-dhtClient=1" if config.client_mode else "-dhtServer=1",
        "-connManager=1",
        "-tls=1",
        "-relay=0",
        "-relayService=0",
        "-autonat=0",
        "-natPortMap=0",
    ]
    # A node that nobody reaches needs no listener.
    arguments.append("-noListenAddrs=1" if config.client_mode else f"-hostAddrs={','.join(config.listen)}")
    if config.announce:
        arguments.append(f"-announceAddrs={','.join(config.announce)}")
    if config.initial_peers:
        arguments += ["-b=1", f"-bootstrapPeers={','.join(config.initial_peers)}"]
    return arguments
