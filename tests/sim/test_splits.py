"""How blocks are shared out."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_sim.errors import BadOption
from swarm_sim.splits import block_count, head_weight, split_checkpoint, split_evenly


@given(num_blocks=st.integers(1, 60), nodes=st.integers(1, 60), head_blocks=st.floats(0, 20))
def test_every_block_once_and_no_node_idle_or_needlessly_slow(num_blocks: int, nodes: int, head_blocks: float) -> None:
    if nodes > num_blocks:
        with pytest.raises(BadOption, match="--nodes"):
            split_evenly(num_blocks, nodes, head_blocks)
        return
    spans = split_evenly(num_blocks, nodes, head_blocks)
    assert len(spans) == nodes
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == num_blocks
    assert all(start < end for start, end in spans)
    costs = [end - start for start, end in spans]
    costs[-1] += head_blocks
    assert max(costs) <= max((num_blocks + head_blocks) / nodes + 1.0, 1.0 + head_blocks)


@pytest.mark.parametrize(
    ("num_blocks", "nodes", "head_blocks", "sizes"),
    [(12, 3, 0.7, [4, 4, 4]), (8, 2, 4.0, [6, 2]), (12, 1, 1.0, [12]), (3, 3, 9.0, [1, 1, 1]), (12, 2, 0.0, [6, 6])],
)
def test_the_head_takes_its_share(num_blocks: int, nodes: int, head_blocks: float, sizes: list[int]) -> None:
    assert [end - start for start, end in split_evenly(num_blocks, nodes, head_blocks)] == sizes


def test_a_checkpoint_is_weighed_by_its_files(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 8, "vocab_size": 1000, "hidden_size": 64, "dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    block_bytes = 64_000
    (tmp_path / "model.safetensors").write_bytes(bytes(2 * 256_000 + 8 * block_bytes))
    assert head_weight(config, 2 * 256_000 + 8 * block_bytes) == pytest.approx(4.0)
    assert split_checkpoint(tmp_path, 2) == ((0, 6), (6, 8))


def test_a_configuration_is_read_with_its_dialects() -> None:
    assert block_count({"n_layer": 24}) == 24
    assert head_weight({"n_layer": 24}, 1000) == 0.0
    with pytest.raises(BadOption, match="how many blocks"):
        block_count({"hidden_size": 64})


@pytest.mark.parametrize("text", [None, "{", "[]", '{"num_hidden_layers": "many"}'])
def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadOption, match="--model"):
        split_checkpoint(tmp_path, 2)
