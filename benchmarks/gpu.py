"""One accelerator: is a span exact on it, and how near to its limits does it decode?

    python benchmarks/gpu.py                      everything on the first CUDA device: under eight minutes on one card
    python benchmarks/gpu.py --shape 1b           a smaller model
    python benchmarks/gpu.py --quantize int8      the decoding part with quantized weights; also: int4, nf4, fp8
    python benchmarks/gpu.py --device cpu --shape tiny --batches 1,4     a rehearsal where there is no card

(1) Tiny models of five kinds of attention: the kernel that was chosen, how far its logits are off transformers' in
float32 (beside transformers' own error in the same number format), and how many of its greedy ids agree.
(2) A random Llama in the shape of an 8 B one, all blocks in one span, bfloat16, no network: milliseconds a step at each
batch size with recorded decode steps and without, against the time that reading weights and KV once takes at the
memory's measured speed. With vLLM installed, its throughput on the same checkpoint and batches stands beside it.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from swarm_model.acceleration import acceleration_of
from swarm_model.checkpoint import Checkpoint
from swarm_model.sampling_params import MAX_TOP_LOGPROBS, Sampling
from swarm_model.sizing import QuantizationName
from swarm_model.span import Chunk, SampleRequest, SessionKey, Span
from tables import say, show_table

CONTEXT = 64  # tokens before the first decode step
GREEDY = SampleRequest(Sampling())
WITH_LOGPROBS = SampleRequest(Sampling(top_logprobs=MAX_TOP_LOGPROBS))
TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "grouped heads": ("llama", {}),
    "window": ("mistral", {"sliding_window": 48, "head_dim": 64}),
    "window, softcap": ("gemma2", {"sliding_window": 48, "head_dim": 64, "query_pre_attn_scalar": 64}),
    "window, sinks, experts": (
        "gpt_oss",
        {"sliding_window": 48, "head_dim": 64, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "experts": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}
SHAPES: dict[str, dict[str, int]] = {
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "tiny": {key: TINY[key] for key in TINY if key.startswith(("hidden", "inter", "num", "vocab"))},
}
numbers = count()


@dataclass(frozen=True)
class Exactness:
    """How a tiny model does beside transformers."""

    kernel: str
    error: float  # of log-probabilities, relative to the largest logit in float32
    their_error: float  # transformers' in the same number format
    agreeing: int
    tokens: int


@dataclass(frozen=True)
class Decoding:
    """Decode steps of one batch size."""

    step_s: float
    best_s: float
    worst_s: float


@contextmanager
def checkpoint_of(config: Any, device: torch.device) -> Iterator[Path]:
    """Save random weights of a Llama, made on the device and written block by block, in bfloat16."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
        config.architectures, config.dtype = [type(skeleton).__name__], torch.bfloat16
        config.save_pretrained(path)
        shard: dict[str, torch.Tensor] = {}
        shards = 0
        parameters = list(skeleton.named_parameters())
        for number, (name, parameter) in enumerate(parameters):
            weight = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
            weight.fill_(1.0) if parameter.dim() == 1 else weight.normal_(0, 0.02)
            shard[name] = weight.cpu()
            if number == len(parameters) - 1 or sum(tensor.nbytes for tensor in shard.values()) > 2 << 30:
                save_file(shard, path / f"model-{shards:05}.safetensors", metadata={"format": "pt"})
                shard, shards = {}, shards + 1
        write_index(path)
        yield path


def write_index(path: Path) -> None:
    """Say in which shard each tensor lies, or name a single shard as transformers does."""
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        files[0].rename(path / "model.safetensors")
        return
    index = {}
    for file in files:
        with safe_open(file, "pt") as shard:
            index.update(dict.fromkeys(shard.keys(), file.name))
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def load(
    path: Path, device: torch.device, kv_bytes: int, *, graphs: bool = True, quantize: QuantizationName = "none"
) -> Span:
    checkpoint, acceleration = Checkpoint.open(path), acceleration_of(device, 16)
    if not graphs:
        acceleration = replace(acceleration, recorder=None)
    return Span.load(
        checkpoint,
        0,
        checkpoint.num_blocks,
        device=device,
        dtype=torch.bfloat16,
        kv_bytes=kv_bytes,
        acceleration=acceleration,
        quantize=quantize,
    )


def prompts_of(batch: int, vocabulary: int, tokens: int = CONTEXT) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, vocabulary, (tokens,), generator=generator) for _ in range(batch)]


