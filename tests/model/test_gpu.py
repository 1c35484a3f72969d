"""Spans on a CUDA device: exact with whatever kernel was chosen, with recorded decode steps and without."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from swarm_model.acceleration import Acceleration, acceleration_of
from swarm_model.checkpoint import Checkpoint
from swarm_model.fp8_linears import TorchFp8Linear, fp8_linear_class
from swarm_model.graphs import CudaGraphs, Run
from swarm_model.int4_linears import CudaInt4Linear, int4_linear_class
from swarm_model.int8_linears import TorchInt8Linear, int8_linear_class
from swarm_model.sampling_params import MAX_TOP_LOGPROBS, Sampling
from swarm_model.sizing import QuantizationName
from swarm_model.span import Chunk, SampleRequest, SessionKey, Span
from swarm_model.transfers import CudaStreams, Transfers
from tests.model.families import BLOCKS, FAMILIES, load_reference, load_spans
from tests.model.test_acceleration import compare, run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CUTS = [0, 2, 4, BLOCKS]
CUDA = torch.device("cuda")


def load(
    directory: Path,
    dtype: torch.dtype,
    acceleration: Acceleration | None = None,
    quantize: QuantizationName = "none",
) -> list[Span]:
    checkpoint = Checkpoint.open(directory)
    kind = {"device": CUDA, "dtype": dtype, "kv_bytes": 64 << 20, "acceleration": acceleration, "quantize": quantize}
    return [Span.load(checkpoint, start, end, **kind) for start, end in pairwise(CUTS)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cuda_device_gives_what_a_cpu_gives(
    family: str, dtype: torch.dtype, checkpoint_of: Callable[[str], Path]
) -> None:
    spans = load(checkpoint_of(family), dtype)
    assert {span.info.kernel for span in spans} != {"torch"}
    compare(
        run(spans, 5),
        run(load_spans(checkpoint_of(family), CUTS, dtype=dtype), 5),
        1e-3 if dtype.itemsize == 4 else 0.3,
    )


def test_every_kernel_that_can_be_imported_is_exact(checkpoint_of: Callable[[str], Path]) -> None:
    plain = run(load(checkpoint_of("llama"), torch.bfloat16, Acceleration()), 6)
    for make in acceleration_of(CUDA, 16).kernels:
        alone = replace(acceleration_of(CUDA, 16), kernels=(make,))
        spans = load(checkpoint_of("llama"), torch.bfloat16, alone)
        assert all(span.info.kernel.endswith("+graphs") for span in spans)
        compare(run(spans, 6), plain, 0.3)


class Counts(CudaGraphs):
    """Remembers how many steps it recorded."""

    recorded = 0

    def record(self, run: Run) -> Run:
        self.recorded += 1
        return super().record(run)


def test_what_is_recorded_before_serving_is_all_that_short_sessions_need(checkpoint_of: Callable[[str], Path]) -> None:
    recorders: list[Counts] = []

    def recorder() -> Counts:
        recorders.append(Counts(CUDA))
        return recorders[-1]

    spans = load(checkpoint_of("llama"), torch.bfloat16, replace(acceleration_of(CUDA, 16), recorder=recorder))
    assert all(span.info.kernel.endswith("+graphs") for span in spans)
    ahead = [one.recorded for one in recorders]
    plain = load(checkpoint_of("llama"), torch.bfloat16, Acceleration())
    compare(run(spans, 8), run(plain, 8), 0.3)
    assert [one.recorded for one in recorders] == ahead


def test_what_crosses_over_the_side_stream_comes_as_it_was() -> None:
    transfers, generator = Transfers(CUDA, CudaStreams(CUDA)), torch.Generator().manual_seed(1)
    for _ in range(200):  # memory of earlier copies is used again
        sent = torch.randn(1 << int(torch.randint(0, 20, (), generator=generator)), generator=generator)
        work = torch.randn(512, 512, device=CUDA)
        for _ in range(5):
            work = work @ work
        moved = transfers.to_device(sent)
        assert torch.equal(transfers.to_host(moved + 1.0), sent + 1.0)
    assert len(transfers.to_device(torch.zeros(0))) == 0


def test_the_host_waits_for_its_copy_and_not_for_the_device() -> None:
    transfers = Transfers(CUDA, CudaStreams(CUDA))
    ready = transfers.to_device(torch.arange(5))
    transfers.to_host(ready)  # what the first copy sets up may wait
    aside = torch.cuda.Stream(CUDA)
    with torch.cuda.stream(aside):
        torch.cuda._sleep(1 << 32)  # over a second
        behind = aside.record_event()
    assert transfers.to_host(ready * 2).tolist() == [0, 2, 4, 6, 8]
    assert not behind.query()


@pytest.mark.parametrize("quantize", ["int8", "int4", "nf4", "fp8"])
def test_a_quantized_span_gives_what_it_gives_on_a_cpu(
    quantize: QuantizationName, checkpoint_of: Callable[[str], Path]
) -> None:
    spans = load(checkpoint_of("llama"), torch.bfloat16, quantize=quantize)
    assert all(f"{quantize}/cuda" in span.info.numeric_class for span in spans)
    compare(
        run(spans, 5), run(load_spans(checkpoint_of("llama"), CUTS, dtype=torch.bfloat16, quantize=quantize), 5), 0.3
    )


@pytest.mark.parametrize(
    ("chosen", "wanted"),
    [
        (int8_linear_class, TorchInt8Linear),
        (partial(int4_linear_class, torch.bfloat16), CudaInt4Linear),
        (partial(fp8_linear_class, torch.bfloat16), TorchFp8Linear),
    ],
)
def test_products_run_on_tensor_cores(chosen: Callable[[torch.device], type], wanted: type) -> None:
    if wanted is TorchFp8Linear and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no tensor cores for 8-bit floats")
    assert chosen(CUDA) is wanted


def test_random_text_scores_as_with_transformers(checkpoint_of: Callable[[str], Path]) -> None:
    spans, reference = (
        load(checkpoint_of("llama"), torch.float32),
        load_reference(checkpoint_of("llama"), torch.float32),
    )
    rng = random.Random(1)
    key, text = SessionKey(b"text"), [rng.randrange(3, 90) for _ in range(50)]
    rows = torch.tensor(text)
    for span in spans:
        (rows,) = span.forward([Chunk(key, 0, rows, SampleRequest(Sampling(top_logprobs=MAX_TOP_LOGPROBS)))])
    with torch.inference_mode():
        expected = reference(torch.tensor([text])).logits[0, -1].log_softmax(-1)
    for token, logprob in rows[0].top:
        assert logprob == pytest.approx(float(expected[token]), abs=1e-3)
