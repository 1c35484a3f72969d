"""A swarm of real processes generates what transformers generates, however it is asked."""

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from swarm_client import AsyncRemoteModel, RemoteModel
from swarm_net.errors import NoSuchModel
from swarm_sim.local_swarm import LocalSwarm
from tests.e2e.conftest import CONTEXT, VOCABULARY, run_client

pytestmark = pytest.mark.asyncio(loop_scope="module")

Reference = Callable[[list[int], int], list[int]]
PROMPT = list(range(7, 40))


async def test_ids_are_those_of_transformers(three_nodes: LocalSwarm, reference: Reference, cache_dir: Path) -> None:
    async with AsyncRemoteModel.connect("tiny-llama", three_nodes.bootstrap, cache_dir=cache_dir) as model:
        generation = await model.generate(PROMPT, max_new_tokens=24, temperature=0)
    assert generation.token_ids == reference(PROMPT, 24)
    assert [(hop.start, hop.end) for hop in generation.route] == [(0, 2), (2, 4), (4, 6)]
    assert generation.finish_reason == "length"
    assert generation.timings.time_to_first_token_s > 0
    assert all(hop.compute_ms > 0 for hop in generation.timings.hops)


async def test_sixteen_sessions_of_different_lengths_with_chunked_prefill(
    three_nodes: LocalSwarm, reference: Reference, cache_dir: Path
) -> None:
    rng = random.Random(5)
    prompts = [[rng.randrange(VOCABULARY) for _ in range(length)] for length in (1, 2, 17, 300, 400, *range(30, 41))]
    async with AsyncRemoteModel.connect("tiny-llama", three_nodes.bootstrap, cache_dir=cache_dir) as model:
        generations = await model.generate(prompts, max_new_tokens=12, temperature=0)
    for prompt, generation in zip(prompts, generations, strict=True):
        assert generation.token_ids == reference(prompt, 12), len(prompt)


async def test_a_seed_gives_the_same_ids_alone_and_in_company(three_nodes: LocalSwarm, cache_dir: Path) -> None:
    async with AsyncRemoteModel.connect("tiny-llama", three_nodes.bootstrap, cache_dir=cache_dir) as model:
        asked = {"max_new_tokens": 10, "temperature": 1.0, "top_p": 0.95, "seed": 7}
        alone = await model.generate(PROMPT, **asked)
        together = await model.generate([PROMPT, PROMPT[:9], PROMPT], **asked)
        other = await model.generate(PROMPT, **{**asked, "seed": 8})
    assert [generation.token_ids for generation in (together[0], together[2])] == [alone.token_ids] * 2
    assert other.token_ids != alone.token_ids


async def test_a_prompt_that_begins_alike_is_not_computed_again(
    three_nodes: LocalSwarm, reference: Reference, cache_dir: Path
) -> None:
    beginning = [17 + place % 60 for place in range(150)]
    async with AsyncRemoteModel.connect("tiny-llama", three_nodes.bootstrap, cache_dir=cache_dir) as model:
        for end, cached in (([5], 0), ([6, 7], 128), ([5], 128)):
            generation = await model.generate([*beginning, *end], max_new_tokens=8, temperature=0)
            assert generation.usage.cached_tokens == cached
            assert generation.token_ids == reference([*beginning, *end], 8)
    async with AsyncRemoteModel.connect("tiny-llama", three_nodes.bootstrap, cache_dir=cache_dir) as other:
        generation = await other.generate([*beginning, 5], max_new_tokens=1, temperature=0)
        assert generation.usage.cached_tokens == 0


async def test_a_stream_that_is_left_ends_its_session(three_nodes: LocalSwarm, cache_dir: Path) -> None:
    async with AsyncRemoteModel.connect("tiny-llama", three_nodes.bootstrap, cache_dir=cache_dir) as model:
        async with model.stream(PROMPT, max_new_tokens=200, temperature=0) as tokens:
            async for _ in tokens:
                break
        generation = await model.generate(PROMPT, max_new_tokens=3, temperature=0)
        assert len(generation.token_ids) == 3