def check_exactness(family: str, changes: dict[str, Any], device: torch.device) -> Exactness:
    """Decode 32 tokens of three sessions and compare each row with what transformers gives for the same text."""
    torch.manual_seed(1)
    config = CONFIG_MAPPING[family](**{**TINY, **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with tempfile.TemporaryDirectory() as folder:
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, 0.08)
        model.to(torch.bfloat16).save_pretrained(folder)
        span = load(Path(folder), device, 64 << 20)
        rounded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager")
        exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    rounded, exact = rounded.to(device).eval(), exact.to(device).eval()
    error = their_error = 0.0
    agreeing = tokens = 0
    keys = [SessionKey(f"{family} {number}".encode()) for number in range(3)]
    texts = [prompt.tolist() for prompt in prompts_of(3, TINY["vocab_size"])]
    cached = [0] * 3
    for _ in range(32):
        chunks = [
            Chunk(key, start, torch.tensor(text[start:]), WITH_LOGPROBS)
            for key, start, text in zip(keys, cached, texts, strict=True)
        ]
        for number, output in enumerate(span.forward(chunks)):
            assert isinstance(output, tuple), output
            text = torch.tensor([texts[number]], device=device)
            with torch.inference_mode():
                logits = exact(text).logits[0, -1].float()
                theirs = rounded(text).logits[0, -1].float().log_softmax(-1)
            scale, best = float(logits.abs().max()), logits.log_softmax(-1)
            top = torch.tensor([token for token, _ in output[0].top], device=device)
            ours = torch.tensor([logprob for _, logprob in output[0].top], device=device)
            error = max(error, float((ours - best[top]).abs().max()) / scale)
            their_error = max(their_error, float((theirs[top] - best[top]).abs().max()) / scale)
            agreeing += output[0].token == int(theirs.argmax())
            tokens += 1
            cached[number] = len(texts[number])
            texts[number].append(int(theirs.argmax()))
    return Exactness(span.info.kernel, error, their_error, agreeing, tokens)


def decode(span: Span, batch: int, steps: int) -> Decoding:
    """Time decode steps of `batch` sessions behind prompts of CONTEXT tokens; the first three do not count."""
    keys = [SessionKey(str(next(numbers)).encode()) for _ in range(batch)]
    for key, prompt in zip(keys, prompts_of(batch, span.info.vocab_size), strict=True):
        span.forward([Chunk(key, 0, prompt)])
    ids, taken = [5] * batch, []
    for step in range(steps + 3):
        started = time.perf_counter()
        chunks = [
            Chunk(key, CONTEXT + step, torch.tensor([token]), GREEDY) for key, token in zip(keys, ids, strict=True)
        ]
        outputs = span.forward(chunks)
        ids = [output[0].token for output in outputs if isinstance(output, tuple)]
        taken.append(time.perf_counter() - started)
    for key in keys:
        span.drop(key)
    taken = taken[3:]
    return Decoding(statistics.median(taken), min(taken), max(taken))


def prefill_tokens_per_s(span: Span, tokens: int, repeats: int = 3) -> float:
    prompt, taken = prompts_of(1, span.info.vocab_size, tokens)[0], []
    for _ in range(repeats + 1):
        key = SessionKey(str(next(numbers)).encode())
        started = time.perf_counter()
        span.forward([Chunk(key, 0, prompt, GREEDY)])
        taken.append(time.perf_counter() - started)
        span.drop(key)
    return tokens / statistics.median(taken[1:])


def memory_bytes_per_s(device: torch.device) -> float:
    """Measure how fast the device reads, by summing a gigabyte (a quarter of one on a CPU)."""
    values = torch.ones((1 << 28) if device.type == "cuda" else (1 << 26), dtype=torch.float32, device=device)
    taken = []
    for _ in range(10):
        started = time.perf_counter()
        values.sum().item()
        taken.append(time.perf_counter() - started)
    return values.nbytes / min(taken)


def vllm_tokens_per_s(path: Path, batches: Sequence[int], steps: int, vocabulary: int) -> dict[int, float]:
    """Measure vLLM offline on the same checkpoint: tokens a second of decoding, all sessions together."""
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found,unused-ignore]

    model = LLM(str(path), skip_tokenizer_init=True, dtype="bfloat16", gpu_memory_utilization=0.6, max_model_len=1024)
    rates = {}
    for batch in batches:
        prompts = [{"prompt_token_ids": prompt.tolist()} for prompt in prompts_of(batch, vocabulary)]

        def seconds(tokens: int, prompts: list[Any] = prompts) -> float:
            params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
            started = time.perf_counter()
            model.generate(prompts, params, use_tqdm=False)
            return time.perf_counter() - started

        seconds(4)
        first = min(seconds(1) for _ in range(3))
        rates[batch] = batch * (steps - 1) / (min(seconds(steps) for _ in range(2)) - first)
    return rates


