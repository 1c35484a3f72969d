"""Quantized on load: how far off, the same in any company, how much smaller, and what is refused."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from swarm_model.checkpoint import Checkpoint
from swarm_model.errors import FormatUnavailable, NotEnoughMemory
from swarm_model.experts import quantizes_experts, replace_experts
from swarm_model.fp8_linears import PlainFp8Linear, TorchFp8Linear
from swarm_model.inference_linears import InferenceLinear
from swarm_model.int4_linears import CpuInt4Linear, PlainInt4Linear, int4_linear_class
from swarm_model.int8_linears import PlainInt8Linear, TorchInt8Linear, int8_linear_class
from swarm_model.linears import PackedLinear, can_pack, pack_linears
from swarm_model.native_kernels import SETTING
from swarm_model.nf4_linears import Nf4Linear
from swarm_model.siblings import SharedProduct, SiblingLinear, fuse, watch_linears
from swarm_model.sizing import QuantizationName, require_memory, weight_sizes
from swarm_model.span import Chunk, SessionKey, Span
from tests.model.families import BLOCKS, CPU, VOCABULARY, load_spans, load_transformers, make_checkpoint
from tests.model.quantized_checkpoints import make_fp8, make_nf4

FAMILIES = ["llama", "qwen2", "gemma2"]
FORMATS: list[QuantizationName] = ["int8", "int4", "nf4", "fp8"]
ERROR_OF_A_LAYER = {"int8": 0.02, "int4": 0.12, "nf4": 0.12, "fp8": 0.05}  # relative, for normal weights and inputs
ERROR_OF_FIVE_BLOCKS = {"int8": 0.06, "int4": 0.45, "nf4": 0.45, "fp8": 0.2}  # of random models with large weights
ERROR_OF_BFLOAT16 = 0.05
SMALLER = {"int8": 0.6, "int4": 0.4, "nf4": 0.65, "fp8": 0.6}  # than bfloat16, with all that these sizes do not suit
INPUTS, OUTPUTS = 256, 96


ADDS_IN_ANY_ORDER = (TorchFp8Linear,)  # as the products of floats do that stand for formats without a kernel


def make_linear(dtype: torch.dtype, bias: bool = True, seed: int = 0) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(INPUTS, OUTPUTS, bias=bias, dtype=dtype).requires_grad_(False)
    linear.weight.copy_(torch.randn(OUTPUTS, INPUTS, generator=generator))
    return linear


def make_rows(count: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows of very different sizes."""
    rows = torch.randn(count, INPUTS, generator=torch.Generator().manual_seed(1))
    return (rows * torch.logspace(-3, 3, count)[:, None]).to(dtype)


