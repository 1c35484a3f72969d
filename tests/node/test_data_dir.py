"""Data directories: one node each, the next free one by default, and finding who runs."""

from pathlib import Path

import pytest

from swarm_node.data_dir import DataDir, is_locked, running
from swarm_node.errors import DataDirInUse


def test_a_second_node_takes_the_next_default(tmp_path: Path) -> None:
    first, second = DataDir.claim("", tmp_path), DataDir.claim("", tmp_path)
    assert (first.name, second.name) == ("node", "node-2")
    first.close()
    again = DataDir.claim("", tmp_path)
    assert again.name == "node"
    again.close()
    second.close()


def test_an_explicit_directory_in_use_is_refused(tmp_path: Path) -> None:
    first = DataDir.claim(str(tmp_path / "mine"), tmp_path)
    with pytest.raises(DataDirInUse) as caught:
        DataDir.claim(str(tmp_path / "mine"), tmp_path)
    assert "--data-dir" in caught.value.remedy()
    first.close()


def test_running_nodes_are_found_by_lock_and_state(tmp_path: Path) -> None:
    claimed = DataDir.claim("", tmp_path)
    assert running(tmp_path) == []  # it is starting
    claimed.write_state({"model": "m", "identity": str(claimed.identity_file(""))})
    explicit = DataDir.claim(str(tmp_path / "elsewhere"), tmp_path)
    explicit.write_state({"model": "m"})
    assert [node.name for node in running(tmp_path)] == ["node"]
    assert [node.name for node in running(tmp_path, "node")] == ["node"]
    assert [node.name for node in running(tmp_path, str(tmp_path / "elsewhere"))] == ["elsewhere"]
    assert running(tmp_path, "node-7") == []
    claimed.close()
    explicit.close()
    assert not is_locked(claimed.path)
    assert running(tmp_path) == []


def test_a_state_file_without_a_lock_is_a_node_that_died(tmp_path: Path) -> None:
    claimed = DataDir.claim("", tmp_path)
    claimed.write_state({"model": "m"})
    state = (claimed.path / "running.json").read_text()
    claimed.close()
    (claimed.path / "running.json").write_text(state)
    assert running(tmp_path) == []


def test_a_directory_made_for_a_node_that_never_served_goes(tmp_path: Path) -> None:
    failed = DataDir.claim("", tmp_path)
    failed.identity_file("").write_text("key")
    failed.close()
    assert not failed.path.exists()

    served = DataDir.claim("", tmp_path)
    served.identity_file("").write_text("key")
    served.write_state({"model": "m"})
    served.close()
    assert served.identity_file("").exists()

    again = DataDir.claim("", tmp_path)  # it is not new any more: its key has a name in the swarm
    again.close()
    assert again.identity_file("").exists()


def test_a_folder_of_somebody_else_stays(tmp_path: Path) -> None:
    claimed = DataDir.claim(str(tmp_path / "mine"), tmp_path)
    (claimed.path / "notes.txt").write_text("mine")
    claimed.close()
    assert [file.name for file in claimed.path.iterdir()] == ["notes.txt"]
