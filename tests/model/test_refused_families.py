"""Families whose numbers we would get wrong are refused when they are loaded, each for a reason of its own."""

from pathlib import Path
from typing import Any

import pytest

from swarm_model.errors import UnsupportedModel
from tests.model.families import BLOCKS, load_spans, make_checkpoint

CHUNKED = {
    "head_dim": 16,
    "num_local_experts": 2,
    "intermediate_size_mlp": 96,
    "attention_chunk_size": 8,
    "layer_types": ["chunked_attention"] * 5 + ["full_attention"],
}
SINKS = {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
RECURRENT = {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "chunk_size": 8}
ALIBI = {"n_layer": BLOCKS, "n_head": 4}


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("gpt_oss", SINKS, "s_aux"),
        ("llama4_text", CHUNKED, "masks tokens"),
        ("deepseek_v3", LATENT, "other keys and values"),
        ("mamba2", RECURRENT, "position_ids"),
        ("bloom", ALIBI, "fails on a span"),
    ],
)
def test_a_family_that_would_be_computed_wrong_is_refused(
    family: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModel, match=reason) as refusal:
        load_spans(make_checkpoint(family, tmp_path, **changes), [0, 2, BLOCKS])
    assert refusal.value.family == family
