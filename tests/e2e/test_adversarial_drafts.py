"""Wrong guesses on real spans and nodes: among sixteen sessions, on too small pools, while hops fail, in flight."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from swarm_client import AsyncRemoteModel, Generation
from swarm_model.sampler import sample
from swarm_net.clocks import SystemClock
from swarm_net.endpoint import Endpoint
from swarm_net.identity import Identity
from swarm_net.links import Link, PeerId
from swarm_net.memory import MemoryTransport
from swarm_net.messages import HopSpec, ModelId, Open, Opened, SamplingSpec
from swarm_node.span_executor import sampling_of
from tests.adversaries import GUESSES, Adversary, Guess
from tests.e2e.conftest import VOCABULARY
from tests.e2e.in_process import InProcessSwarm, in_process_swarm
from tests.model.families import make_checkpoint
from tests.node.rough_client import RoughClient
from tests.node.swarm import Peer

Reference = Callable[[list[int], int], list[int]]
SPLITS = ((0, 2), (2, 4), (4, 6))
NEW_TOKENS = 24
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.9, "seed": 11},
    {"temperature": 0.7, "seed": 5, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3},
)
RNG = Random("prompts")
PROMPTS = [[RNG.randrange(3, VOCABULARY) for _ in range(RNG.randint(1, 40))] for _ in range(16)]


def sampling_for(number: int) -> dict[str, Any]:
    return SAMPLINGS[number % len(SAMPLINGS)]


def adversary(guess: Guess, prompt: Sequence[int], answer: Sequence[int]) -> Adversary:
    return Adversary(guess, prompt_tokens=len(prompt), answer=answer, vocabulary=VOCABULARY)


async def alone(model: AsyncRemoteModel) -> list[list[int]]:
    """What each session says without guesses and without company."""
    return [
        (await model.generate(prompt, max_new_tokens=NEW_TOKENS, **sampling_for(number))).token_ids
        for number, prompt in enumerate(PROMPTS)
    ]


async def together(model: AsyncRemoteModel, answers: Sequence[list[int]], shift: int = 0) -> list[Generation]:
    """All sessions at once, each with a drafter of another kind."""
    return await asyncio.gather(
        *(
            model.generate(
                prompt,
                max_new_tokens=NEW_TOKENS,
                draft=adversary(GUESSES[(number + shift) % len(GUESSES)], prompt, answers[number]),
                **sampling_for(number),
            )
            for number, prompt in enumerate(PROMPTS)
        )
    )


async def test_no_guess_changes_an_id(checkpoint: Path, reference: Reference, tmp_path: Path) -> None:
    async with in_process_swarm(checkpoint, *SPLITS) as swarm, swarm.client(tmp_path) as model:
        answers = await alone(model)
        greedy = [number for number in range(len(PROMPTS)) if sampling_for(number)["temperature"] == 0]
        assert [answers[number] for number in greedy] == [reference(PROMPTS[number], NEW_TOKENS) for number in greedy]
        for number, guess in enumerate(GUESSES):
            asked = {"max_new_tokens": NEW_TOKENS, **sampling_for(number)}
            drafter = adversary(guess, PROMPTS[number], answers[number])
            assert (await model.generate(PROMPTS[number], draft=drafter, **asked)).token_ids == answers[number]
        for shift in range(3):
            found = await together(model, answers, shift)
            assert [one.token_ids for one in found] == answers
            assert sum(one.drafts.accepted for one in found if one.drafts) > NEW_TOKENS


@pytest.mark.parametrize("family", ["lfm2", "mamba2"])
async def test_no_guess_changes_an_id_where_states_cannot_be_cut(family: str, tmp_path: Path) -> None:
    directory = make_checkpoint(family, tmp_path / family, vocab_size=VOCABULARY)
    async with in_process_swarm(directory, *SPLITS) as swarm, swarm.client(tmp_path) as model:
        answers = await alone(model)
        found = await together(model, answers)
        assert [one.token_ids for one in found] == answers
        assert sum(one.drafts.accepted for one in found if one.drafts) > NEW_TOKENS


async def test_no_guess_changes_an_id_on_a_pool_too_small_for_all(checkpoint: Path, tmp_path: Path) -> None:
    page = 2 * 16 * 2 * 2 * 16 * 4  # of two blocks: 16 tokens, keys and values, kv heads, head size, float32
    async with in_process_swarm(checkpoint) as swarm:
        for blocks in SPLITS:
            await swarm.start(*blocks, kv_bytes=16 * page, swap_bytes=80 * page)
        async with swarm.client(tmp_path) as model:
            answers = await alone(model)
            assert [one.token_ids for one in await together(model, answers)] == answers


async def test_hops_that_vanish_with_guesses_on_their_way(checkpoint: Path, tmp_path: Path) -> None:
    async with in_process_swarm(checkpoint, *SPLITS, (2, 4), (4, 6)) as swarm, swarm.client(tmp_path) as model:
        answers = await alone(model)

        async def vanish(places: tuple[int, ...]) -> None:
            for place in places:
                while not any(one.newest_candidate for one in swarm.nodes[place].table.sessions.values()):  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                swarm.drop(place)

        async with asyncio.TaskGroup() as tasks:
            vanishing = tasks.create_task(vanish((1, 2)))
            found = await together(model, answers)
        assert vanishing.done()
        assert [one.token_ids for one in found] == answers
        assert sum(len(one.retries) for one in found) > 0


def following(model: LlamaForCausalLM, spec: SamplingSpec) -> Callable[[Sequence[int], int], list[int]]:
    """What the last hop draws, by plain transformers without a cache."""
    sampling, known = sampling_of(spec), dict[tuple[int, ...], int]()

    def draw(ids: tuple[int, ...]) -> int:
        if ids not in known:
            with torch.inference_mode():
                row = model(torch.tensor([ids]), use_cache=False).logits[0, -1].numpy()
            known[ids] = sample(row, sampling, len(ids), np.array(ids)).token
        return known[ids]

    def follow(ids: Sequence[int], tokens: int) -> list[int]:
        text = list(ids)
        for _ in range(tokens):
            text.append(draw(tuple(text)))
        return text[len(ids) :]

    return follow


async def opened(swarm: InProcessSwarm, session: bytes, sampling: SamplingSpec, max_tokens: int) -> tuple[Peer, Link]:
    """Open a session by hand, through all nodes in their order; return its peer and its link to hop 0."""
    own = Identity.generate().peer_id
    endpoint = Endpoint(peer=own, transport=MemoryTransport(swarm.network, own), clock=SystemClock())
    swarm.stack.push_async_callback(endpoint.close)
    peer = Peer(endpoint)
    hops = tuple(
        HopSpec(peer=name, start=node.facts.start, end=node.facts.end, addresses=(address,), dtype="float32")
        for name, node, address in zip(swarm.peers, swarm.nodes, swarm.addresses, strict=True)
    )
    first, _ = [await endpoint.link(PeerId(hop.peer), hop.addresses, timeout_s=2) for hop in (hops[0], hops[-1])]
    model = ModelId(name="tiny", revision=swarm.manifest.revision)
    fields: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "deadline_ms": 5000, "sampling": sampling}
    first.send(Open(session=session, client=own, hops=hops, **fields))
    answer = await peer.hear()
    assert isinstance(answer, Opened), answer
    return peer, first


async def test_steps_in_flight_over_real_spans(checkpoint: Path) -> None:
    max_tokens = 100
    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    async with in_process_swarm(checkpoint, *SPLITS) as swarm:

        async def play(number: int) -> RoughClient:
            session, rng = b"%016d" % number, Random(number)
            spec = SamplingSpec(**sampling_for(number))
            peer, link = await opened(swarm, session, spec, max_tokens)
            client = RoughClient(peer, link, session, VOCABULARY, max_tokens, following(model, spec), rng)
            await client.play(PROMPTS[number], steps=25)
            return client

        clients = await asyncio.gather(*(play(number) for number in range(len(PROMPTS))))
        assert sum(len(client.answered) for client in clients) > 5 * len(PROMPTS)
