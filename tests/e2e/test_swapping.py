"""More sessions than the KV pool holds, on real spans: with swap space each says what it would alone."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from swarm_net.session_errors import KVFull
from tests.e2e.in_process import in_process_swarm

Reference = Callable[[list[int], int], list[int]]
PAGE_BYTES = 3 * 16 * 2 * 2 * 16 * 4  # of three blocks: 16 tokens, keys and values, kv heads, head size, float32


async def test_six_sessions_share_a_pool_for_two(checkpoint: Path, reference: Reference, tmp_path: Path) -> None:
    prompts = [list(range(start, start + 30)) for start in range(10, 70, 10)]  # 4 pages each with what they generate
    async with in_process_swarm(checkpoint) as swarm:
        for blocks in ((0, 3), (3, 6)):
            await swarm.start(*blocks, kv_bytes=8 * PAGE_BYTES, swap_bytes=16 * PAGE_BYTES)
        async with swarm.client(tmp_path) as model:
            generations = await asyncio.gather(
                *(model.generate(prompt, max_new_tokens=30, temperature=0) for prompt in prompts)
            )
    assert [generation.token_ids for generation in generations] == [reference(prompt, 30) for prompt in prompts]


async def test_a_session_larger_than_the_pool_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    async with in_process_swarm(checkpoint) as swarm:
        await swarm.start(0, 6, kv_bytes=4 * 2 * PAGE_BYTES, swap_bytes=100 * PAGE_BYTES)
        async with swarm.client(tmp_path) as model:
            with pytest.raises(KVFull):
                await model.generate(list(range(10, 80)), max_new_tokens=30)