def layer_classes(dtype: torch.dtype) -> dict[type[InferenceLinear], str]:
    return {
        int8_linear_class(): "int8",
        TorchInt8Linear: "int8",
        PlainInt8Linear: "int8",
        int4_linear_class(dtype): "int4",
        CpuInt4Linear: "int4",
        PlainInt4Linear: "int4",
        Nf4Linear: "nf4",
        TorchFp8Linear: "fp8",
        PlainFp8Linear: "fp8",
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_close_to_the_plain_one(dtype: torch.dtype, bias: bool) -> None:
    linear, rows = make_linear(dtype, bias), make_rows(6, dtype)
    wanted = linear(rows).float()
    with torch.inference_mode():
        for kind, name in layer_classes(dtype).items():
            outputs = kind(linear)(rows[None])
            assert outputs.shape == (1, 6, OUTPUTS)
            assert outputs.dtype == dtype
            errors = (outputs[0].float() - wanted).norm(dim=1) / wanted.norm(dim=1)
            assert errors.max() < ERROR_OF_A_LAYER[name], kind


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_its_company(dtype: torch.dtype) -> None:
    linear, rows = make_linear(dtype), make_rows(8, dtype)
    with torch.inference_mode():
        for kind in layer_classes(dtype):
            layer = kind(linear)
            together = layer(rows)
            alone = torch.cat([layer(row[None]) for row in rows])
            if isinstance(layer, ADDS_IN_ANY_ORDER) or not layer.quick:
                difference = (alone - together).abs().amax(dim=1) / together.abs().amax(dim=1)
                assert difference.max() < torch.finfo(dtype).eps * 8, kind
            else:
                assert torch.equal(alone, together), kind


def test_the_two_ways_to_multiply_agree() -> None:
    linear, rows = make_linear(torch.float32), make_rows(5, torch.float32)
    with torch.inference_mode():
        for quick, plain in (
            (int8_linear_class(), PlainInt8Linear),
            (TorchInt8Linear, PlainInt8Linear),
        ):
            torch.testing.assert_close(quick(linear)(rows), plain(linear)(rows), rtol=1e-4, atol=1e-3)
        for quick, plain in ((CpuInt4Linear, PlainInt4Linear), (TorchFp8Linear, PlainFp8Linear)):  # in bfloat16
            wanted = plain(linear)(rows)
            torch.testing.assert_close(quick(linear)(rows), wanted, rtol=1e-2, atol=1e-2 * float(wanted.max()))


@pytest.mark.parametrize("count", [1, 16, 17, 40])
def test_products_of_integers_fill_up_what_an_accelerator_does_not_take(count: int) -> None:
    linear = nn.Linear(107, 45)
    rows = torch.randn(count, 107, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        torch.testing.assert_close(TorchInt8Linear(linear)(rows), PlainInt8Linear(linear)(rows))


def test_every_8_bit_float_is_widened_to_itself() -> None:
    """A layer of ones, whose inputs are all finite e4m3 values one by one."""
    values = torch.arange(-128, 128).to(torch.int8).view(torch.float8_e4m3fn).float()
    values = values[values.isfinite()]
    rows = torch.zeros(len(values), 16)
    rows[:, 0], rows[:, 1] = values, 448.0  # which makes the scale 1
    linear = nn.Linear(16, 16, bias=False)
    with torch.inference_mode():
        linear.weight.zero_()
        linear.weight[:, 0] = 448.0
        outputs = PlainFp8Linear(linear)(rows)
    torch.testing.assert_close(outputs, (448 * values)[:, None].expand(-1, 16))


def test_rows_of_zeros_and_rows_that_are_not_finite() -> None:
    linear = make_linear(torch.float32, bias=False)
    rows = torch.zeros(3, INPUTS)
    rows[1, 3], rows[2, 5] = float("nan"), float("inf")
    with torch.inference_mode():
        for kind in (int8_linear_class(), TorchInt8Linear, PlainInt8Linear, TorchFp8Linear, PlainFp8Linear):
            outputs = kind(linear)(rows)
            assert not outputs[0].any()
            assert not outputs[1:].isfinite().any()


def outputs_of(span: Span, session: bytes, ids: list[int]) -> torch.Tensor:
    (output,) = span.forward([Chunk(SessionKey(session), 0, torch.tensor(ids))])
    assert isinstance(output, torch.Tensor)
    span.drop(SessionKey(session))
    return output.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_span_is_close_to_the_plain_one_and_smaller(
    family: str, dtype: torch.dtype, checkpoint_of: Callable[[str], Path]
) -> None:
    ids = [number % VOCABULARY for number in range(3, 60)]
    folder = checkpoint_of(family)
    (plain,) = load_spans(folder, [0, BLOCKS - 1], dtype=dtype)
    (half,) = load_spans(folder, [2, BLOCKS], dtype=torch.bfloat16)
    wanted = outputs_of(plain, b"plain", ids)
    for name in FORMATS:
        (span,) = load_spans(folder, [0, BLOCKS - 1], dtype=dtype, quantize=name)
        error = (outputs_of(span, b"quantized", ids) - wanted).norm() / wanted.norm()
        assert 0 < error < ERROR_OF_FIVE_BLOCKS[name]
        (last,) = load_spans(folder, [2, BLOCKS], dtype=dtype, quantize=name)
        assert last.info.weight_bytes < SMALLER[name] * half.info.weight_bytes
        assert span.info.quantization == name
        assert span.info.numeric_class.split("/")[1] == name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_session_does_not_depend_on_its_company(family: str, checkpoint_of: Callable[[str], Path]) -> None:
    (span,) = load_spans(checkpoint_of(family), [0, 4], dtype=torch.bfloat16, quantize="int8")
    keys = [SessionKey(f"{number}".encode()) for number in range(8)]
    prompts = [list(range(3 + number, 20 + 2 * number)) for number in range(8)]
    for key, prompt in zip(keys, prompts, strict=True):
        span.forward([Chunk(key, 0, torch.tensor(prompt))])
    steps = [Chunk(key, len(prompt), torch.tensor([7])) for key, prompt in zip(keys, prompts, strict=True)]
    together = span.forward(steps)
    for step, wanted in zip(steps, together, strict=True):
        (alone,) = span.forward([step])
        assert isinstance(alone, torch.Tensor)
        assert isinstance(wanted, torch.Tensor)
        if int8_linear_class() is PlainInt8Linear:
            torch.testing.assert_close(alone, wanted, rtol=5e-2, atol=5e-2)
        else:
            assert torch.equal(alone, wanted)


WIDE = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 256}
MIXTURES: dict[str, dict[str, int]] = {
    "mixtral": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "decoder_sparse_step": 1},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 128},  # turned, biased, mixed
}


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("name", FORMATS)
def test_experts_are_quantized(family: str, name: QuantizationName, tmp_path: Path) -> None:
    directory = make_checkpoint(family, tmp_path, **{**WIDE, **MIXTURES[family]})
    (plain,) = load_spans(directory, [0, 2], dtype=torch.bfloat16)
    (span,) = load_spans(directory, [0, 2], dtype=torch.bfloat16, quantize=name)
    estimate = weight_sizes(Checkpoint.open(directory), "bfloat16", name).span(0, 2)
    assert span.info.weight_bytes == pytest.approx(estimate, rel=0.1)
    assert span.info.weight_bytes < 0.75 * plain.info.weight_bytes
    (output,) = span.forward([Chunk(SessionKey(b"a"), 0, torch.arange(3, 60))])
    assert isinstance(output, torch.Tensor)
    assert bool(output.isfinite().all())


