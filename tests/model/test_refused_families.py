"""Families whose numbers we would get wrong are refused when they are loaded, each for a reason of its own."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from swarm_model.errors import CheckpointBroken, UnsupportedModel
from swarm_model.sizing import QuantizationName
from tests.model.configurations import BLOCKS, REFUSALS, Refusal
from tests.model.families import load_spans, make_checkpoint


@pytest.mark.parametrize("refused", REFUSALS, ids=lambda refused: refused.name)
def test_a_family_that_would_be_computed_wrong_is_refused(refused: Refusal, tmp_path: Path) -> None:
    directory = make_checkpoint(refused.family, tmp_path, **{"num_hidden_layers": BLOCKS, **refused.changes})
    with pytest.raises(UnsupportedModel, match=refused.says) as refusal:
        load_spans(directory, [0, 2, BLOCKS])
    assert refusal.value.family == refused.family


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_named(value: float, tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    name = "model.layers.3.mlp.up_proj.weight"
    for file in tmp_path.glob("*.safetensors"):
        tensors = load_file(file)
        if name in tensors:
            tensors[name][5, 7] = value
            save_file(tensors, file, metadata={"format": "pt"})

    load_spans(tmp_path, [0, 2])
    formats: list[QuantizationName] = ["none", "int8", "int4", "nf4", "fp8"]
    for quantize in formats:
        with pytest.raises(CheckpointBroken, match=f"NaN or infinite: {name}"):
            load_spans(tmp_path, [2, 4], quantize=quantize)


def test_numbers_beyond_a_type_are_told_from_broken_weights(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        tensors = {name: tensor * 2000 for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})

    with pytest.raises(UnsupportedModel, match="range of float16"):
        load_spans(tmp_path, [0, 2], dtype=torch.float16)