def show_exactness(device: torch.device, console: Console) -> None:
    table = Table(title="bfloat16 against transformers in float32: error relative to the largest logit")
    for column in ("model", "kernel", "ours", "transformers'", "ids that agree"):
        table.add_column(column)
    for name, (family, changes) in KINDS.items():
        found = check_exactness(family, changes, device)
        table.add_row(
            f"{family} ({name})",
            found.kernel,
            f"{found.error:.1e}",
            f"{found.their_error:.1e}",
            f"{found.agreeing} of {found.tokens}",
        )
    show_table(console, table)


def show_speed(
    shape: str,
    batches: Sequence[int],
    steps: int,
    device: torch.device,
    console: Console,
    quantize: QuantizationName = "none",
) -> None:
    config = CONFIG_MAPPING["llama"](
        **{**TINY, **SHAPES[shape], "max_position_embeddings": 4096, "tie_word_embeddings": False}
    )
    kv_bytes = (8 << 30) if shape == "8b" else (1 << 30)
    with checkpoint_of(config, device) as path:
        span = load(path, device, kv_bytes, graphs=False, quantize=quantize)
        without = {batch: decode(span, batch, steps) for batch in batches}
        del span
        span = load(path, device, kv_bytes, quantize=quantize)
        recorded = {batch: decode(span, batch, steps) for batch in batches}
        prefill = {tokens: prefill_tokens_per_s(span, tokens) for tokens in (1024, 4000)}
        info, kernel = span.info, span.info.kernel
        del span
        speed = memory_bytes_per_s(device)
        theirs: dict[int, float] = {}
        if find_spec("vllm") is not None and quantize == "none":
            theirs = vllm_tokens_per_s(path, batches, steps, info.vocab_size)
    read = info.weight_bytes - info.vocab_size * info.hidden_size * 2  # an embedding is looked up, not read
    table = Table(
        title=f"decode, {shape} Llama, {info.numeric_class}, {read / 1e9:.1f} GB read a step, {kernel}; "
        f"memory {speed / 1e9:.0f} GB/s"
    )
    for column in ("batch", "ms a step", "without graphs", "tokens/s", "x batch 1", "of the memory's limit", "x vLLM"):
        table.add_column(column, justify="right")
    for batch in batches:
        ours, plain = recorded[batch], without[batch]
        kv = batch * (CONTEXT + steps / 2) * info.kv_bytes_per_token
        rate = batch / ours.step_s
        table.add_row(
            str(batch),
            f"{ours.step_s * 1e3:.2f} [dim]({ours.best_s * 1e3:.2f}..{ours.worst_s * 1e3:.2f})[/dim]",
            f"{plain.step_s * 1e3:.2f}",
            f"{rate:.0f}",
            f"{rate * recorded[batches[0]].step_s / batches[0]:.1f}",
            f"{(read + kv) / speed / ours.step_s:.0%}",
            f"{rate / theirs[batch]:.2f}" if batch in theirs else "not run",
        )
    show_table(console, table)
    say(console, "prefill: " + ", ".join(f"{tokens} tokens {rate:,.0f}/s" for tokens, rate in prefill.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu")
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--batches", default="1,2,4,8,16,32,64")
    parser.add_argument("--steps", type=int, default=64, help="timed for each batch size")
    parser.add_argument("--quantize", choices=get_args(QuantizationName), default="none", help="of the decoding part")
    arguments = parser.parse_args()
    device, console = torch.device(arguments.device), Console()
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; rehearse with --device cpu --shape tiny --batches 1,4")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this processor"
    disable_progress_bar()
    console.print(f"{name}, torch {torch.__version__}")
    if arguments.quantize == "none":
        show_exactness(device, console)
    batches = [int(batch) for batch in arguments.batches.split(",")]
    show_speed(arguments.shape, batches, arguments.steps, device, console, arguments.quantize)


if __name__ == "__main__":
    main()
