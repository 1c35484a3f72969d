"""`swarm-sim local` as a user runs it: real nodes, a real client, and nothing left whatever ends it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

BLOCKS, HIDDEN, MLP, KV = 4, 64, 128, 32
WITHOUT_DHT = {**os.environ, "SWARM_NODE_DHT": "off"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights that speaks bytes; made without torch, which takes seconds to import."""
    directory = tmp_path_factory.mktemp("checkpoint")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(alphabet),
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (256, HIDDEN), "lm_head": (256, HIDDEN)}
    for block in range(BLOCKS):
        prefix = f"model.layers.{block}"
        shapes |= {f"{prefix}.self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qo"}
        shapes |= {f"{prefix}.self_attn.{name}_proj": (KV, HIDDEN) for name in "kv"}
        shapes |= {f"{prefix}.mlp.{name}_proj": (MLP, HIDDEN) for name in ("gate", "up")}
        shapes |= {f"{prefix}.mlp.down_proj": (HIDDEN, MLP)}
    weights = {f"{name}.weight": rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    norms = ["model.norm"]
    for block in range(BLOCKS):
        norms += [f"model.layers.{block}.{name}_layernorm" for name in ("input", "post_attention")]
    weights |= {f"{name}.weight": np.ones(HIDDEN, np.float32) for name in norms}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@contextmanager
def local(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "swarm_sim", "local", "--nodes", "2", "--max-new-tokens", "8", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=WITHOUT_DHT,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def children(process: subprocess.Popen[str], at_least: int) -> list[psutil.Process]:
    """The node processes, once there are so many."""
    deadline_s = time.monotonic() + 60
    while len(found := psutil.Process(process.pid).children(recursive=True)) < at_least:
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return found


def test_it_generates_keeps_running_and_ends_with_ctrl_c(checkpoint: Path) -> None:
    with local("--model", str(checkpoint), "--keep", "--prompt", "to be") as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        nodes = children(process, at_least=2)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert psutil.wait_procs(nodes, timeout=10)[1] == []
    text = "".join(lines)
    assert "to be" in text
    assert "0:2" in text
    assert "2:4" in text
    assert "compute ms" in text
    assert "8 tokens: the first after" in text
    assert f"swarm-client generate --model {checkpoint} --bootstrap /ip4/127.0.0.1/tcp/" in text


@pytest.mark.slow
def test_programs_get_one_object_and_no_node_is_left(checkpoint: Path) -> None:
    with local("--model", str(checkpoint), "--json", "--temperature", "0") as process:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    told = json.loads(output)
    assert [node["blocks"] for node in told["nodes"]] == [[0, 2], [2, 4]]
    assert len(told["generation"]["token_ids"]) == 8
    assert [hop["compute_ms"] > 0 for hop in told["generation"]["timings"]["hops"]] == [True, True]
    assert not any(psutil.pid_exists(node["pid"]) for node in told["nodes"])


def test_a_signal_during_the_start_leaves_no_node(checkpoint: Path) -> None:
    with local("--model", str(checkpoint)) as process:
        nodes = children(process, at_least=1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 130
        assert psutil.wait_procs(nodes, timeout=10)[1] == []


def test_a_node_that_cannot_start_is_quoted(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with local("--model", str(tmp_path)) as process:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1
    assert "node 0 (blocks 0:2)" in errors
    assert "model.safetensors" in errors


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--model", "/nowhere"], "/nowhere is not a directory"),
        (["--model", "{}", "--nodes", "9"], "9 nodes cannot share 4 blocks"),
    ],
)
def test_options_that_cannot_be_are_refused_at_once(checkpoint: Path, arguments: list[str], text: str) -> None:
    with local(*(argument.format(checkpoint) for argument in arguments), "--json") as process:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1
    told = json.loads(output)
    assert told["error"] == "bad_option"
    assert text in told["message"]
    assert told["remedy"]
