"""The executor in one process with one thread: its speed, what a forward costs besides, and what quantizing changes.

    python benchmarks/executor.py                    all of it: about a quarter of an hour on two cores, 6 GB of memory
    python benchmarks/executor.py --only speed       decode against `generate`; also: products, costs, pages, errors
    python benchmarks/executor.py --hidden 1024      a model of a quarter of the size
    python benchmarks/executor.py --clock cpu        count the thread's own seconds, on a machine that others use

Random Llamas are made in a temporary folder. All ways take turns within each round, so that a busy machine slows all of
them; ratios are medians over the rounds of what stands side by side in one, milliseconds are medians over the rounds.
Bandwidth is the best of three plain ways to read a large tensor, measured within each round. `costs` uses a model so
narrow that a step is nothing but the fixed cost. `errors` compares with bfloat16 on texts that the model itself draws.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.generation.streamers import BaseStreamer

from quantization_errors import show_errors
from swarm_model.acceleration import Acceleration
from swarm_model.checkpoint import Checkpoint
from swarm_model.sampling_params import Sampling
from swarm_model.sizing import QuantizationName
from swarm_model.span import Chunk, SampleRequest, SessionKey, Span
from tables import say, show_table

VOCABULARY: Final = 32_000
BLOCKS: Final = 12
CONTEXT: Final = 64
BATCHES: Final = (1, 8, 32)
STEPS: Final = 12  # timed a round, behind WARM_STEPS that are not
WARM_STEPS: Final = 3
READ_BYTES: Final = 1 << 29  # far beyond any cache
GREEDY: Final = SampleRequest(Sampling())
OTHER_FORMATS: Final[tuple[QuantizationName, ...]] = ("int4", "nf4", "fp8")
FORMATS: Final[tuple[QuantizationName, ...]] = ("none", "int8", *OTHER_FORMATS)
NARROW: Final = 64  # the width at which matrices cost nothing
LONG_CONTEXT: Final = 1024
FILLERS_AT_ONCE: Final = 64
PAGES_BATCH: Final = 8
CPU: Final = torch.device("cpu")
PRODUCTS: Final = ("mkldnn::_linear_pointwise", "onednn::qlinear_pointwise", "swarm::int8_linear")
numbers = count()
clock = time.perf_counter


@dataclass
class Figures:
    """Milliseconds of a step, one a round, for each way of one batch size."""

    batch: int
    step_ms: dict[str, list[float]] = field(default_factory=dict)

    def ratio(self, above: str, below: str) -> float:
        """How many times as fast `below` is."""
        pairs = zip(self.step_ms[above], self.step_ms[below], strict=True)
        return statistics.median(slow / fast for slow, fast in pairs)


def make_llama(folder: Path, hidden: int, blocks: int, seed: int) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=blocks,
        num_attention_heads=max(2, hidden // 64),
        num_key_value_heads=max(1, hidden // 256),
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    path = folder / f"llama-{hidden}-{blocks}"
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(path)
    return path


def load(folder: Path, quantize: QuantizationName = "none", kv_bytes: int = 1 << 29, **settings: Any) -> Span:
    checkpoint = Checkpoint.open(folder)
    settings |= {"device": CPU, "dtype": torch.bfloat16, "kv_bytes": kv_bytes, "quantize": quantize}
    return Span.load(checkpoint, 0, checkpoint.num_blocks, **settings)


@contextmanager
def sessions_of(span: Span, batch: int, context: int) -> Iterator[list[SessionKey]]:
    """Sessions that hold `context` tokens each."""
    sessions = [SessionKey(str(next(numbers)).encode()) for _ in range(batch)]
    for session in sessions:
        span.forward([Chunk(session, 0, torch.randint(VOCABULARY, (context,)))])
    try:
        yield sessions
    finally:
        for session in sessions:
            span.drop(session)


@contextmanager
def fragmented(span: Span) -> Iterator[None]:
    """Leave no two free pages side by side: one session of a token for each page, and every other one is dropped."""
    fillers = [SessionKey(f"filler {number}".encode()) for number in range(span.info.pages)]
    for first in range(0, len(fillers), FILLERS_AT_ONCE):
        span.forward([Chunk(filler, 0, torch.tensor([5])) for filler in fillers[first : first + FILLERS_AT_ONCE]])
    for filler in fillers[::2]:
        span.drop(filler)
    try:
        yield
    finally:
        for filler in fillers[1::2]:
            span.drop(filler)


def step_ms(span: Span, sessions: Sequence[SessionKey], context: int) -> float:
    """Time decode steps of all sessions: the median of STEPS."""
    ids = [torch.tensor([5 + number]) for number, _ in enumerate(sessions)]
    times_ms = []
    for number in range(WARM_STEPS + STEPS):
        batch = [Chunk(session, context + number, one, GREEDY) for session, one in zip(sessions, ids, strict=True)]
        started_s = clock()
        span.forward(batch)
        times_ms.append((clock() - started_s) * 1e3)
    return statistics.median(times_ms[WARM_STEPS:])


class Stamps(BaseStreamer):
    """Notes when `generate` has drawn each token."""

    def __init__(self) -> None:
        self.at_s: list[float] = []

    def put(self, value: Any) -> None:
        self.at_s.append(clock())

    def end(self) -> None:
        pass


def generate_ms(model: Any, batch: int, context: int) -> float:
    """Time the steps of transformers' `generate`: the median of STEPS."""
    ids, stamps, new = torch.randint(VOCABULARY, (batch, context)), Stamps(), 1 + WARM_STEPS + STEPS
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        model.generate(ids, attention_mask=torch.ones_like(ids), streamer=stamps, **settings)
    # put() hears of the prompt first
    times_ms = [(after - before) * 1e3 for before, after in zip(stamps.at_s[1:], stamps.at_s[2:], strict=False)]
    return statistics.median(times_ms[WARM_STEPS:])


