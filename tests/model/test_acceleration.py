"""Spans with a kernel and recorded decode steps give what they give without: the parts that need no accelerator.

A recording that runs again stands for a graph: it reads and writes the same static tensors.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from swarm_model.acceleration import Acceleration
from swarm_model.checkpoint import Checkpoint
from swarm_model.graphs import Eager, Run
from swarm_model.kernels import FlashInferAttention, GatheredDecode, Kernel, VarlenAttention
from swarm_model.sampling_params import MAX_TOP_LOGPROBS, Sampling
from swarm_model.span import LoadProgress, SessionKey, Span
from tests.model.families import BLOCKS, FAMILIES, VOCABULARY, load_spans, make_checkpoint
from tests.model.sessions import Session, run_sessions
from tests.model.test_kernels import FlashInferWrapper, varlen_attn

CUTS = [0, 2, 4, BLOCKS]
PLAIN = Acceleration()
GATHERED = Acceleration((GatheredDecode,), Eager)


class Wrong(GatheredDecode):
    """Gives something else."""

    def attend(self, *arguments: object) -> torch.Tensor:
        return super().attend(*arguments).flip(-1)  # type: ignore[arg-type]


class Absent(GatheredDecode):
    """Is not installed, or not for this device."""

    def __init__(self) -> None:
        raise ImportError("no such library")


class Counts(Eager):
    """Remembers how many steps it recorded."""

    recorded = 0

    def record(self, run: Run) -> Run:
        self.recorded += 1
        return super().record(run)


class Waits(Eager):
    """Cannot be recorded."""

    def record(self, run: Run) -> Run:
        raise RuntimeError("operation not permitted when stream is capturing")


def run(spans: list[Span], seed: int) -> list[Session]:
    """Run nine sessions with prompts of several lengths, so that decode steps have up to nine rows."""
    rng = random.Random(seed)
    sessions = [
        Session(
            SessionKey(bytes([number])),
            [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(1, 40))],
            10,
            Sampling(top_logprobs=MAX_TOP_LOGPROBS),
        )
        for number in range(9)
    ]
    run_sessions(spans, sessions, rng)
    return sessions


def run_alone(spans: list[Span]) -> list[Session]:
    """Run a session that one page holds."""
    session = Session(SessionKey(b"alone"), [5, 4, 3], 10, Sampling(top_logprobs=MAX_TOP_LOGPROBS))
    run_sessions(spans, [session], random.Random(3))
    return [session]


def compare(ours: list[Session], theirs: list[Session], tolerance: float) -> None:
    """Compare log-probabilities as far as the texts are the same, as they are until two tokens are as likely."""
    for session, other in zip(ours, theirs, strict=True):
        for sampled, expected in zip(session.sampled, other.sampled, strict=True):
            for token, logprob in sampled.top[:3]:
                assert logprob == pytest.approx(dict(expected.top)[token], abs=tolerance)
            if sampled.token != expected.token:
                assert dict(expected.top)[sampled.token] == pytest.approx(expected.top[0][1], abs=tolerance)
                break


GPT_OSS = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7, "head_dim": 16}


@pytest.mark.parametrize("family", [*FAMILIES, "gpt_oss"])
def test_recorded_decode_steps_give_what_plain_ones_give(
    family: str, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = make_checkpoint(family, tmp_path, **GPT_OSS) if family == "gpt_oss" else checkpoint_of(family)
    quick = load_spans(directory, CUTS, acceleration=GATHERED)
    assert [span.info.kernel for span in quick] == ["gathered+graphs"] * 3
    assert [span.info.page_size for span in quick] == [16] * 3
    compare(run(quick, 5), run(load_spans(directory, CUTS, acceleration=PLAIN), 5), 1e-4)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("varlen", lambda: VarlenAttention(varlen_attn)),
        ("flashinfer", lambda: FlashInferAttention(torch.device("cpu"), FlashInferWrapper)),
    ],
)
def test_spans_tell_libraries_what_they_want_to_know(
    name: str, make: Callable[[], Kernel], checkpoint_of: Callable[[str], Path]
) -> None:
    directory = checkpoint_of("mistral")
    kinds = {"dtype": torch.bfloat16, "kv_bytes": 16 << 20}
    quick = load_spans(directory, CUTS, acceleration=Acceleration((make,), Eager), **kinds)
    assert [span.info.kernel for span in quick] == [f"{name}+graphs"] * 3
    compare(run(quick, 6), run(load_spans(directory, CUTS, acceleration=PLAIN, **kinds), 6), 0.3)


def test_what_is_wrong_missing_or_not_recordable_is_passed_over(checkpoint_of: Callable[[str], Path]) -> None:
    def chosen(*kernels: Callable[[], Kernel], recorder: Callable[[], Eager] | None = Eager) -> str:
        (span,) = load_spans(checkpoint_of("gemma2"), [2, 4], acceleration=Acceleration(kernels, recorder))
        return span.info.kernel

    assert chosen(Absent, Wrong) == "torch"
    assert chosen(lambda: VarlenAttention(varlen_attn)) == "torch"  # it knows no softcap
    assert chosen(Absent, Wrong, GatheredDecode) == "gathered+graphs"
    assert chosen(GatheredDecode, recorder=Waits) == "gathered"
    assert chosen(GatheredDecode, recorder=None) == "gathered"


@pytest.mark.parametrize(("kv_bytes", "ahead"), [(4 << 20, 7), (1 << 15, 1)])
def test_a_span_records_before_it_serves(kv_bytes: int, ahead: int, checkpoint_of: Callable[[str], Path]) -> None:
    recorders: list[Counts] = []
    told: list[LoadProgress] = []

    def recorder() -> Counts:
        recorders.append(Counts())
        return recorders[-1]

    checkpoint = Checkpoint.open(checkpoint_of("llama"))
    kind = {"device": torch.device("cpu"), "dtype": torch.float32, "kv_bytes": kv_bytes}
    acceleration = Acceleration((GatheredDecode,), recorder)
    span = Span.load(checkpoint, 0, BLOCKS, **kind, acceleration=acceleration, on_progress=told.append)
    assert recorders[-1].recorded == ahead
    assert [report.done for report in told if report.stage == "record"] == list(range(ahead + 1))
    assert list(dict.fromkeys(report.stage for report in told)) == ["read", "record", "digest"]
    plain = load_spans(checkpoint_of("llama"), [0, BLOCKS], acceleration=PLAIN)
    if span.info.pages == 1:
        compare(run_alone([span]), run_alone(plain), 1e-4)
    else:
        compare(run([span], 8), run(plain, 8), 1e-4)
    assert recorders[-1].recorded == ahead


def test_steps_that_are_not_recorded_still_run(checkpoint_of: Callable[[str], Path]) -> None:
    quick = load_spans(checkpoint_of("llama"), CUTS, acceleration=Acceleration((GatheredDecode,), Waits))
    compare(run(quick, 7), run(load_spans(checkpoint_of("llama"), CUTS, acceleration=PLAIN), 7), 1e-4)