class Kept(InferenceLinear):
    """A layer in a form that loses nothing."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.packed = linear.weight.detach().clone()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(inputs, self.packed, self.bias)


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_one_by_one_give_what_transformers_gives(family: str, tmp_path: Path) -> None:
    model = load_transformers(make_checkpoint(family, tmp_path, **MIXTURES[family]))
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        expected = model(ids).logits
        changed = replace_experts(model, "model.layers", lambda _: True, Kept)
        assert len(changed) == BLOCKS
        assert not any(parameter.dim() == 3 for parameter in model.parameters())
        ours = model(ids).logits
    assert float((ours - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_experts_that_do_not_fit_stay(tmp_path: Path) -> None:
    model = load_transformers(make_checkpoint("mixtral", tmp_path))
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        expected = model(ids).logits
        changed = replace_experts(model, "model.layers.0", lambda _: True, Kept)
        assert changed
        assert not replace_experts(model, "model.layers.1", lambda _: False, Kept)
        ours = model(ids).logits
    assert float((ours - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_experts_out_of_reach_stay_and_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = make_checkpoint("jetmoe", tmp_path, num_local_experts=4, num_experts_per_tok=2)
    assert not quantizes_experts(Checkpoint.open(directory))
    (plain,) = load_spans(directory, [0, 2])
    (span,) = load_spans(directory, [0, 2], quantize="int8")
    assert "mlp.input_linear.weight" in caplog.text
    assert 0.5 < span.info.weight_bytes / plain.info.weight_bytes < 1


def test_nf4_without_its_package_is_refused(
    checkpoint_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(FormatUnavailable, match="bitsandbytes is not installed") as refusal:
        load_spans(checkpoint_of("llama"), [0, 2], quantize="nf4")
    assert "pip install" in refusal.value.remedy()


def test_a_format_without_a_kernel_is_said_to_be_slow(
    checkpoint_of: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    load_spans(checkpoint_of("llama"), [0, 2], dtype=torch.bfloat16, quantize="int8")
    assert "no kernel" not in caplog.text
    load_spans(checkpoint_of("llama"), [0, 2], dtype=torch.bfloat16, quantize="fp8")
    assert "no kernel for fp8" in caplog.text


def test_a_checkpoint_that_is_expanded_can_be_quantized_anew(tmp_path: Path) -> None:
    folder = make_fp8(tmp_path)
    checkpoint = Checkpoint.open(folder)
    (span,) = load_spans(folder, [0, 2], dtype=torch.bfloat16, quantize="int8")
    assert span.info.numeric_class == "bfloat16/int8/cpu/packed/fp8-expanded"
    estimate = weight_sizes(checkpoint, "bfloat16", "int8", expanded=True).span(0, 2)
    assert span.info.weight_bytes == pytest.approx(estimate, rel=0.1)


def test_a_checkpoint_that_stays_quantized_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatUnavailable, match="already, as bitsandbytes-nf4"):
        load_spans(make_nf4(tmp_path), [0, 2], dtype=torch.bfloat16, quantize="int8")


def test_a_model_without_layers_that_fit_is_refused(tmp_path: Path) -> None:
    odd = {"hidden_size": 40, "intermediate_size": 72, "num_attention_heads": 5, "num_key_value_heads": 5}
    make_checkpoint("llama", tmp_path, **odd)
    with pytest.raises(FormatUnavailable, match="no linear layers"):
        load_spans(tmp_path, [0, 2], quantize="int4")
    load_spans(tmp_path, [0, 2], quantize="int8")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_the_estimate_knows_the_format(name: QuantizationName, tied: bool, tmp_path: Path) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 3, "vocab_size": 4096}
    checkpoint = Checkpoint.open(make_checkpoint("llama", tmp_path, tie_word_embeddings=tied, **sizes))
    for start, end in ((0, 2), (1, 3), (0, 3)):
        load = {"device": CPU, "dtype": torch.bfloat16, "kv_bytes": 1 << 20}
        found = Span.load(checkpoint, start, end, **load, quantize=name).info.weight_bytes
        assert found == pytest.approx(weight_sizes(checkpoint, "bfloat16", name).span(start, end), rel=0.05)
    room = {"kv_bytes": 0, "available_bytes": weight_sizes(checkpoint, "bfloat16").span(0, 3) - 1}
    with pytest.raises(NotEnoughMemory):
        require_memory(checkpoint, 0, 3, "bfloat16", **room)
    quantized = weight_sizes(checkpoint, "bfloat16", name)
    room["available_bytes"] = quantized.span(0, 3) + quantized.loading
    require_memory(checkpoint, 0, 3, "bfloat16", name, **room)
    room["available_bytes"] -= 1
    with pytest.raises(NotEnoughMemory):
        require_memory(checkpoint, 0, 3, "bfloat16", name, **room)


class Attention(nn.Module):
    """Three layers that read one tensor, and one that reads another."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(8, size) for size in (8, 4, 4, 8))
        self.requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.output(self.query(inputs) + torch.cat([self.key(inputs), self.value(inputs)], -1))
        return output


