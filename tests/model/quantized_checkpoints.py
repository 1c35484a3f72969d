"""Tiny checkpoints in the schemes that quantized models come in, as their packages write them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, BitsAndBytesConfig

from tests.model.families import COMMON

BLOCKS = 4
TILE = 32  # rows and columns that share a scale


def make_plain(directory: Path, family: str = "llama", **changes: Any) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": BLOCKS, "head_dim": 32}
    config = CONFIG_MAPPING[family](**{**COMMON, **sizes, "initializer_range": 0.1, **changes})
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(directory, max_shard_size="400KB")
    return directory


def declare(directory: Path, **quantization: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": quantization}))


def change_tensors(directory: Path, change: Callable[[str, torch.Tensor], dict[str, torch.Tensor]]) -> None:
    """Replace each tensor by others; the index follows."""
    weight_map = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors = {new: value for old, tensor in load_file(file).items() for new, value in change(old, tensor).items()}
        save_file(tensors, file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file.name)
    if len(set(weight_map.values())) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def make_fp8(directory: Path) -> Path:
    """Blocks of 32 x 32 values with one scale, as DeepSeek's checkpoints have 128 x 128."""
    pytest.importorskip("accelerate")

    def quantize(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        if "proj" not in name:
            return {name: tensor}
        rows, columns = tensor.shape
        tiles = tensor.float().view(rows // TILE, TILE, columns // TILE, TILE)
        scale = tiles.abs().amax((1, 3)) / 448
        values = (tiles / scale[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn)
        return {name: values, name + "_scale_inv": scale}

    change_tensors(make_plain(directory), quantize)
    tile = {"weight_block_size": [TILE, TILE], "modules_to_not_convert": ["lm_head"]}
    declare(directory, quant_method="fp8", activation_scheme="dynamic", **tile)
    return directory


def make_mxfp4(directory: Path) -> Path:
    """Experts of random nibbles."""
    generator = torch.Generator().manual_seed(1)

    def quantize(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        if not name.endswith(("gate_up_proj", "down_proj")):
            return {name: tensor}
        experts, inputs, outputs = tensor.shape
        values = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(118, 123, (experts, outputs, inputs // 32), dtype=torch.uint8, generator=generator)
        return {name + "_blocks": values, name + "_scales": scales}

    change_tensors(make_plain(directory, "gpt_oss", num_local_experts=4, num_experts_per_tok=2), quantize)
    plain = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    declare(directory, quant_method="mxfp4", modules_to_not_convert=plain)
    return directory


def make_bitsandbytes(directory: Path, family: str = "llama", **how: Any) -> Path:
    pytest.importorskip("accelerate")
    pytest.importorskip("bitsandbytes")
    plain = make_plain(directory / "plain", family)
    config = BitsAndBytesConfig(**how)
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.bfloat16, quantization_config=config)
    model.save_pretrained(directory, max_shard_size="100KB")
    return directory


def make_nf4(directory: Path, family: str = "llama") -> Path:
    four_bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
    return make_bitsandbytes(directory, family, **four_bits)


def make_int8(directory: Path) -> Path:
    return make_bitsandbytes(directory, load_in_8bit=True)


def make_compressed(directory: Path) -> Path:
    """Packed int4 in groups of 32."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    from compressed_tensors.quantization import apply_quantization_config as apply

    model = AutoModelForCausalLM.from_pretrained(make_plain(directory / "plain"), dtype=torch.bfloat16)
    weights = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=TILE, symmetric=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, format="pack-quantized")
    groups: dict[str, Any] = {"config_groups": {"group_0": scheme}, "ignore": ["lm_head"], "format": "pack-quantized"}
    apply(model, QuantizationConfig(**groups, quantization_status="compressed"))
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            tiles = module.weight.float().view(len(module.weight), -1, TILE)
            module.weight_scale.data.copy_(tiles.abs().amax(-1) / 7.5)
    compressor = ModelCompressor.from_pretrained_model(model, quantization_format="pack-quantized")
    compressor.compress_model(model)
    model.save_pretrained(directory, max_shard_size="100KB")
    compressor.update_config(directory)
    return directory
