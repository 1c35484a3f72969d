"""Real swarms for end-to-end tests: node processes on loopback, random checkpoints, transformers as the reference."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from swarm_sim.local_swarm import LocalSwarm, LocalSwarmPlan

BLOCKS = 6
VOCABULARY = 512
CONTEXT = 512
WITHOUT_DHT = {"SWARM_NODE_DHT": "off"}


def make_checkpoint(directory: Path, seed: int) -> Path:
    """A random Llama, large enough that greedy ids do not repeat at once."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("e2e") / "tiny-llama", seed=0)


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> Callable[[list[int], int], list[int]]:
    """Greedy ids of plain transformers."""
    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def continue_greedily(prompt: list[int], tokens: int) -> list[int]:
        output = model.generate(torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False, use_cache=True)
        ids: list[int] = output[0, len(prompt) :].tolist()
        return ids

    return continue_greedily


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def three_nodes(checkpoint: Path) -> AsyncIterator[LocalSwarm]:
    """Three nodes that serve the checkpoint in float32, found through the first one's directory."""
    plan = LocalSwarmPlan(
        model=checkpoint, splits=((0, 2), (2, 4), (4, 6)), dtype="float32", kv_memory="8MiB", environment=WITHOUT_DHT
    )
    async with LocalSwarm(plan) as swarm:
        yield swarm


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def run_client(*arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run `swarm-client` as a user would."""
    command = [sys.executable, "-m", "swarm_client", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, env={**os.environ})


def run_node(*arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run `swarm-node` to its end."""
    command = [sys.executable, "-m", "swarm_node", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, env={**os.environ})
