"""Builds and loads the kernels in `native/`: C++ for this machine's own CPU, compiled when they are first needed.

Owns finding a compiler, the files in the user's cache, and the operators that come of them. Each source file is one
library with one operator of its name, made with torch's stable extension interface, so that it is compiled in seconds.
A file's name in the cache tells what it was made from and for: source, compiler, flags, torch, CPU. Without a compiler,
or where anything fails, there are no kernels, and whoever calls them goes another way: int8_linears.py,
native_attention.py. Prepared by span.py, which shows how far it is.
"""

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import platformdirs
import torch
from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

Name = Literal["int8_linear", "int4_linear", "paged_attention"]
NAMES: Final[tuple[Name, ...]] = ("int8_linear", "int4_linear", "paged_attention")
SOURCES: Final = Path(__file__).parent / "native"
SETTING: Final = "SWARM_NATIVE_KERNELS"  # "off" in the environment does without
COMPILERS: Final = ("c++", "g++", "clang++")  # after the one that CXX names
FLAGS: Final = ("-std=c++20", "-O2", "-march=native", "-fPIC", "-shared", "-w")
BUILD_TIMEOUT_S: Final = 120  # for what takes 5 s
CPU: Final = ("model name", "flags", "Features", "CPU part")  # what is said of it
REPORT_BYTES: Final = 2000  # of what a compiler says


def prepare(on_progress: Callable[[int, int], None] = lambda _done, _total: None) -> None:
    """Build what is missing, all at once; tells bytes of source that are done, and in all. Never raises for its own."""
    try:
        _build_missing(on_progress)
    except (OSError, subprocess.SubprocessError, Timeout) as error:
        log.info("native kernels are not built: %s", error)


@cache
def native_operator(name: Name) -> Callable[..., None] | None:
    """Return an operator, or None where there is none for this machine."""
    if not _wanted():
        return None
    prepare()
    try:
        library = _library(name)
        if library is None or not library.exists():
            return None
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]
        operator: Any = getattr(torch.ops.swarm, name).default
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        log.info("native kernel %s is not loaded: %s", name, error)  # a CPU without the instructions, for one
        return None
    return operator  # type: ignore[no-any-return]


def _wanted() -> bool:
    return sys.platform == "linux" and os.environ.get(SETTING, "") != "off"


def _build_missing(on_progress: Callable[[int, int], None]) -> None:
    missing = {name: path for name in NAMES if _wanted() and (path := _library(name)) and not _was_tried(path)}
    if not missing:
        return
    folder = _folder()
    with FileLock(folder / "lock", timeout=BUILD_TIMEOUT_S), tempfile.TemporaryDirectory(dir=folder) as scratch:
        missing = {name: path for name, path in missing.items() if not _was_tried(path)}  # another process was at it
        sizes = {name: _source(name).stat().st_size for name in missing}
        running = {name: _compile(name, Path(scratch)) for name in missing}
        try:
            on_progress(0, sum(sizes.values()))
            done = 0
            for name, compiler in running.items():
                report = _wait_for(compiler)
                failed = _failure(missing[name])
                if report is None:
                    os.replace(Path(scratch) / f"{name}.so", missing[name])
                else:
                    failed.write_text(report)
                    log.warning("%s could not be compiled; remove %s to try again", _source(name), failed)
                done += sizes[name]
                on_progress(done, sum(sizes.values()))
        finally:
            for compiler in running.values():
                compiler.kill()
                compiler.wait()


def _compile(name: Name, scratch: Path) -> "subprocess.Popen[bytes]":
    compiler = _compiler()
    assert compiler is not None
    headers, libraries = (str(Path(torch.__file__).parent / folder) for folder in ("include", "lib"))
    made = ["-isystem", headers, str(_source(name)), "-o", str(scratch / f"{name}.so")]
    linked = ["-L", libraries, "-lc10", "-ltorch_cpu"]
    command = [compiler, *FLAGS, *made, *linked]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # noqa: S603


def _wait_for(compiler: "subprocess.Popen[bytes]") -> str | None:
    """Return what went wrong, if anything did."""
    try:
        _, said = compiler.communicate(timeout=BUILD_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"took longer than {BUILD_TIMEOUT_S} s\n"
    return None if compiler.returncode == 0 else said[-REPORT_BYTES:].decode(errors="replace")


def _was_tried(path: Path) -> bool:
    return path.exists() or _failure(path).exists()


def _failure(path: Path) -> Path:
    """Say where it is written down why a library could not be made, so that each start does not try again."""
    return path.with_suffix(".failed")


def _source(name: Name) -> Path:
    return SOURCES / f"{name}.cpp"


def _folder() -> Path:
    """Give the folder of libraries. Raises OSError unless this user alone can put something there."""
    folder = platformdirs.user_cache_path("swarm-inference") / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    state = folder.stat()
    if state.st_uid != os.geteuid() or state.st_mode & 0o022:
        raise PermissionError(f"{folder} can be written by others: remove it, or take their right to write")
    return folder


def _library(name: Name) -> Path | None:
    """Say where the library of a source is, or would be, for this compiler, torch and CPU; None without a compiler."""
    compiler = _compiler()
    if compiler is None:
        return None
    source = b"".join(path.read_bytes() for path in (_source(name), *sorted(SOURCES.glob("*.h"))))
    made_for = "\n".join((*FLAGS, compiler, _version(compiler), torch.__version__, _cpu()))
    digest = hashlib.sha256(source + made_for.encode()).hexdigest()[:16]
    return _folder() / f"{name}-{digest}.so"


@cache
def _compiler() -> str | None:
    wanted = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, (wanted,) if wanted else COMPILERS)), None)


@cache
def _version(compiler: str) -> str:
    command = [compiler, "--version"]
    return subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=True).stdout  # noqa: S603


@cache
def _cpu() -> str:
    """Name what `-march=native` depends on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    described = dict.fromkeys(
        line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))
    )
    return "\n".join((platform.machine(), *described))