async def test_the_blocking_face_from_many_threads(
    three_nodes: LocalSwarm, reference: Reference, cache_dir: Path
) -> None:
    def ask(model: RemoteModel, length: int) -> list[int]:
        return model.generate(PROMPT[:length], max_new_tokens=6, temperature=0).token_ids

    def run() -> None:
        with RemoteModel.connect("tiny-llama", bootstrap=three_nodes.bootstrap, cache_dir=cache_dir) as model:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(6) as threads:
                lengths = range(3, 15)
                for length, ids in zip(lengths, threads.map(lambda n: ask(model, n), lengths), strict=True):
                    assert ids == reference(PROMPT[:length], 6)

    await asyncio.to_thread(run)


async def test_the_command_prints_ids_timings_and_route(
    three_nodes: LocalSwarm, reference: Reference, checkpoint: Path
) -> None:
    ids = ",".join(map(str, PROMPT))
    for name in ("tiny-llama", str(checkpoint)):
        arguments = ("--model", name, "--bootstrap", three_nodes.bootstrap[1], "--temperature", "0", "--json")
        ran = await asyncio.to_thread(run_client, "generate", "--ids", ids, "--max-new-tokens", "8", *arguments)
        assert ran.returncode == 0, ran.stderr
        printed = json.loads(ran.stdout)
        assert printed["token_ids"] == reference(PROMPT, 8)
        assert len(printed["timings"]["hops"]) == 3
        assert [hop["start"] for hop in printed["route"]] == [0, 2, 4]


async def test_models_and_route_are_shown(three_nodes: LocalSwarm) -> None:
    arguments = ("--bootstrap", three_nodes.bootstrap[0], "--json")
    models = await asyncio.to_thread(run_client, "models", *arguments)
    assert models.returncode == 0, models.stderr
    assert "tiny-llama" in models.stdout
    shown = await asyncio.to_thread(run_client, "route", "--model", "tiny-llama", *arguments)
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--ids", "1", "--model", "no-such-model"), "no_such_model"),
        (("--ids", "", "--model", "tiny-llama"), "empty_prompt"),
        (("--ids", ",".join(["1"] * (CONTEXT + 1)), "--model", "tiny-llama"), "prompt_too_long"),
        (("--ids", f"1,{VOCABULARY}", "--model", "tiny-llama"), "token_outside_vocabulary"),
        (("--ids", "1", "--model", "tiny-llama", "--temperature", "-1"), "invalid_parameter"),
        (("--ids", "1", "--model", "tiny-llama", "--top-p", "0"), "invalid_parameter"),
        (("Once upon", "--model", "tiny-llama"), "no_tokenizer"),
    ],
)
async def test_bad_input_gets_a_typed_error(three_nodes: LocalSwarm, arguments: tuple[str, ...], error: str) -> None:
    ran = await asyncio.to_thread(run_client, "generate", *arguments, "--bootstrap", three_nodes.bootstrap[0], "--json")
    assert ran.returncode == 1
    printed = json.loads(ran.stdout or ran.stderr)
    assert printed["error"] == error
    assert printed["remedy"]


async def test_a_dead_or_wrong_bootstrap_is_named(three_nodes: LocalSwarm) -> None:
    good = three_nodes.bootstrap[0]
    peer = good.rsplit("/", 1)[1]
    wrong = good.replace(peer, three_nodes.nodes[1].peer)
    for address, error in (
        (f"/ip4/127.0.0.1/tcp/1/p2p/{peer}", "peer_unreachable"),
        (wrong, "wrong_peer"),
        ("nonsense", "bad_address"),
    ):
        arguments = ("generate", "--ids", "1", "--model", "tiny-llama", "--json")
        ran = await asyncio.to_thread(run_client, *arguments, "--bootstrap", address)
        assert ran.returncode == 1
        assert json.loads(ran.stdout or ran.stderr)["error"] == error


async def test_an_unknown_model_lists_what_is_served(three_nodes: LocalSwarm, cache_dir: Path) -> None:
    with pytest.raises(NoSuchModel, match="tiny-llama"):
        async with AsyncRemoteModel.connect("other", three_nodes.bootstrap, cache_dir=cache_dir):
            pass