def bandwidth_bytes_per_s(large: torch.Tensor) -> float:
    """Read a large tensor with one thread, in the quickest of the ways that torch has."""
    numbers = large.view(torch.int64)
    ways: list[Callable[[], Any]] = [large.sum, large.amax, numbers.sum]
    return READ_BYTES / min(_seconds(way) for way in ways)


def _seconds(work: Callable[[], Any]) -> float:
    started_s = clock()
    work()
    return clock() - started_s


def streamed_bytes(span: Span) -> int:
    """What a step has to read: all weights but the embedding, of which it takes a row a token."""
    return span.info.weight_bytes - VOCABULARY * span.info.hidden_size * 2


def speed(console: Console, folder: Path, hidden: int, batches: Sequence[int], rounds: int, seed: int) -> None:
    """Print decode steps of transformers and of each format, and how much of the memory bandwidth they use."""
    directory = make_llama(folder, hidden, BLOCKS, seed)
    parameters = sum(info.elements for info in Checkpoint.open(directory).tensors.values())
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
    spans = {name: load(directory, name) for name in FORMATS}
    large = torch.ones(READ_BYTES // 4)
    table = Table(
        "batch", "transformers", "bf16", "int8", "bf16 / transformers", "int8 / bf16", "bandwidth used: bf16", "int8",
        title=f"Decode, {parameters / 1e6:.0f} M Llama, context {CONTEXT}: ms a step, and how many times as fast",
    )  # fmt: skip
    others = Table("batch", *OTHER_FORMATS, *(f"{name} / bf16" for name in OTHER_FORMATS))
    others.title = "The other formats in the same rounds: ms a step, and how many times as fast as bf16"
    rates: list[float] = []
    for batch in batches:
        figures = Figures(batch)
        used: dict[str, list[float]] = {"none": [], "int8": []}
        for _ in range(rounds):
            rates.append(bandwidth_bytes_per_s(large))
            figures.step_ms.setdefault("transformers", []).append(generate_ms(model, batch, CONTEXT))
            for name, span in spans.items():
                with sessions_of(span, batch, CONTEXT) as sessions:
                    taken_ms = step_ms(span, sessions, CONTEXT)
                figures.step_ms.setdefault(name, []).append(taken_ms)
                if name in used:
                    used[name].append(streamed_bytes(span) / (taken_ms / 1e3) / rates[-1])
        table.add_row(
            str(batch),
            *(_spread(figures.step_ms[name], ".1f") for name in ("transformers", "none", "int8")),
            f"{figures.ratio('transformers', 'none'):.2f}",
            f"{figures.ratio('none', 'int8'):.2f}",
            *(f"{statistics.median(shares):.0%}" for shares in used.values()),
        )
        others.add_row(
            str(batch),
            *(_spread(figures.step_ms[name], ".1f") for name in OTHER_FORMATS),
            *(f"{figures.ratio('none', name):.2f}" for name in OTHER_FORMATS),
        )
    show_table(console, table)
    show_table(console, others)
    say(console, f"memory bandwidth, one thread reading: {_spread([rate / 1e9 for rate in rates], '.1f')} GB/s")
    console.print(
        "aims: bf16 / transformers >= 1.15 at batch 1, >= 1.0 at 8 and 32; int8 / bf16 >= 1.9; bandwidth >= 70 %"
    )


def products(console: Console, folder: Path, hidden: int, batches: Sequence[int], rounds: int, seed: int) -> None:
    """Print what the products with weights take of a step, called alone in their order, and what the rest takes."""
    directory = make_llama(folder, hidden, BLOCKS, seed)
    spans = {name: load(directory, name) for name in ("none", "int8")}
    table = Table(
        "batch", "bf16: products", "the rest", "int8: products", "the rest", "int8 / bf16: products", "step",
        title="Where a step goes, ms",
    )  # fmt: skip
    for batch in batches:
        whole_ms: dict[str, list[float]] = {name: [] for name in spans}
        products_ms: dict[str, list[float]] = {name: [] for name in spans}
        for _ in range(rounds):
            for name, span in spans.items():
                with sessions_of(span, batch, CONTEXT) as sessions:
                    whole_ms[name].append(step_ms(span, sessions, CONTEXT))
                    with Operators(only=PRODUCTS) as operators:
                        span.forward([Chunk(session, CONTEXT, torch.tensor([5]), GREEDY) for session in sessions])
                    products_ms[name].append(operators.ms())
        whole = {name: statistics.median(times_ms) for name, times_ms in whole_ms.items()}
        alone = {name: statistics.median(times_ms) for name, times_ms in products_ms.items()}
        rest = {name: whole[name] - alone[name] for name in spans}
        table.add_row(
            str(batch),
            *(f"{part[name]:.1f}" for name in spans for part in (alone, rest)),
            f"{alone['none'] / alone['int8']:.2f}",
            f"{whole['none'] / whole['int8']:.2f}",
        )
    show_table(console, table)


class Operators(TorchDispatchMode):
    """Notes the operators of a step that compute something; views are part of what costs are fixed."""

    def __init__(self, only: Sequence[str] = ()) -> None:
        """`only` names the operators that are noted; without it all are."""
        super().__init__()
        self.calls: list[Callable[[], Any]] = []
        self._only = only

    def __torch_dispatch__(self, operator: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not operator.is_view and (not self._only or operator.name() in self._only):
            self.calls.append(partial(operator, *args, **(kwargs or {})))
        return operator(*args, **(kwargs or {}))

    def ms(self) -> float:
        """Time the noted operators, one after the other, with nothing between them: the median of STEPS."""
        times_ms = []
        with torch.inference_mode():
            for _ in range(WARM_STEPS + STEPS):
                started_s = clock()
                for call in self.calls:
                    call()
                times_ms.append((clock() - started_s) * 1e3)
        return statistics.median(times_ms[WARM_STEPS:])


def costs(console: Console, folder: Path, batches: Sequence[int], rounds: int, seed: int) -> None:
    """Print what a forward costs where there is next to nothing to compute: a block's share, and besides the blocks.

    `operators` is what a block's operators take when they are called alone; the rest is masks, metadata, wrappers.
    """
    spans = {
        blocks: load(make_llama(folder, NARROW, blocks, seed), kv_bytes=1 << 24) for blocks in (BLOCKS, 2 * BLOCKS)
    }
    table = Table(
        "batch", "us a block", "its operators", "the rest", "us a step besides blocks",
        title=f"Fixed cost of a forward (width {NARROW})",
    )  # fmt: skip
    for batch in batches:
        block_us, operators_us, rest_us, besides_us = [], [], [], []
        for _ in range(rounds):
            whole_ms, alone_ms = {}, {}
            for blocks, span in spans.items():
                with sessions_of(span, batch, CONTEXT) as sessions:
                    whole_ms[blocks] = step_ms(span, sessions, CONTEXT)
                    with Operators() as operators:
                        span.forward([Chunk(session, CONTEXT, torch.tensor([5]), GREEDY) for session in sessions])
                    alone_ms[blocks] = operators.ms()
            block_us.append((whole_ms[2 * BLOCKS] - whole_ms[BLOCKS]) / BLOCKS * 1e3)
            operators_us.append((alone_ms[2 * BLOCKS] - alone_ms[BLOCKS]) / BLOCKS * 1e3)
            rest_us.append(block_us[-1] - operators_us[-1])
            besides_us.append(whole_ms[BLOCKS] * 1e3 - BLOCKS * block_us[-1])
        table.add_row(str(batch), *(_spread(us, ".0f") for us in (block_us, operators_us, rest_us, besides_us)))
    show_table(console, table)
    say(console, "aim: the rest is at most 100 us a block at batch 1")


def pages(console: Console, folder: Path, hidden: int, rounds: int, seed: int) -> None:
    """Print what attention costs, by torch and by the kernel, where pages follow one another and where they do not."""
    directory = make_llama(folder, hidden, BLOCKS, seed)
    spans = {True: load(directory), False: load(directory, acceleration=Acceleration())}
    kernel = spans[True].info.kernel
    table = Table(
        "context", "pages", "by torch", f"by the kernel ({kernel})", "gained",
        title=f"Decode, batch {PAGES_BATCH}: ms a step with attention of either kind",
    )  # fmt: skip
    for context in (CONTEXT, LONG_CONTEXT):
        for scattered in (False, True):
            taken_ms: dict[bool, list[float]] = {True: [], False: []}
            with ExitStack() as stack:
                held = {}
                for name, span in spans.items():
                    stack.enter_context(fragmented(span) if scattered else nullcontext())
                    held[name] = stack.enter_context(sessions_of(span, PAGES_BATCH, context))
                for _ in range(rounds):
                    for name, span in spans.items():
                        taken_ms[name].append(step_ms(span, held[name], context))
            medians = {name: statistics.median(times_ms) for name, times_ms in taken_ms.items()}
            table.add_row(
                str(context),
                "scattered" if scattered else "in a row",
                _spread(taken_ms[False], ".1f"),
                _spread(taken_ms[True], ".1f"),
                f"{1 - medians[True] / medians[False]:.0%}",
            )
    show_table(console, table)
    say(console, "a kernel of our own is worth it from 20 % at context 1,024 on")


def _spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} [dim]({min(values):{form}}..{max(values):{form}})[/dim]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["speed", "products", "costs", "pages", "errors"], action="append")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--batch", type=int, action="append", help=f"default {BATCHES}")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    global clock
    clock = time.thread_time if asked.clock == "cpu" else time.perf_counter
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    console = Console(width=None if Console().is_terminal else 150)
    console.print(
        f"seed {asked.seed}, {asked.rounds} rounds, 1 thread, {asked.clock} clock; Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    )
    batches, wanted = asked.batch or BATCHES, asked.only or ["speed", "products", "costs", "pages", "errors"]
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        if "speed" in wanted:
            speed(console, folder, asked.hidden, batches, asked.rounds, asked.seed)
        if "products" in wanted:
            products(console, folder, asked.hidden, batches, asked.rounds, asked.seed)
        if "costs" in wanted:
            costs(console, folder, batches, asked.rounds, asked.seed)
        if "pages" in wanted:
            pages(console, folder, asked.hidden, asked.rounds, asked.seed)
        if "errors" in wanted:
            show_errors(console, folder, asked.seed)


if __name__ == "__main__":
    main()
