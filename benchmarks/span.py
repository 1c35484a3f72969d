"""Spans against transformers' `generate`, all in one process: what splitting and our own executor cost or save.

    python benchmarks/span.py                     both models, float32 and bfloat16; about ten minutes on two cores
    python benchmarks/span.py --hidden 512        the small one
    python benchmarks/span.py --profile           where a decode step's time goes, by operator

Random Llamas are made in a temporary folder. `local` is generate with SDPA, `one` a span of all blocks, `two` a chain
of two spans, cut so that the head counts as blocks. The three take turns within each repetition, so that a busy machine
slows all of them; trust ratios, not milliseconds. Cells are medians with (best..worst). Ids must be equal in float32.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from swarm_model.checkpoint import Checkpoint
from swarm_model.sampler import Sampled
from swarm_model.sampling_params import Sampling
from swarm_model.span import Chunk, SampleRequest, SessionKey, Span
from tables import show_table

VOCABULARY = 32_000
PREFILL_CHUNK = 256
SHAPES = {512: (8, 1408, 8), 1024: (16, 2816, 16)}  # hidden size -> blocks, intermediate size, heads
GREEDY = SampleRequest(Sampling())
MATRIX_OPERATORS = ("mkldnn::_linear_pointwise", "aten::addmm", "aten::mm", "aten::mkldnn_linear")
ATTENTION_OPERATORS = ("aten::_scaled_dot_product_flash_attention_for_cpu",)
numbers = count()


@dataclass(frozen=True)
class Run:
    """One generation: seconds to the first token, seconds a token after it, and the new ids of each session."""

    first_s: float
    step_s: float
    ids: list[list[int]]


def make_checkpoint(hidden: int, seed: int, folder: Path) -> Path:
    blocks, intermediate, heads = SHAPES[hidden]
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def balanced_cut(checkpoint: Checkpoint) -> int:
    """Where to cut in two, the head counted as blocks of the same number of weights."""
    per_block = sum(info.elements for name, info in checkpoint.tensors.items() if ".layers.0." in name)
    head = checkpoint.tensors["lm_head.weight"].elements / per_block
    return min(checkpoint.num_blocks - 1, round((checkpoint.num_blocks + head) / 2))


def run_spans(spans: Sequence[Span], prompts: list[torch.Tensor], new_tokens: int) -> Run:
    sessions = [SessionKey(str(next(numbers)).encode()) for _ in prompts]
    texts = [prompt.tolist() for prompt in prompts]
    started = time.perf_counter()
    first: list[tuple[Sampled, ...]] = []
    for position in range(0, len(prompts[0]), PREFILL_CHUNK):
        whole = position + PREFILL_CHUNK >= len(prompts[0])
        chunks = [
            Chunk(session, position, prompt[position : position + PREFILL_CHUNK], GREEDY if whole else None)
            for session, prompt in zip(sessions, prompts, strict=True)
        ]
        first = [_step(spans, [chunk])[0] for chunk in chunks]
    first_s = time.perf_counter() - started
    new = [[sampled.token] for (sampled,) in first]
    for number in range(new_tokens - 1):
        position = len(texts[0]) + number
        chunks = [
            Chunk(session, position, torch.tensor(ids[-1:]), GREEDY) for session, ids in zip(sessions, new, strict=True)
        ]
        for ids, (sampled,) in zip(new, _step(spans, chunks), strict=True):
            ids.append(sampled.token)
    step_s = (time.perf_counter() - started - first_s) / (new_tokens - 1)
    for session in sessions:
        for span in spans:
            span.drop(session)
    return Run(first_s, step_s, new)


def _step(spans: Sequence[Span], chunks: list[Chunk]) -> list[Any]:
    outputs: list[Any] = [chunk.inputs for chunk in chunks]
    for span in spans:
        outputs = span.forward(
            [
                Chunk(chunk.session, chunk.position, rows, chunk.sample)
                for chunk, rows in zip(chunks, outputs, strict=True)
            ]
        )
    return outputs


def run_local(model: Any, prompts: list[torch.Tensor], new_tokens: int) -> Run:
    inputs = torch.stack(prompts)
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    started = time.perf_counter()
    model.generate(inputs, max_new_tokens=1, **settings)
    first_s = time.perf_counter() - started
    started = time.perf_counter()
    ids = model.generate(inputs, max_new_tokens=new_tokens, **settings)
    step_s = (time.perf_counter() - started - first_s) / (new_tokens - 1)
    return Run(first_s, step_s, ids[:, inputs.shape[1] :].tolist())


def measure(ways: dict[str, Callable[[], Run]], repeat: int, *, exact: bool) -> dict[str, list[Run]]:
    """Let the ways take turns `repeat` times, after one round that does not count."""
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    for round_number in range(repeat + 1):
        for name, way in ways.items():
            run = way()
            if round_number:
                runs[name].append(run)
    if exact and len({str(run.ids) for taken in runs.values() for run in taken}) != 1:
        raise SystemExit("the ways do not give the same ids")
    return runs


def add_rows(table: Table, label: str, sessions: int, runs: dict[str, list[Run]]) -> None:
    def row(what: str, pick: Callable[[Run], float], show: Callable[[float], str]) -> None:
        medians = {name: statistics.median(pick(run) for run in taken) for name, taken in runs.items()}
        cells = []
        for name, taken in runs.items():
            values = sorted(pick(run) for run in taken)
            cells.append(f"{show(medians[name])} [dim]({show(values[0])}..{show(values[-1])})[/dim]")
        ratios = [f"{medians['local'] / medians[name]:.2f}" for name in ("one", "two")]
        table.add_row(label, what, *cells, *ratios)

    row(f"decode x{sessions}, tokens/s", lambda run: run.step_s, lambda step_s: f"{sessions / step_s:.1f}")
    row(f"first token x{sessions}, ms", lambda run: run.first_s, lambda first_s: f"{first_s * 1e3:.0f}")


def show_profile(console: Console, label: str, span: Span, prompt: torch.Tensor) -> None:
    """Print what a decode step costs besides its matrices and its attention, per block."""
    tokens = 33
    run_spans([span], [prompt], tokens)
    wall_ms = min(run_spans([span], [prompt], tokens).step_s for _ in range(5)) * 1e3
    session = SessionKey(b"profile")
    span.forward([Chunk(session, 0, prompt)])
    with profile(activities=[ProfilerActivity.CPU]) as recording:
        for number in range(tokens - 1):
            span.forward([Chunk(session, len(prompt) + number, prompt[:1], GREEDY)])
    span.drop(session)
    spent_ms = {event.key: event.self_cpu_time_total / 1e3 / (tokens - 1) for event in recording.key_averages()}
    matrices_ms = sum(spent_ms.get(name, 0.0) for name in MATRIX_OPERATORS)
    attention_ms = sum(spent_ms.get(name, 0.0) for name in ATTENTION_OPERATORS)
    other_us = (wall_ms - matrices_ms - attention_ms) / (span.info.end - span.info.start) * 1e3
    console.print(
        f"{label}: a decode step of {wall_ms:.2f} ms = matrices {matrices_ms:.2f} + attention {attention_ms:.2f} + "
        f"{other_us:.0f} us a block for everything else"
    )
    for name, milliseconds in sorted(spent_ms.items(), key=lambda item: -item[1])[:12]:
        console.print(f"  {milliseconds * 1e3:8.0f} us  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, choices=sorted(SHAPES), action="append")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], action="append")
    parser.add_argument("--prompt", type=int, action="append", help="tokens; default 128 and 1024")
    parser.add_argument("--sessions", type=int, action="append", help="default 1 and 8")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    console = Console(width=150)
    console.print(
        f"seed {options.seed}, {options.repeat} repetitions, {options.new_tokens} new tokens, 1 thread; "
        f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}"
    )
    table = Table("model", "what", "local", "one span", "two spans", "one/local", "two/local")
    with tempfile.TemporaryDirectory() as folder:
        for hidden in options.hidden or sorted(SHAPES):
            directory = make_checkpoint(hidden, options.seed, Path(folder) / str(hidden))
            checkpoint = Checkpoint.open(directory)
            cut = balanced_cut(checkpoint)
            for dtype_name in options.dtype or ["float32", "bfloat16"]:
                dtype = getattr(torch, dtype_name)

                def load(start: int, end: int, of: Checkpoint = checkpoint, dtype: torch.dtype = dtype) -> Span:
                    return Span.load(of, start, end, device=torch.device("cpu"), dtype=dtype, kv_bytes=1 << 30)

                whole = [load(0, checkpoint.num_blocks)]
                label = f"{hidden} x {checkpoint.num_blocks} {dtype_name}"
                generator = torch.Generator().manual_seed(options.seed)
                if options.profile:
                    prompt = torch.randint(VOCABULARY, (128,), generator=generator)
                    show_profile(console, label, whole[0], prompt)
                    continue
                pair = [load(0, cut), load(cut, checkpoint.num_blocks)]
                model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
                for length in options.prompt or [128, 1024]:
                    for sessions in options.sessions or [1, 8]:
                        if length * sessions > 2048:
                            continue  # eight long prompts take minutes and say nothing new
                        prompts = [torch.randint(VOCABULARY, (length,), generator=generator) for _ in range(sessions)]
                        ways = {
                            "local": lambda m=model, p=prompts: run_local(m, p, options.new_tokens),
                            "one": lambda s=whole, p=prompts: run_spans(s, p, options.new_tokens),
                            "two": lambda s=pair, p=prompts: run_spans(s, p, options.new_tokens),
                        }
                        runs = measure(ways, options.repeat, exact=dtype == torch.float32)
                        add_rows(table, f"{label} cut {cut}, prompt {length}", sessions, runs)
    if not options.profile:
        show_table(console, table)


if __name__ == "__main__":
    main()
