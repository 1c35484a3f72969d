"""Kernels that are compiled on the machine: they give what torch gives, and nothing fails where there are none."""

import os
import platform
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from swarm_model.acceleration import Acceleration
from swarm_model.inference_linears import InferenceLinear
from swarm_model.int4_linears import NativeInt4Linear, PlainInt4Linear
from swarm_model.int8_linears import NativeInt8Linear, PlainInt8Linear
from swarm_model.kernels import Asked
from swarm_model.native_attention import NativeAttention
from swarm_model.native_kernels import NAMES, SETTING, native_operator
from tests.model.families import BLOCKS, load_spans
from tests.model.test_acceleration import compare, run

CUTS = [0, 2, BLOCKS]
needs_attention = pytest.mark.skipif(native_operator("paged_attention") is None, reason="no compiler")
needs_int8 = pytest.mark.skipif(native_operator("int8_linear") is None, reason="no compiler, or no AVX-512 VNNI")

LOAD = """
import sys, torch
from pathlib import Path
from swarm_model.int8_linears import int8_linear_class
from tests.model.families import BLOCKS, load_spans

torch.set_num_threads(1)
(span,) = load_spans(Path(sys.argv[1]), [0, BLOCKS], quantize="int8")
print(span.info.kernel, int8_linear_class().__name__)
"""


