"""Tiny checkpoints of ten families, each served by two processes and asked by command: ids as transformers has them."""

import asyncio
import json
from pathlib import Path

import pytest
import torch

from swarm_sim.local_swarm import LocalSwarm, LocalSwarmPlan
from tests.e2e.conftest import WITHOUT_DHT, run_client
from tests.model.configurations import BLOCKS, Configuration, configurations
from tests.model.families import load_transformers, make_checkpoint

PROMPT = list(range(7, 40))
NEW_TOKENS = 16
MODES = {  # of the two nodes
    "qwen3_moe": ["paged", "paged"],
    "gemma3, with a vision tower": ["paged", "paged"],
    "deepseek_v3": ["paged", "paged"],
    "gpt_oss": ["paged", "paged"],
    "llama4_text": ["paged", "paged"],
    "bloom": ["paged", "paged"],
    "lfm2": ["recurrent", "recurrent"],
    "qwen3_next": ["recurrent", "recurrent"],
    "mamba2": ["recurrent", "recurrent"],
    "mpt": ["session", "session"],
}


def chosen() -> list[Configuration]:
    return [configuration for configuration in configurations() if configuration.name in MODES]


def greedy(directory: Path) -> list[int]:
    torch.set_num_threads(1)
    model = load_transformers(directory)
    output = model.generate(torch.tensor([PROMPT]), max_new_tokens=NEW_TOKENS, do_sample=False)
    ids: list[int] = output[0, len(PROMPT) :].tolist()
    return ids


@pytest.mark.slow  # ten times two processes
@pytest.mark.parametrize("configuration", chosen(), ids=lambda configuration: configuration.name)
async def test_the_command_prints_the_ids_of_transformers(
    configuration: Configuration, tmp_path: Path, cache_dir: Path
) -> None:
    model = make_checkpoint(configuration.family, tmp_path / "tiny-model", **configuration.changes)
    plan = LocalSwarmPlan(
        model=model, splits=((0, 2), (2, BLOCKS)), dtype="float32", kv_memory="8MiB", environment=WITHOUT_DHT
    )
    async with LocalSwarm(plan) as swarm:
        asked = ("generate", "--model", "tiny-model", "--bootstrap", swarm.bootstrap[0], "--temperature", "0", "--json")
        ids = ("--ids", ",".join(map(str, PROMPT)), "--max-new-tokens", str(NEW_TOKENS))
        ran = await asyncio.to_thread(run_client, *asked, *ids)
        modes = [node.facts["mode"] for node in swarm.nodes]
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1])["token_ids"] == greedy(model)
    assert modes == MODES[configuration.name]


def test_there_are_ten() -> None:
    assert len(chosen()) == len(MODES) == 10
