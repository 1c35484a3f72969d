"""Activations in int8 between real spans: fewer bytes, nearly the same logits, and never unless it was asked for."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from swarm_client.errors import NotOffered
from tests.e2e.in_process import InProcessSwarm, in_process_swarm

Reference = Callable[[list[int], int], list[int]]
PROMPT = list(range(7, 40))
SPLITS = ((0, 2), (2, 4), (4, 6))
HIDDEN = 64


def received(swarm: InProcessSwarm) -> Counter[str]:
    """The bytes of activations that nodes behind the first one have taken, by codec."""
    return sum((executor.activation_bytes for executor in swarm.executors[1:]), Counter[str]())


async def test_int8_is_used_where_asked_for_and_gives_nearly_the_same_logits(
    checkpoint: Path, reference: Reference, tmp_path: Path
) -> None:
    async with in_process_swarm(checkpoint, *SPLITS) as swarm, swarm.client(tmp_path) as model:
        raw = await model.generate(PROMPT, max_new_tokens=8, temperature=0, logprobs=True)
        assert set(received(swarm)) == {"raw"}
        sent = received(swarm)
        int8 = await model.generate(PROMPT, max_new_tokens=8, temperature=0, logprobs=True, codec="int8")
    assert (raw.codec, int8.codec) == ("raw", "int8")
    assert raw.token_ids == reference(PROMPT, 8)
    assert received(swarm)["raw"] == sent["raw"]
    assert received(swarm)["int8"] == sent["raw"] * (HIDDEN + 2) // (4 * HIDDEN)
    assert raw.logprobs
    assert int8.logprobs
    assert int8.token_ids[0] == raw.token_ids[0]
    assert int8.logprobs[0] == pytest.approx(raw.logprobs[0], abs=0.2)
    assert int8.logprobs[0] != raw.logprobs[0]


async def test_a_chain_in_int8_does_not_depend_on_company_or_chunks(checkpoint: Path, tmp_path: Path) -> None:
    asked = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3, "codec": "int8"}
    async with in_process_swarm(checkpoint, *SPLITS) as swarm, swarm.client(tmp_path) as model:
        alone = await model.generate(PROMPT * 9, **asked)
        together = await model.generate([PROMPT, PROMPT * 9, [5]], **asked)
    assert together[1].token_ids == alone.token_ids


async def test_a_route_without_int8_is_not_taken_or_named(checkpoint: Path, tmp_path: Path) -> None:
    async with in_process_swarm(checkpoint, (0, 3)) as swarm:
        await swarm.start(3, 6, record={"codecs": ("raw",)})
        async with swarm.client(tmp_path) as model:
            with pytest.raises(NotOffered, match="codec int8"):
                await model.generate(PROMPT, max_new_tokens=2, codec="int8")
            plain = await model.generate(PROMPT, max_new_tokens=2, codec="auto")
            assert plain.codec == "raw"
        await swarm.start(3, 6)
        async with swarm.client(tmp_path) as model:
            again = await model.generate(PROMPT, max_new_tokens=2, codec="int8")
    assert again.codec == "int8"
    assert again.route[-1].peer == swarm.peers[2]
