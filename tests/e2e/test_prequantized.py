"""Checkpoints that are quantized already, on real processes: what a client gets is what transformers would say."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, Mxfp4Config

from swarm_client import AsyncRemoteModel
from swarm_sim.local_swarm import LocalSwarm, LocalSwarmPlan
from tests.e2e.conftest import WITHOUT_DHT
from tests.model.quantized_checkpoints import BLOCKS, make_compressed, make_fp8, make_mxfp4, make_nf4

PROMPT = [5, 9, 60, 33, 21, 40]
NEW_TOKENS = 20


@dataclass(frozen=True)
class Scheme:
    """One kind of checkpoint; how transformers computes it here; how far a chosen token's logit may lag behind."""

    make: Callable[[Path], Path]
    label: str
    lag: float  # of the largest logit
    dtype: torch.dtype = torch.float32
    how: dict[str, Any] = field(default_factory=dict)


SCHEMES = (
    Scheme(make_mxfp4, "mxfp4-expanded", 1e-4, how={"quantization_config": Mxfp4Config(dequantize=True)}),
    Scheme(make_fp8, "fp8-expanded", 0.02, torch.bfloat16),
    Scheme(
        make_compressed,
        "compressed-tensors-expanded",
        1e-4,
        how={"quantization_config": CompressedTensorsConfig(dequantize=True)},
    ),
    Scheme(make_nf4, "bitsandbytes-nf4", 0.02),
)


@pytest.mark.parametrize(
    "scheme",
    [pytest.param(one, id=one.label, marks=[] if one is SCHEMES[0] else pytest.mark.slow) for one in SCHEMES],
)
async def test_two_nodes_say_what_transformers_says(scheme: Scheme, tmp_path: Path) -> None:
    folder = scheme.make(tmp_path / "quantized")
    plan = LocalSwarmPlan(
        model=folder, splits=((0, 1), (1, BLOCKS)), dtype="float32", kv_memory="4MiB", environment=WITHOUT_DHT
    )
    async with LocalSwarm(plan) as swarm:
        assert [node.facts["quantization"] for node in swarm.nodes] == [scheme.label] * 2
        async with AsyncRemoteModel.connect("quantized", swarm.bootstrap, cache_dir=tmp_path / "cache") as model:
            found = await model.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
            route = await model.route()
    assert {hop.record.numeric_class for hop in route.hops} == {f"float32/{scheme.label}"}
    assert len(found.token_ids) == NEW_TOKENS or found.finish_reason == "eos"

    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=scheme.dtype, **scheme.how).eval()
    with torch.inference_mode():
        logits = reference(torch.tensor([[*PROMPT, *found.token_ids]])).logits[0, len(PROMPT) - 1 : -1].float()
    chosen = logits.gather(1, torch.tensor(found.token_ids)[:, None])[:, 0]
    assert (logits.max(1).values - chosen).max() <= scheme.lag * logits.abs().max()
