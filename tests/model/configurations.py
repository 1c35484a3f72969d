"""Every configuration that is tested, exact in its mode or refused: the source of docs/models.md (models_page.py)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from swarm_model.load_checks import Mode

BLOCKS: Final = 4  # of each tiny checkpoint, cut into three spans at 1 and 3
MOE: Final = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL_MOE: Final = {"num_local_experts": 4, "num_experts_per_tok": 2}
GROUPED_MOE: Final = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
ONE_GROUP_MOE: Final = {**GROUPED_MOE, "n_group": 1}
LATENT: Final = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "head_dim": 8,
}
# Enough heads that no two tokens score alike: which of equals is chosen is chance
SPARSE: Final = {**LATENT, **GROUPED_MOE, "index_n_heads": 16, "index_head_dim": 16, "index_topk": 12}
GPT2: Final = {"n_embd": 64, "n_layer": BLOCKS, "n_head": 4, "n_positions": 256}
HEADS: Final = {"head_dim": 16}
WINDOW: Final = {"sliding_window": 7}
ALTERNATE: Final = {"layer_types": ["sliding_attention", "full_attention"] * 2}
SHARED_MOE: Final = {**MOE, "shared_expert_intermediate_size": 32}
DELTA: Final = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
MAMBA: Final = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_d_ssm": 128,
    "mamba_chunk_size": 8,
}
GEMMA4: Final = {**HEADS, **WINDOW, **ALTERNATE, "global_head_dim": 16, "vocab_size_per_layer_input": 96}
GEMMA3: Final = {**HEADS, **WINDOW, "num_hidden_layers": BLOCKS, "query_pre_attn_scalar": 16}
VISION: Final = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@dataclass(frozen=True)
class Configuration:
    """A family with some of its switches set."""

    family: str
    note: str  # what of it differs from other configurations of the family
    changes: dict[str, Any]
    mode: Mode

    @property
    def name(self) -> str:
        return f"{self.family}, {self.note}" if self.note else self.family

    @property
    def tolerance(self) -> float:
        """How far log-probabilities may be off, relative to the largest logit.

        Recurrences are computed in another order for chunks than for single tokens.
        """
        return 5e-5 if self.mode == "recurrent" else 1e-5


PAGED: Final[dict[str, dict[str, Any]]] = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "llama, multi-query": {"num_key_value_heads": 1},
    "llama, yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 10000.0,
        }
    },
    "mistral": {**WINDOW, **HEADS},
    "mistral, no window": {"sliding_window": None},
    "mixtral": LOCAL_MOE,
    "qwen2": {},
    "qwen2, window": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
    "qwen3": HEADS,
    "qwen3_moe": {**HEADS, **MOE},
    "gemma": HEADS,
    "gemma2": {**HEADS, **WINDOW, "query_pre_attn_scalar": 16, "tie_word_embeddings": True},
    "gemma3_text": {**HEADS, **WINDOW, "query_pre_attn_scalar": 16, "tie_word_embeddings": True},
    "phi": {},
    "phi3": {},
    "olmo2": {},
    "olmo3": WINDOW,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt_neox": {},
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "gptj": {**GPT2, "rotary_dim": 8},
    "bloom": {"n_layer": BLOCKS, "n_head": 4},
    "falcon, multi-query": {"new_decoder_architecture": False, "multi_query": True},
    "falcon, new architecture": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon, alibi": {"alibi": True, "new_decoder_architecture": False, "multi_query": False},
    "starcoder2": WINDOW,
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "biogpt": {},
    "granite": {
        "embedding_multiplier": 6.0,
        "residual_multiplier": 0.4,
        "logits_scaling": 3.0,
        "attention_multiplier": 0.2,
    },
    "cohere": {},
    "cohere2": {**HEADS, **WINDOW},
    "deepseek_v2": {**LATENT, **GROUPED_MOE},
    "deepseek_v3": {**LATENT, **GROUPED_MOE},
    "deepseek_v3, no query rank": {**LATENT, **GROUPED_MOE, "q_lora_rank": None},
    "glm4_moe_lite": {**LATENT, **GROUPED_MOE},
    "axk1": {**LATENT, **GROUPED_MOE},
    "glm": HEADS,
    "glm4": HEADS,
    "glm4_moe": {**HEADS, **ONE_GROUP_MOE},
    "dots1": {**HEADS, **ONE_GROUP_MOE},
    "gpt_oss": {**HEADS, **LOCAL_MOE, **WINDOW},
    "llama4_text": {
        **HEADS,
        "num_local_experts": 2,
        "intermediate_size_mlp": 96,
        "attention_chunk_size": 8,
        "attn_temperature_tuning": True,
        "floor_scale": 4,
        "layer_types": ["chunked_attention", "full_attention", "chunked_attention", "full_attention"],
    },
    "smollm3": {},
    "stablelm": {},
    "ernie4_5": HEADS,
    "ernie4_5_moe": {**HEADS, "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1},
    "minimax_m2": {**HEADS, **LOCAL_MOE},
    "seed_oss": HEADS,
    "hunyuan_v1_dense": HEADS,
    "exaone4": {**HEADS, **WINDOW},
    "exaone_moe": {**HEADS, **MOE},
    "afmoe": {**HEADS, **MOE, **WINDOW},
    "apertus": {},
    "arcee": {},
    "bitnet": {},
    "ctrl": {**GPT2, "dff": 96},
    "cwm": {**HEADS, **WINDOW},
    "hyperclovax": {},
    "aria_text": {**HEADS, "moe_num_experts": 4, "moe_num_shared_experts": 1, "moe_topk": 2},
    "beam": {**HEADS, **MOE, **WINDOW, **ALTERNATE, "n_group": 1, "topk_group": 1},
    "cohere2_moe": {**HEADS, **MOE, **WINDOW, **ALTERNATE},
    "dbrx": {
        "d_model": 64,
        "n_heads": 4,
        "n_layers": BLOCKS,
        "max_seq_len": 256,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "flint": {**HEADS, **SHARED_MOE, **WINDOW, **ALTERNATE},
    "gemma3, with a vision tower": {"text_config": GEMMA3, "vision_config": VISION, "mm_tokens_per_image": 4},
    "gemma4_text": {**GEMMA4, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
    "gemma4_unified_text": {**HEADS, **WINDOW, **ALTERNATE},
    "granite_swa": {**WINDOW, **ALTERNATE},
    "granitemoe": LOCAL_MOE,
    "granitemoe_swa": {**LOCAL_MOE, **WINDOW, **ALTERNATE, "shared_intermediate_size": 64},
    "granitemoeshared": {**LOCAL_MOE, "shared_intermediate_size": 64},
    "helium": HEADS,
    "hunyuan_v1_moe": {**HEADS, **LOCAL_MOE, "moe_topk": 2},
    "hy_v3": {**HEADS, **MOE, "mlp_layer_types": ["dense", "sparse"] * 2},
    "internlm3": HEADS,
    "iquestcoder": HEADS,
    "jais2": HEADS,
    "kolibri1": {**HEADS, **SHARED_MOE, **WINDOW, **ALTERNATE},
    "laguna": {**HEADS, **SHARED_MOE, **WINDOW, **ALTERNATE, "mlp_layer_types": ["dense", "sparse"] * 2},
    "mellum": {**HEADS, **MOE, **WINDOW, **ALTERNATE},
    "mimo_v2_flash": {
        **HEADS,
        **ONE_GROUP_MOE,
        **WINDOW,
        **ALTERNATE,
        "v_head_dim": 16,
        "mlp_layer_types": ["dense", "sparse"] * 2,
    },
    "minicpm3": LATENT,
    "ministral": {**HEADS, **WINDOW, **ALTERNATE},
    "ministral3": {**HEADS, **WINDOW},
    "moshi": {**HEADS, **WINDOW, "ffn_dim": 96},
    "nanochat": {},
    "nemotron": HEADS,
    "olmo": {},
    "persimmon": {},
    "phimoe": {**LOCAL_MOE, **WINDOW},
    "qwen2_moe": SHARED_MOE,
    "solar_open": {**HEADS, **ONE_GROUP_MOE},
    "vaultgemma": {**HEADS, **WINDOW, **ALTERNATE},
    "youtu": LATENT,
}
RECURRENT: Final[dict[str, dict[str, Any]]] = {
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "chunk_size": 8},
    "bamba": {**MAMBA, "attn_layer_indices": [1, 2]},
    "falcon_h1": {**MAMBA, **HEADS},
    "granitemoehybrid": {
        **MAMBA,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "shared_intermediate_size": 64,
        "layer_types": ["mamba", "attention", "attention", "mamba"],
    },
    "bailing_hybrid": {**LATENT, **GROUPED_MOE, "num_experts": 4},
    "falcon_mamba": {"state_size": 16},
    "jamba": {**LOCAL_MOE, "num_experts": 4, "mamba_d_state": 16},
    "kimi_linear": {
        **LATENT,
        **MOE,
        "linear_num_heads": 4,
        "linear_head_dim": 16,
        "num_expert_group": 1,
        "topk_group": 1,
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "conv"]},
    "lfm2_moe": {**MOE, "layer_types": ["conv", "full_attention", "conv", "conv"], "num_dense_layers": 1},
    "lfm3": {**HEADS, **WINDOW, "layer_types": ["conv", "full_attention", "sliding_attention", "conv"]},
    "mamba": {"state_size": 16},
    "olmo_hybrid": {**DELTA, "layer_types": ["linear_attention", "full_attention"] * 2},
    "qwen3_5_text": {**HEADS, **DELTA, "layer_types": ["linear_attention", "full_attention"] * 2},
    "qwen3_5_moe_text": {
        **HEADS,
        **DELTA,
        **SHARED_MOE,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "qwen3_next": {
        **HEADS,
        **DELTA,
        **MOE,
        "shared_expert_intermediate_size": 32,
        "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    },
}
SESSION: Final[dict[str, dict[str, Any]]] = {
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": BLOCKS, "max_seq_len": 256, "expansion_ratio": 2},
    "codegen": {**GPT2, "rotary_dim": 8},
    "deepseek_v32": SPARSE,
    "glm_moe_dsa": SPARSE,
    "axk2": SPARSE,
    "diffllama": {},
    "doge": {},
    "gpt_neo": {"num_layers": BLOCKS, "num_heads": 4, "attention_types": [[["global", "local"], 2]], "window_size": 7},
    "jetmoe": {**LOCAL_MOE, "kv_channels": 16},
    "xglm": {"d_model": 64, "ffn_dim": 96, "num_layers": BLOCKS},
    "gpt_neox_japanese": {},
}


@dataclass(frozen=True)
class Refusal:
    """A family, with some of its switches set, that cannot be cut into spans."""

    family: str
    note: str
    changes: dict[str, Any]
    because: str  # for people
    says: str  # a pattern that the refusal matches

    @property
    def name(self) -> str:
        return f"{self.family}, {self.note}" if self.note else self.family


REFUSALS: Final = (
    Refusal(
        "bart", "", {"d_model": 64, "decoder_layers": BLOCKS}, "it has an encoder", "no inputs_embeds, or no cache"
    ),
    Refusal(
        "minimax",
        "",
        {**HEADS, **LOCAL_MOE, "layer_types": ["linear_attention", "full_attention"] * 2, "block_size": 8},
        "its running states live in a cache of a kind that only its own code makes",
        "cache of its own",
    ),
    Refusal(
        "gemma3n_text",
        "",
        {
            **HEADS,
            **WINDOW,
            **ALTERNATE,
            "num_kv_shared_layers": 2,
            "laurel_rank": 8,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 96,
            "activation_sparsity_pattern": [0.0] * BLOCKS,
            "intermediate_size": [96] * BLOCKS,
        },
        "several streams of hidden states pass from block to block",
        "no plain tensors",
    ),
    Refusal(
        "zamba2",
        "",
        {
            "layers_block_type": ["mamba", "hybrid"] * 2,
            "mamba_d_state": 16,
            "mamba_headdim": 16,
            "mamba_ngroups": 1,
            "n_mamba_heads": 8,
            "num_mem_blocks": 1,
            "chunk_size": 8,
            "attention_head_dim": 32,
            "num_key_value_heads": 4,
        },
        "its blocks read the token embeddings, which only the first span has",
        "take more from the embeddings|passes from block",
    ),
    Refusal(
        "gemma4_text",
        "embeddings in each block",
        {**GEMMA4, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0},
        "every block reads token embeddings of its own, which only the first span has",
        "fails on a span|take more from the embeddings",
    ),
    Refusal(
        "gemma4_text",
        "shared keys and values",
        {**GEMMA4, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 2},
        "later blocks read keys and values of earlier ones, which may be in another span",
        "fails on a span|passes from block",
    ),
    Refusal(
        "longcat_flash",
        "",
        {
            "num_layers": BLOCKS // 2,
            "ffn_hidden_size": 64,
            "expert_ffn_hidden_size": 32,
            "n_routed_experts": 4,
            "zero_expert_num": 2,
            "moe_topk": 2,
            **LATENT,
        },
        "two attentions share one block",
        "no list of",
    ),
)


def configurations() -> Iterator[Configuration]:
    """Give all of them, in the order of the page."""
    modes: tuple[tuple[Mode, dict[str, dict[str, Any]]], ...] = (
        ("paged", PAGED),
        ("recurrent", RECURRENT),
        ("session", SESSION),
    )
    for mode, families in modes:
        for name, changes in families.items():
            family, _, note = name.partition(", ")
            yield Configuration(family, note, {"num_hidden_layers": BLOCKS, **changes}, mode)
