"""Steps that do not wait for each other, of many sessions over several hops: every result is the model's."""

import asyncio
from collections.abc import Sequence
from random import Random

import pytest

from swarm_net.links import Lane, PeerId
from swarm_net.messages import Opened, SamplingSpec
from swarm_sim.digest_executor import Speed
from swarm_sim.digest_model import VOCABULARY
from tests.node.rough_client import RoughClient
from tests.node.swarm import expected, settled, swarm

MAX_TOKENS = 120
SESSIONS = 16


def bulk_is_slow(source: PeerId, target: PeerId, frame_bytes: int, lane: Lane) -> float:
    return 0.005 if lane == "bulk" else 0.0


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("speed", [Speed(0, 0), Speed(0.0002, 0.00002)], ids=["quick", "slow"])
async def test_every_result_is_right_whatever_is_in_flight(seed: int, speed: Speed) -> None:
    kv_tokens = SESSIONS * (MAX_TOKENS + 16)
    async with swarm((0, 3), (3, 4), (4, 8), kv_tokens=kv_tokens, speed=speed, delay=bulk_is_slow) as nodes:

        async def play(number: int) -> RoughClient:
            rng, session = Random(f"{seed} {number}"), b"%016d" % number
            penalty = 1.1 if number % 4 > 1 else 1.0  # the last hop then keeps all ids
            sampling = SamplingSpec(temperature=float(number % 2), seed=number, repetition_penalty=penalty)

            def following(ids: Sequence[int], tokens: int) -> list[int]:
                return expected(ids, tokens, sampling.seed if sampling.temperature else None)

            peer = await nodes.client()
            link, opened = await nodes.open(peer, session, max_tokens=MAX_TOKENS, sampling=sampling)
            assert isinstance(opened, Opened), opened
            client = RoughClient(peer, link, session, VOCABULARY, MAX_TOKENS, following, rng)
            await client.play([rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 40))], steps=40)
            return client

        clients = await asyncio.gather(*(play(number) for number in range(SESSIONS)))
        assert sum(len(client.answered) for client in clients) > 10 * SESSIONS
        assert sum(client.gaps for client in clients) > 0
        await settled(lambda: all(node.load().queued_tokens == 0 for node in nodes.nodes))
