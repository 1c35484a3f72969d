"""Settings: what wins over what, where it came from, and what is refused."""

from pathlib import Path

import pytest

from swarm_node.errors import BadSetting
from swarm_node.settings import Settings, resolve, shown


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('kv_memory = "1GiB"\nthreads = 3\nregion = "eu"\nbootstrap = ["a", "b"]\n')
    environment = {"SWARM_NODE_THREADS": "5", "SWARM_NODE_REGION": "us", "HOME": "/"}
    sourced = resolve({"region": "ap", "model": None}, environment, file)
    assert sourced.settings.kv_memory == 2**30
    assert sourced.settings.bootstrap == ["a", "b"]
    assert sourced.settings.threads == 5
    assert sourced.settings.region == "ap"
    assert sourced.settings.blocks == "auto"
    assert sourced.origins["kv_memory"] == str(file)
    assert sourced.origins["threads"] == "SWARM_NODE_THREADS"
    assert sourced.origins["region"] == "--region"
    assert sourced.origins["blocks"] == "default"


def test_every_setting_has_an_origin_and_a_description() -> None:
    assert resolve({}, {}, None).origins.keys() == Settings.model_fields.keys()
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2 << 30), ("512MiB", 512 << 20), ("1.5GB", 1_500_000_000), ("4096", 4096), ("3 kb", 3000), ("7B", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert resolve({"kv_memory": text}, {}, None).settings.kv_memory == size


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kv_memory", "lots"),
        ("kv_memory", "0"),
        ("kv_memory", "-1GiB"),
        ("blocks", "4"),
        ("blocks", "a:b"),
        ("listen", "nowhere"),
        ("announce", "host:port"),
        ("device", "tpu"),
        ("dtype", "int3"),
        ("threads", "-1"),
        ("threads", "many"),
        ("idle_timeout", "0"),
        ("dht", "maybe"),
    ],
)
def test_a_bad_value_names_itself_and_its_origin(name: str, value: str) -> None:
    with pytest.raises(BadSetting) as caught:
        resolve({}, {f"SWARM_NODE_{name.upper()}": value}, None)
    assert (caught.value.name, caught.value.value) == (name, value)
    assert caught.value.origin == f"SWARM_NODE_{name.upper()}"
    assert caught.value.remedy()


def test_bad_files_are_named(tmp_path: Path) -> None:
    for content in ("model = ", "modle = 'x'"):
        file = tmp_path / "node.toml"
        file.write_text(content)
        with pytest.raises(BadSetting):
            resolve({}, {}, file)
    with pytest.raises(BadSetting):
        resolve({}, {}, tmp_path / "missing.toml")


def test_a_variable_that_is_no_setting_is_told_with_the_nearest_one() -> None:
    sourced = resolve({}, {"SWARM_NODE_KV_MEMROY": "1GiB", "SWARM_NODE_THREADS": "2", "SWARM_CLIENT_X": "1"}, None)
    (warning,) = sourced.warnings
    assert "SWARM_NODE_KV_MEMROY" in warning
    assert "SWARM_NODE_KV_MEMORY" in warning


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("kv_memory", 2 << 30, "2GiB"),
        ("kv_memory", 1536 << 20, "1536MiB"),
        ("kv_memory", 1_500_000_001, "1500000001"),
        ("threads", 1024, "1024"),
        ("bootstrap", ["a", "b"], "a,b"),
    ],
)
def test_values_are_shown_as_people_write_them(name: str, value: object, text: str) -> None:
    assert shown(name, value) == text
    if name == "kv_memory":
        assert resolve({name: text}, {}, None).settings.kv_memory == value


def test_a_switch_may_be_true_or_false_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("bank = false\n")
    assert resolve({}, {}, file).settings.bank == "off"
    assert resolve({"bank": True}, {}, file).settings.bank == "on"
    assert resolve({}, {"SWARM_NODE_BANK": "auto"}, file).settings.bank == "auto"