def load_elsewhere(checkpoint: Path, **environment: str) -> "subprocess.Popen[str]":
    """Load a span in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", LOAD, str(checkpoint)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
    )


def chosen(process: "subprocess.Popen[str]") -> list[str]:
    """Say which attention and which int8 a process took."""
    output, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    return output.split()


def make_compiler(folder: Path, script: str) -> Path:
    compiler = folder / "compiler"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    return compiler


@needs_int8
@given(
    rows=st.integers(1, 40),
    inputs=st.integers(1, 80),
    outputs=st.integers(1, 80),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_int8_products_of_any_shape(
    rows: int, inputs: int, outputs: int, bias: bool, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(inputs, outputs, bias=bias)
    given_rows = torch.randint(-127, 128, (rows, inputs)).float()
    given_rows[:, 0] = 127.0  # integers, which both ways round to themselves
    with torch.inference_mode():
        ours = NativeInt8Linear(linear)(given_rows.to(dtype))
        theirs = PlainInt8Linear(linear)(given_rows.to(dtype))
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol={torch.float32: 1e-5}.get(dtype, 1e-2))


@needs_int8
@given(
    rows=st.integers(1, 40),
    groups=st.integers(1, 5),
    panels=st.integers(1, 5),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_int4_products_of_any_shape(
    rows: int, groups: int, panels: int, bias: bool, dtype: torch.dtype, seed: int
) -> None:
    """Groups of 32 inputs and of 64, as their number is odd or even."""
    torch.manual_seed(seed)
    linear = nn.Linear(32 * groups, 16 * panels, bias=bias)
    given_rows = torch.randint(-127, 128, (rows, 32 * groups)).float()
    given_rows[:, 0] = 127.0
    with torch.inference_mode():
        ours = NativeInt4Linear(linear)(given_rows.to(dtype))
        theirs = PlainInt4Linear(linear)(given_rows.to(dtype))
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol={torch.float32: 1e-4}.get(dtype, 1e-2))


@needs_int8
@pytest.mark.parametrize("kind", [NativeInt8Linear, NativeInt4Linear])
def test_products_of_several_threads_are_those_of_one(kind: type[InferenceLinear]) -> None:
    torch.manual_seed(0)
    layer, rows = kind(nn.Linear(256, 992)), torch.randn(50, 256)
    threads = torch.get_num_threads()
    try:
        with torch.inference_mode():
            torch.set_num_threads(1)
            alone = layer(rows)
            torch.set_num_threads(4)
            assert torch.equal(layer(rows), alone)
    finally:
        torch.set_num_threads(threads)


@needs_int8
@needs_attention
def test_operators_check_what_they_are_given() -> None:
    layer = NativeInt8Linear(nn.Linear(32, 32))
    operator = native_operator("int8_linear")
    assert operator is not None
    rows, outputs = torch.zeros(2, 32), torch.zeros(2, 32)
    operator(outputs, rows, layer.packed, layer.scales, layer.bias)
    for wrong in (
        (outputs[:1], rows, layer.packed, layer.scales, layer.bias),
        (outputs, rows.long(), layer.packed, layer.scales, layer.bias),
        (outputs, rows[:, ::2], layer.packed, layer.scales, layer.bias),
        (outputs, rows, layer.packed[:, :4], layer.scales, layer.bias),
        (outputs, rows, layer.packed, layer.scales, layer.bias[:3]),
        (outputs.bfloat16(), rows, layer.packed, layer.scales, layer.bias),
    ):
        with pytest.raises(RuntimeError):
            operator(*wrong)
    layer = NativeInt4Linear(nn.Linear(32, 32))
    operator = native_operator("int4_linear")
    assert operator is not None
    operator(outputs, rows, layer.packed, layer.bias)
    for wrong in (
        (outputs[:1], rows, layer.packed, layer.bias),
        (outputs.long(), rows, layer.packed, layer.bias),
        (outputs, rows[:, :16], layer.packed, layer.bias),
        (outputs, rows[:, :0], layer.packed[:, :0], layer.bias),
        (outputs, rows, layer.packed[:1], layer.bias),
        (outputs, rows, layer.packed[0], layer.bias),
        (outputs, rows, layer.packed, layer.bias[:3]),
    ):
        with pytest.raises(RuntimeError):
            operator(*wrong)
    for kind in (NativeInt8Linear, NativeInt4Linear):
        assert kind(nn.Linear(32, 32))(rows[:0]).shape == (0, 32)
    attend = native_operator("paged_attention")
    assert attend is not None
    query, pool = torch.zeros(1, 4, 16), torch.zeros(32, 2, 16)

    def call(*, session: int = 0, length: int = 16, page: int = 1, page_size: int = 16) -> None:
        tokens, pages = torch.tensor([[session, length]]).int(), torch.tensor([[page]]).int()
        attend(torch.empty(1, 4, 16), query, pool, pool, tokens, pages, page_size, 1.0, 0)

    call()
    for outside in ({"session": 1}, {"session": -1}, {"length": 17}, {"length": 0}, {"page": 2}, {"page": -1}):
        with pytest.raises(RuntimeError, match="outside the pool"):
            call(**outside)
    with pytest.raises(RuntimeError):
        call(page_size=0)


@needs_attention
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_span_gives_what_it_gives_by_torch(
    family: str, dtype: torch.dtype, checkpoint_of: Callable[[str], Path]
) -> None:
    directory = checkpoint_of(family)
    ours = load_spans(directory, CUTS, dtype=dtype, kv_bytes=16 << 20)
    theirs = load_spans(directory, CUTS, dtype=dtype, kv_bytes=16 << 20, acceleration=Acceleration())
    assert [span.info.kernel for span in ours + theirs] == ["native"] * 2 + ["torch"] * 2
    compare(run(ours, 8), run(theirs, 8), 1e-4 if dtype == torch.float32 else 0.3)


@needs_attention
def test_what_the_kernel_does_not_know_it_does_not_take() -> None:
    kernel = NativeAttention(16)
    plain = {"heads": 8, "kv_heads": 2, "key_size": 64, "value_size": 32, "dtype": torch.bfloat16, "scale": 1.0}
    assert kernel.serves(Asked(**plain, window=7))
    for change in ({"chunk": 8}, {"softcap": 1.0}, {"has_sinks": True}, {"has_biases": True}, {"key_size": 24}):
        assert not kernel.serves(Asked(**{**plain, **change}))
    assert not kernel.serves(Asked(**{**plain, "dtype": torch.float16}))


def test_without_a_compiler_everything_works(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    without = ({SETTING: "off"}, {"CXX": str(tmp_path / "nothing"), "XDG_CACHE_HOME": str(tmp_path)})
    for process in [load_elsewhere(checkpoint_of("llama"), **environment) for environment in without]:
        attention, int8 = chosen(process)
        assert attention == "torch"
        assert int8 != "NativeInt8Linear"


@pytest.mark.slow  # compiles and loads for several
@needs_attention
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of this architecture")
def test_older_processors_attend_natively_too(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    processes = []
    for older in ("haswell", "x86-64"):
        (folder := tmp_path / older).mkdir()
        compiler = make_compiler(folder, f'exec c++ $(echo "$@" | sed s/-march=native/-march={older}/)')
        environment = {"CXX": str(compiler), "XDG_CACHE_HOME": str(folder)}
        processes.append(load_elsewhere(checkpoint_of("llama"), **environment))
    for process in processes:
        attention, int8 = chosen(process)
        assert attention == "native"
        assert int8 != "NativeInt8Linear"


@pytest.mark.skipif(sys.platform != "linux", reason="nothing is compiled elsewhere")
def test_what_cannot_be_compiled_is_not_tried_again(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    tried = tmp_path / "tried"
    script = f'case "$1" in --version) echo 1.0;; *) echo tried >> {tried}; echo no such flag >&2; exit 1;; esac'
    environment = {"CXX": str(make_compiler(tmp_path, script)), "XDG_CACHE_HOME": str(tmp_path)}
    for _ in range(2):
        attention, _ = chosen(load_elsewhere(checkpoint_of("llama"), **environment))
        assert attention == "torch"
    assert len(tried.read_text().split()) == len(NAMES)
    reports = list((tmp_path / "swarm-inference" / "kernels").glob("*.failed"))
    assert [report.read_text() for report in reports] == ["no such flag\n"] * len(NAMES)


@pytest.mark.slow  # three processes that compile everything
@needs_attention
def test_processes_that_start_together_compile_once(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    script = f'case "$1" in --version) ;; *) echo call >> {calls};; esac\nexec c++ "$@"'
    environment = {"CXX": str(make_compiler(tmp_path, script)), "XDG_CACHE_HOME": str(tmp_path)}
    processes = [load_elsewhere(checkpoint_of("llama"), **environment) for _ in range(2)]
    assert [chosen(process)[0] for process in processes] == ["native", "native"]
    assert len(calls.read_text().split()) == len(NAMES)
    folder = tmp_path / "swarm-inference" / "kernels"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)  # others could put a library there
    assert chosen(load_elsewhere(checkpoint_of("llama"), **environment))[0] == "torch"
