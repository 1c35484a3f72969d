"""Loading never holds a span twice, whatever the files' dtype: measured in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from swarm_model.sizing import READ_AT_ONCE_BYTES
from tests.model.families import make_checkpoint

ALLOWANCE_BYTES = 100 << 20  # code that the first forward loads, one tensor, allocator slack
SCRIPT = """
import json, sys, threading
import psutil, torch
from swarm_model.checkpoint import Checkpoint
from swarm_model.span import Span

torch.set_num_threads(1)
folder, dtype, quantize = sys.argv[1:]
process, peak, done = psutil.Process(), 0, threading.Event()
before = process.memory_info().rss

def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, process.memory_info().rss)

watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
kind = {"device": torch.device("cpu"), "dtype": getattr(torch, dtype)}
span = Span.load(Checkpoint.open(folder), 0, 4, **kind, kv_bytes=1 << 20, quantize=quantize)
done.set()
watcher.join()
after = process.memory_info().rss
print(json.dumps({"weights": span.info.weight_bytes, "peak": peak - before, "after": after - before}))
"""


@pytest.fixture(scope="module")
def large_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """270 MB in float32."""
    sizes = {"num_hidden_layers": 4, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8}
    return make_checkpoint("llama", tmp_path_factory.mktemp("large"), **sizes)


@pytest.mark.parametrize(("dtype", "quantize"), [("float32", "none"), ("bfloat16", "none"), ("float32", "int8")])
def test_loading_never_holds_the_span_twice(dtype: str, quantize: str, large_checkpoint: Path) -> None:
    script = [sys.executable, "-c", SCRIPT, str(large_checkpoint), dtype, quantize]
    result = subprocess.run(script, capture_output=True, text=True, check=True, timeout=120)
    memory = json.loads(result.stdout.splitlines()[-1])
    assert memory["weights"] > ALLOWANCE_BYTES or quantize != "none", "a second copy would not be noticed"
    read_in_full = 2 * READ_AT_ONCE_BYTES if quantize != "none" else 0  # before it is quantized, and what that takes
    assert memory["peak"] <= memory["weights"] + read_in_full + ALLOWANCE_BYTES
    assert memory["after"] <= memory["weights"] + ALLOWANCE_BYTES
