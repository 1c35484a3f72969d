"""Sampling extras as a user asks for them: real processes, the demo model, the command line."""

import asyncio
import json
import math
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from swarm_sim.demo_model import demo_model_path
from swarm_sim.local_swarm import LocalSwarm, LocalSwarmPlan
from tests.e2e.conftest import WITHOUT_DHT, run_client

pytest.importorskip("xgrammar", reason="structured output needs the package xgrammar")
pytestmark = pytest.mark.asyncio(loop_scope="module")

BLOCKS = 12
SCHEMA = {
    "type": "object",
    "properties": {
        "speaker": {"type": "string", "maxLength": 12},
        "mood": {"enum": ["merry", "grave"]},
        "lines": {"type": "array", "items": {"type": "string", "maxLength": 30}, "minItems": 1, "maxItems": 2},
    },
    "required": ["speaker", "mood", "lines"],
    "additionalProperties": False,
}
DATE = 'root ::= day "." month "."\nday ::= [1-9] | [12] [0-9]\nmonth ::= [1-9]'


def plan(**environment: str) -> LocalSwarmPlan:
    return LocalSwarmPlan(
        model=demo_model_path(),
        splits=((0, 6), (6, BLOCKS)),
        dtype="float32",
        kv_memory="32MiB",
        environment={**WITHOUT_DHT, **environment},
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two_nodes() -> AsyncIterator[LocalSwarm]:
    async with LocalSwarm(plan()) as swarm:
        yield swarm


async def generate(swarm: LocalSwarm, *arguments: str) -> Any:
    """Return what `swarm-client generate --json` prints."""
    where = ("--model", "llama", "--bootstrap", swarm.bootstrap[0], "--json", "--seed", "3")
    ran = await asyncio.to_thread(run_client, "generate", "ROMEO:", *where, *arguments)
    printed = json.loads(ran.stdout)
    assert (ran.returncode == 0) == ("error" not in printed), ran.stderr
    return printed


async def test_the_demo_model_speaks_in_json(two_nodes: LocalSwarm, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    asked = ("--json-schema", str(tmp_path / "schema.json"), "--temperature", "0.8")
    samples = await generate(two_nodes, *asked, "--n", "3")
    values = [json.loads(sample["text"]) for sample in samples]
    for value in values:
        assert list(value) == ["speaker", "mood", "lines"]
        assert value["mood"] in ("merry", "grave")
        assert 1 <= len(value["lines"]) <= 2
    assert [sample["seed"] for sample in samples] == [3, 4, 5]
    assert len({sample["text"] for sample in samples}) == 3
    guessed = await generate(two_nodes, *asked, "--draft", "ngram")
    assert guessed["token_ids"] == samples[0]["token_ids"]


async def test_expressions_grammars_biases_and_log_probabilities(two_nodes: LocalSwarm, tmp_path: Path) -> None:
    (tmp_path / "date.ebnf").write_text(DATE)
    number = await generate(two_nodes, "--regex", "[0-9]{4}", "--temperature", "1", "--top-logprobs", "2")
    assert re.fullmatch("[0-9]{4}", number["text"])
    assert len(number["logprobs"]) == len(number["top_logprobs"]) == len(number["token_ids"])
    assert all(math.exp(logprob) <= 1.0 for logprob in number["logprobs"])
    date = await generate(two_nodes, "--grammar", str(tmp_path / "date.ebnf"), "--temperature", "1")
    assert re.fullmatch(r"([1-9]|[12][0-9])\.[1-9]\.", date["text"])
    plain = await generate(two_nodes, "--temperature", "0", "--max-new-tokens", "8")
    first = plain["token_ids"][0]
    barred = await generate(two_nodes, "--temperature", "0", "--max-new-tokens", "8", "--logit-bias", f"{first}=-100")
    assert first not in barred["token_ids"]
    others = ("--stop", plain["text"][3:6], "--frequency-penalty", "0.1", "--presence-penalty", "0.1")
    stopped = await generate(two_nodes, "--temperature", "0", "--max-new-tokens", "40", *others)
    assert stopped["finish_reason"] == "stop"


async def test_what_cannot_be_is_refused_with_its_remedy(two_nodes: LocalSwarm) -> None:
    for arguments, code in (
        (("--regex", "("), "grammar_refused"),
        (("--regex", "(.{0,500}){0,20}x", "--temperature", "1", "--max-new-tokens", "60"), "grammar_refused"),
        (("--json-schema", "/no/such/file"), "invalid_parameter"),
    ):
        refused = await generate(two_nodes, *arguments)
        assert refused["error"] == code
        assert refused["remedy"]
    assert (await generate(two_nodes, "--regex", "ab"))["text"] == "ab"


@pytest.mark.slow
async def test_nodes_without_xgrammar_serve_all_but_grammars(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['xgrammar'] = None\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    async with LocalSwarm(plan(PYTHONPATH=path)) as swarm:
        assert (await generate(swarm, "--max-new-tokens", "4"))["text"]
        refused = await generate(swarm, "--regex", "ab")
    assert refused["error"] == "not_offered"
    assert "swarm-inference[node,structured]" in refused["remedy"]
