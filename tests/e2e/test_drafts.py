"""Guesses over real processes: the demo model, n-grams of its own text, and its draft model at the client."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from swarm_client import AsyncRemoteModel
from swarm_sim.demo_model import demo_model_path, draft_model_path
from swarm_sim.local_swarm import LocalSwarm, LocalSwarmPlan
from tests.e2e.conftest import WITHOUT_DHT, make_checkpoint, run_client

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "JULIET:\nO Romeo, Romeo! wherefore art thou Romeo?\n\n" * 2
BLOCKS = 12


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two_nodes() -> AsyncIterator[LocalSwarm]:
    """The demo model in float32."""
    plan = LocalSwarmPlan(
        model=demo_model_path(),
        splits=((0, 6), (6, BLOCKS)),
        dtype="float32",
        kv_memory="32MiB",
        environment=WITHOUT_DHT,
    )
    async with LocalSwarm(plan) as swarm:
        yield swarm


@pytest.mark.parametrize("draft", ["ngram", str(draft_model_path())], ids=["ngram", "model"])
async def test_the_command_guesses_and_prints_the_same(two_nodes: LocalSwarm, draft: str) -> None:
    arguments = ("generate", TEXT, "--model", "llama", "--bootstrap", two_nodes.bootstrap[0], "--json")
    for sampling in (("--temperature", "0"), ("--temperature", "0.7", "--seed", "5", "--repetition-penalty", "1.1")):
        asked = (*arguments, *sampling, "--max-new-tokens", "60")
        plain = await asyncio.to_thread(run_client, *asked)
        assert plain.returncode == 0, plain.stderr
        guessed = await asyncio.to_thread(run_client, *asked, "--draft", draft)
        assert guessed.returncode == 0, guessed.stderr
        wanted, found = json.loads(plain.stdout), json.loads(guessed.stdout)
        assert found["token_ids"] == wanted["token_ids"]
        assert "drafts" not in wanted
        assert found["drafts"]["accepted"] <= found["drafts"]["sent"]
        if sampling == ("--temperature", "0"):  # how many more depends on what steps take just now
            assert found["drafts"]["accepted"] > 0


async def test_sixteen_sessions_guess_side_by_side(two_nodes: LocalSwarm, tmp_path: Path) -> None:
    async with AsyncRemoteModel.connect("llama", two_nodes.bootstrap, cache_dir=tmp_path) as model:
        prompts = [TEXT[: 10 + 5 * number] for number in range(16)]
        for asked in ({"temperature": 0.0}, {"temperature": 0.8, "seed": 3}):
            wanted = await model.generate(prompts, max_new_tokens=24, **asked)
            for draft in ("ngram", draft_model_path()):
                found = await model.generate(prompts, max_new_tokens=24, draft=draft, **asked)
                assert [one.token_ids for one in found] == [one.token_ids for one in wanted]


async def test_a_draft_of_another_vocabulary_is_refused(two_nodes: LocalSwarm, tmp_path: Path) -> None:
    foreign = make_checkpoint(tmp_path / "foreign", seed=3)
    arguments = ("--model", "llama", "--bootstrap", two_nodes.bootstrap[0], "--json", "--draft", str(foreign))
    ran = await asyncio.to_thread(run_client, "generate", "ROMEO:", *arguments)
    assert ran.returncode == 1
    assert json.loads(ran.stdout)["error"] == "foreign_draft"


async def test_a_draft_model_without_torch_says_what_to_install(two_nodes: LocalSwarm) -> None:
    program = "import sys; sys.modules['torch'] = None; from swarm_client.__main__ import main; main()"
    arguments = ("generate", "ROMEO:", "--model", "llama", "--bootstrap", two_nodes.bootstrap[0], "--json", "--draft")

    def run(draft: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, *arguments, draft]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    refused = await asyncio.to_thread(run, str(draft_model_path()))
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["error"] == "draft_needs_torch"
    assert (await asyncio.to_thread(run, "ngram")).returncode == 0
