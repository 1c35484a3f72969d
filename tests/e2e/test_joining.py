"""Nodes that join through one that runs no DHT stay in its swarm."""

from collections.abc import Callable
from pathlib import Path

import pytest

from swarm_client import AsyncRemoteModel
from swarm_sim.local_swarm import LocalSwarm, LocalSwarmPlan
from tests.e2e.conftest import BLOCKS

PROMPT = list(range(7, 30))


async def test_a_node_does_not_begin_a_dht_of_its_own_beside_a_swarm_without_one(
    checkpoint: Path, cache_dir: Path, reference: Callable[[list[int], int], list[int]]
) -> None:
    pytest.importorskip("hivemind")
    plan = LocalSwarmPlan(
        model=checkpoint,
        splits=((0, 3), (3, BLOCKS)),
        dtype="float32",
        kv_memory="8MiB",
        own_arguments=(("--dht", "off"), ("--dht", "auto")),
    )
    async with LocalSwarm(plan) as swarm:
        first = swarm.bootstrap[:1]
        async with AsyncRemoteModel.connect("tiny-llama", first, cache_dir=cache_dir) as model:
            generation = await model.generate(PROMPT, max_new_tokens=4, temperature=0)
    assert generation.token_ids == reference(PROMPT, 4)
