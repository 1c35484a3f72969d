"""Quantized checkpoints: a span has, to the bit, the weights that transformers gives the whole model."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, Mxfp4Config

from swarm_model.checkpoint import Checkpoint
from swarm_model.errors import CheckpointBroken, QuantizationUnavailable
from swarm_model.loading import load_model
from swarm_model.prequantized import expands
from swarm_model.sizing import weight_sizes
from swarm_model.skeleton import study
from swarm_model.span import Chunk, SessionKey
from tests.model.families import CPU, load_spans
from tests.model.quantized_checkpoints import (
    BLOCKS,
    change_tensors,
    declare,
    make_compressed,
    make_fp8,
    make_int8,
    make_mxfp4,
    make_nf4,
    make_plain,
)

CUTS = [0, 1, 3, BLOCKS]
SCHEMES: dict[str, Callable[[Path], Path]] = {
    "fp8-expanded": make_fp8,
    "mxfp4-expanded": make_mxfp4,
    "bitsandbytes-nf4": make_nf4,
    "bitsandbytes-int8": make_int8,
    "compressed-tensors-expanded": make_compressed,
}
COMPUTED = [scheme for scheme in SCHEMES if scheme != "mxfp4-expanded"]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give a scheme's checkpoint, made once."""
    made: dict[str, Path] = {}

    def give(scheme: str) -> Path:
        if scheme not in made:
            made[scheme] = SCHEMES[scheme](tmp_path_factory.mktemp(scheme))
        return made[scheme]

    return give


def load_whole(folder: Path, scheme: str) -> Any:
    how: dict[str, Any] = {}
    if scheme == "mxfp4-expanded":
        how["quantization_config"] = Mxfp4Config(dequantize=True)
    if scheme == "compressed-tensors-expanded":
        how["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager", **how).eval()


def load_parts(folder: Path) -> list[dict[str, Any]]:
    """The weights of the spans between the cuts, as loaded."""
    checkpoint = Checkpoint.open(folder)
    anatomy = study(checkpoint)
    kind: dict[str, Any] = {"dtype": torch.bfloat16, "on_bytes": lambda _: None}
    return [load_model(checkpoint, anatomy, start, end, **kind).state_dict() for start, end in pairwise(CUTS)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_spans_have_the_weights_of_the_whole_model(scheme: str, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(scheme)
    whole = load_whole(folder, scheme).state_dict()
    parts = load_parts(folder)
    for part in parts:
        for name, weight in part.items():
            assert torch.equal(weight, whole[name]), name
    assert {name for part in parts for name in part} == set(whole)


@pytest.mark.parametrize("scheme", COMPUTED)
def test_spans_compute_what_the_whole_model_computes(scheme: str, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(scheme)
    spans = load_spans(folder, CUTS[:-1], dtype=torch.bfloat16)
    ids = torch.arange(11) * 7
    hidden: Any = ids
    for span in spans:
        (hidden,) = span.forward([Chunk(SessionKey(b"s"), 0, hidden)])
    expected = load_whole(folder, scheme)(ids[None], output_hidden_states=True).hidden_states[CUTS[-2]][0]
    assert (hidden - expected).abs().max() <= 0.05 * expected.abs().max()
    assert {span.info.numeric_class.split("/")[-1] for span in spans} == {scheme}


@pytest.mark.parametrize("scheme", COMPUTED)
def test_sizes_are_estimated_from_the_files(scheme: str, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(scheme)
    checkpoint = Checkpoint.open(folder)
    sizes = weight_sizes(checkpoint, "bfloat16", expanded=expands(checkpoint, CPU))
    for span in load_spans(folder, CUTS, dtype=torch.bfloat16):
        estimate = sizes.span(span.info.start, span.info.end)
        assert 0.98 * span.info.weight_bytes <= estimate <= 1.1 * span.info.weight_bytes


@pytest.mark.parametrize("scheme", SCHEMES)
def test_block_digests_cover_what_quantization_adds(scheme: str, folder_of: Callable[[str], Path]) -> None:
    checkpoint = Checkpoint.open(folder_of(scheme))
    anatomy = study(checkpoint)
    for block in range(BLOCKS):
        own = {name for name in checkpoint.weight_map if f"layers.{block}." in name}
        assert any(not name.endswith(("weight", "bias")) for name in own), "nothing that quantization adds"
        assert own <= set(anatomy.digest_tensors(block))
    covered = {name for block in range(BLOCKS) for name in anatomy.digest_tensors(block)}
    assert covered == set(checkpoint.weight_map)


def test_a_scale_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = make_fp8(tmp_path)
    lost = "model.layers.1.mlp.up_proj.weight_scale_inv"
    change_tensors(folder, lambda name, tensor: {} if name == lost else {name: tensor})
    with pytest.raises(CheckpointBroken, match=r"layers\.1\.mlp\.up_proj"):
        load_spans(folder, [0, 2], dtype=torch.bfloat16)


def test_what_a_span_leaves_unquantized_is_decided_on_the_whole_model(tmp_path: Path) -> None:
    """Without a list the library leaves a model's last module alone: of a span, that would be one of a block."""
    folder = make_nf4(tmp_path, "olmo")
    whole = load_whole(folder, "bitsandbytes-nf4").state_dict()
    for part in load_parts(folder):
        assert all(torch.equal(weight, whole[name]) for name, weight in part.items())


@pytest.mark.parametrize(("method", "package"), [("gptq", "gptqmodel"), ("awq", "gptqmodel"), ("aqlm", "")])
def test_a_scheme_that_cannot_be_loaded_here_names_what_is_missing(method: str, package: str, tmp_path: Path) -> None:
    folder = make_plain(tmp_path)
    declare(folder, quant_method=method, bits=4, group_size=32)
    with pytest.raises(QuantizationUnavailable, match=method) as refusal:
        load_spans(folder, [0, 2])
    assert package in refusal.value.remedy()
    assert ("pip install" in refusal.value.remedy()) == bool(package)


def test_quantized_values_without_a_word_of_it_in_the_configuration(tmp_path: Path) -> None:
    folder = make_plain(tmp_path)
    change_tensors(folder, lambda name, tensor: {name: tensor.to(torch.int8) if "up_proj" in name else tensor})
    with pytest.raises(CheckpointBroken, match=r"up_proj.weight holds I8 where floats") as refusal:
        load_spans(folder, [0, 2])
    assert refusal.value.file.endswith(".safetensors")


def test_tensors_that_no_module_takes_are_left_out_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_plain(tmp_path)
    digests = [span.info.block_digests for span in load_spans(folder, [0, 2])]
    file = sorted(folder.glob("*.safetensors"))[0]
    extra = {
        "model.layers.1.self_attn.q_proj.bias": torch.ones(128),
        "model.layers.0.self_attn.rotary.cos": torch.ones(2),
    }
    save_file({**load_file(file), **extra}, file, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] |= dict.fromkeys(extra, file.name)
    index.write_text(json.dumps(content))

    assert [span.info.block_digests for span in load_spans(folder, [0, 2])] == digests
    assert "q_proj.bias" in caplog.text
