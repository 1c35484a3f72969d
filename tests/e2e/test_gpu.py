"""A node on a CUDA device: the whole way of a generation, as on a processor."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from swarm_client import AsyncRemoteModel
from swarm_sim.local_swarm import LocalSwarm, LocalSwarmPlan
from tests.e2e.conftest import BLOCKS, WITHOUT_DHT

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
PROMPT = list(range(7, 30))


async def test_nodes_on_a_card_give_the_ids_of_transformers(
    checkpoint: Path, cache_dir: Path, reference: Callable[[list[int], int], list[int]]
) -> None:
    plan = LocalSwarmPlan(
        model=checkpoint,
        splits=((0, 3), (3, BLOCKS)),
        dtype="float32",
        kv_memory="64MiB",
        arguments=("--device", "cuda:0"),
        environment=WITHOUT_DHT,
    )
    async with (
        LocalSwarm(plan) as swarm,
        AsyncRemoteModel.connect("tiny-llama", swarm.bootstrap, cache_dir=cache_dir) as model,
    ):
        generation = await model.generate(PROMPT, max_new_tokens=8, temperature=0)
    assert generation.token_ids == reference(PROMPT, 8)
