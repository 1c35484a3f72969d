"""Nodes that quantize while they load: real processes against the same spans in this process."""

import asyncio
import json
from pathlib import Path

import pytest
import torch

from swarm_client import AsyncRemoteModel
from swarm_model.checkpoint import Checkpoint
from swarm_model.sampling_params import Sampling
from swarm_model.sizing import QuantizationName
from swarm_model.span import Chunk, SampleRequest, SessionKey, Span
from swarm_sim.local_swarm import LocalSwarm, LocalSwarmPlan
from tests.e2e.conftest import BLOCKS, WITHOUT_DHT, run_client, run_node
from tests.model.quantized_checkpoints import make_nf4

PROMPT = list(range(7, 30))
NEW_TOKENS = 8


def continued_by_a_span(checkpoint: Path, quantize: QuantizationName) -> list[int]:
    load = {"device": torch.device("cpu"), "dtype": torch.float32, "kv_bytes": 1 << 22}
    span = Span.load(Checkpoint.open(checkpoint), 0, BLOCKS, **load, quantize=quantize)
    ids = list(PROMPT)
    inputs = ids
    while len(ids) < len(PROMPT) + NEW_TOKENS:
        position = len(ids) - len(inputs)
        (output,) = span.forward([Chunk(SessionKey(b"a"), position, torch.tensor(inputs), SampleRequest(Sampling()))])
        assert isinstance(output, tuple)
        (drawn,) = output
        inputs = [drawn.token]
        ids += inputs
    return ids[len(PROMPT) :]


@pytest.mark.parametrize("quantize", ["int8", pytest.param("nf4", marks=pytest.mark.slow)])
async def test_a_quantized_swarm_says_so_and_computes_what_its_spans_compute(
    quantize: QuantizationName, checkpoint: Path, cache_dir: Path
) -> None:
    plan = LocalSwarmPlan(
        model=checkpoint,
        splits=((0, 3), (3, BLOCKS)),
        dtype="float32",
        kv_memory="8MiB",
        arguments=("--quantize", quantize),
        environment=WITHOUT_DHT,
    )
    async with LocalSwarm(plan) as swarm:
        assert [node.facts["quantization"] for node in swarm.nodes] == [quantize, quantize]
        async with AsyncRemoteModel.connect("tiny-llama", swarm.bootstrap, cache_dir=cache_dir) as model:
            generation = await model.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
        asked = ("route", "--model", "tiny-llama", "--bootstrap", swarm.bootstrap[0], "--json")
        shown = await asyncio.to_thread(run_client, *asked)
    assert generation.token_ids == continued_by_a_span(checkpoint, quantize)
    assert shown.returncode == 0, shown.stderr
    assert f"float32/{quantize}" in shown.stdout


def test_a_checkpoint_that_is_quantized_already_is_refused(tmp_path: Path) -> None:
    where = ("--model", str(make_nf4(tmp_path)), "--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0")
    ran = run_node("start", *where, "--device", "cpu", "--quantize", "int8", "--json")
    assert ran.returncode == 1
    printed = json.loads((ran.stdout or ran.stderr).splitlines()[-1])
    assert printed["error"] == "format_unavailable"
    assert "bitsandbytes-nf4" in printed["message"]
