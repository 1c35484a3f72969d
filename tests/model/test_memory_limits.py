"""Memory limits of containers and services, as the kernel writes them."""

from pathlib import Path

import pytest

from swarm_model.memory_limits import free_in_group_bytes

GIB = 1 << 30


def group(folder: Path, limit: str, used: int, cached: int, *, version: int = 2) -> None:
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - cached}\n{names[2]} {cached}\nactive_file 4096\n")


def free(tmp_path: Path, own: str) -> int | None:
    (tmp_path / "own").write_text(own)
    return free_in_group_bytes(tmp_path / "own", tmp_path / "mount")


def test_the_tightest_group_counts_and_file_pages_do_not(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    group(mount / "system.slice" / "node.service", "max", GIB, 0)
    group(mount / "system.slice", str(8 * GIB), 5 * GIB, 2 * GIB)
    assert free(tmp_path, "0::/system.slice/node.service\n") == 5 * GIB
    group(mount / "system.slice" / "node.service", str(2 * GIB), GIB, 0)
    assert free(tmp_path, "0::/system.slice/node.service\n") == GIB
    group(mount / "system.slice" / "node.service", str(GIB), 2 * GIB, 0)
    assert free(tmp_path, "0::/system.slice/node.service\n") == 0


def test_a_container_sees_its_own_group_where_groups_are_mounted(tmp_path: Path) -> None:
    group(tmp_path / "mount", str(4 * GIB), GIB, 0)
    assert free(tmp_path, "0::/\n") == 3 * GIB
    assert free(tmp_path, "0::/docker/of-the-host\n") == 3 * GIB


def test_the_first_version(tmp_path: Path) -> None:
    group(tmp_path / "mount" / "memory" / "docker" / "x", str(2 * GIB), GIB, GIB // 2, version=1)
    own = "12:cpuset:/\n4:blkio,memory:/docker/x\n1:name=systemd:/\n0::/\n"
    assert free(tmp_path, own) == 2 * GIB - GIB // 2


@pytest.mark.parametrize("own", ["", "0::/nowhere\n", "3:memory:/nowhere\n0::/\n"])
def test_no_limit(own: str, tmp_path: Path) -> None:
    assert free(tmp_path, own) is None
    assert free_in_group_bytes(tmp_path / "none", tmp_path) is None