def test_siblings_are_found_by_what_they_read() -> None:
    model = nn.Sequential(Attention(), Attention())
    with watch_linears(model) as use:
        model(torch.ones(1, 3, 8))
    assert use.siblings == [[f"{number}.{name}" for name in ("query", "key", "value")] for number in (0, 1)]


def test_siblings_compute_what_they_computed_alone_in_whatever_order() -> None:
    layers = [nn.Linear(8, size).requires_grad_(False) for size in (8, 4, 4)]
    product = SharedProduct(fuse(layers), [8, 4, 4])
    shared = [SiblingLinear(product, number, layer) for number, layer in enumerate(layers)]
    first, second = torch.randn(2, 5, 8)
    for number, inputs in ((0, first), (2, second), (1, first), (0, second), (0, second), (1, second), (2, first)):
        torch.testing.assert_close(shared[number](inputs), layers[number](inputs))


LIMITED = """
import json, sys, torch
from pathlib import Path
from tests.model.families import BLOCKS, load_spans
from tests.model.test_quantize import FORMATS, int8_linear_class, outputs_of

torch.set_num_threads(1)
ids = list(range(3, 40))
kinds = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    **{name: {"quantize": name} for name in FORMATS},
}
spans = {name: load_spans(Path(sys.argv[1]), [0, BLOCKS - 1], **kind)[0] for name, kind in kinds.items()}
outputs = {name: outputs_of(span, b"a", ids) for name, span in spans.items()}
wanted = outputs["float32"]
errors = {name: float((output - wanted).norm() / wanted.norm()) for name, output in outputs.items()}
packed = {name: "packed" in span.info.numeric_class for name, span in spans.items()}
print(json.dumps({"errors": errors, "packed": packed, "int8": int8_linear_class().__name__}))
"""


def test_an_old_processor_takes_the_plain_way(checkpoint_of: Callable[[str], Path]) -> None:
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "default", SETTING: "off"}
    command = [sys.executable, "-c", LIMITED, str(checkpoint_of("llama"))]
    ran = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2], check=True, timeout=120
    )
    found = json.loads(ran.stdout.splitlines()[-1])
    for name, limit in {"bfloat16": ERROR_OF_BFLOAT16, **ERROR_OF_FIVE_BLOCKS}.items():
        assert 0 < found["errors"][name] < limit
    if platform.machine() == "x86_64":
        assert not found["packed"]["bfloat16"]
        assert found["int8"] == "PlainInt8Linear"  # without VNNI its sums overflow; int4's kernel is a matter of speed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_layers_compute_what_plain_ones_do_siblings_too(dtype: torch.dtype) -> None:
    if not can_pack(dtype, CPU):
        pytest.skip("this processor packs none")
    model, inputs = Attention().to(dtype), torch.randn(1, 3, 8).to(dtype)
    with torch.inference_mode():
        with watch_linears(model) as use:
            wanted = model(inputs)
        pack_linears(model, use.siblings)
        torch.testing.assert_close(model(inputs), wanted, rtol=2e-2, atol=2e-2)
    assert [type(module) for module in model.children()].count(SiblingLinear) == 3
    assert isinstance(model.output, PackedLinear)
