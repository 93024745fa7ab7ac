"""Fixtures of the families of Llama's make."""

import dataclasses
from typing import Any

from tests.interop.make_fixtures import Case

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
}
# four layers, no head width that follows from the others, one key head
WIDE: dict[str, Any] = SIZES | {
    "vocab_size": 67,
    "hidden_size": 20,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "num_hidden_layers": 4,
    "intermediate_size": 28,
}
# transformers' check of sizes wants hidden_size in multiples of heads in some families
DIVISIBLE = WIDE | {"hidden_size": 21}
SLIDING, FULL = "sliding_attention", "full_attention"
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 8}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [1.0, 2.0, 4.0],
    "original_max_position_embeddings": 12,
    "factor": 4.0,
}


def case(model_type: str, sizes: dict[str, Any], extra: dict[str, Any] | None = None, **settings: Any) -> Case:
    return Case(model_type, sizes | settings, extra or {}, exact=model_type == "llama")


def linear(factor: float, theta: float = 1000.0) -> dict[str, Any]:
    return {"rope_type": "linear", "rope_theta": theta, "factor": factor}


def default(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


CASES: dict[str, Case] = {
    "llama": case("llama", SIZES, rms_norm_eps=1e-3),
    "llama_biases": case("llama", DIVISIBLE, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama_llama3": case("llama", SIZES, rope_parameters=LLAMA3, hidden_act="gelu"),
    "llama_linear": case("llama", SIZES, rope_parameters=linear(3.0), num_key_value_heads=4),
    "llama_dynamic": case(
        "llama",
        SIZES,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0},
        max_position_embeddings=16,
    ),
    "llama_yarn": case("llama", SIZES, rope_parameters=YARN),
    "llama_yarn_options": case(
        "llama",
        DIVISIBLE,
        rope_parameters=YARN | {"beta_fast": 4.0, "beta_slow": 0.5, "truncate": False, "attention_factor": 1.3},
    ),
    "llama_longrope": case("llama", SIZES, rope_parameters=LONG),
    "mistral": case("mistral", SIZES, sliding_window=5),
    "mistral_full": case("mistral", WIDE, sliding_window=None, tie_word_embeddings=True),
    "ministral": case("ministral", WIDE, sliding_window=6, layer_types=[FULL, SLIDING, SLIDING, FULL]),
    "ministral_default": case("ministral", SIZES | {"head_dim": 6}, sliding_window=4, tie_word_embeddings=True),
    "ministral3": case(
        "ministral3", WIDE, rope_parameters=YARN | {"llama_4_scaling_beta": 0.4, "mscale": 1.0, "mscale_all_dim": 1.0}
    ),
    "ministral3_window": case(
        "ministral3",
        SIZES,
        head_dim=10,
        sliding_window=5,
        tie_word_embeddings=True,
        rope_parameters=default(300.0) | {"llama_4_scaling_beta": 0.2, "original_max_position_embeddings": 7},
    ),
    "qwen2": case("qwen2", SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen2_layers": case(
        "qwen2",
        DIVISIBLE | {"num_hidden_layers": 3},
        use_sliding_window=True,
        sliding_window=4,
        layer_types=[SLIDING, FULL, SLIDING],
        tie_word_embeddings=True,
    ),
    "qwen2_full": case("qwen2", SIZES, num_key_value_heads=1),
    "qwen3": case("qwen3", WIDE, attention_bias=True, tie_word_embeddings=True),
    "qwen3_windows": case("qwen3", SIZES, head_dim=10, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "smollm3": case("smollm3", SIZES | {"num_hidden_layers": 5}, rope_parameters=default(200.0)),
    "smollm3_windows": case(
        "smollm3",
        DIVISIBLE | {"head_dim": 8},
        use_sliding_window=True,
        sliding_window=5,
        no_rope_layers=[1, 0, 0, 1],
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
    ),
    "granite": case(
        "granite",
        SIZES,
        embedding_multiplier=3.0,
        logits_scaling=1.7,
        residual_multiplier=0.6,
        attention_multiplier=0.3,
    ),
    "granite_biases": case(
        "granite",
        DIVISIBLE | {"head_dim": 6},
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        attention_multiplier=0.25,
        rope_parameters=linear(2.0),
    ),
    "granite_swa": case(
        "granite_swa",
        SIZES | {"num_hidden_layers": 5},
        sliding_window=5,
        attention_multiplier=0.4,
        embedding_multiplier=2.0,
        logits_scaling=0.7,
        residual_multiplier=0.5,
        layer_rope_theta=[100.0, 1000.0, 0, 100.0, 1000.0],
    ),
    "granite_swa_untied": case(
        "granite_swa",
        SIZES | {"num_hidden_layers": 3},
        sliding_window=4,
        layer_types=[SLIDING, FULL, SLIDING],
        tie_word_embeddings=False,
        attention_bias=True,
        mlp_bias=True,
    ),
    "helium": case("helium", SIZES | {"head_dim": 6}, rms_norm_eps=1e-4),
    "helium_biases": case(
        "helium", SIZES, head_dim=6, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, num_key_value_heads=1
    ),
    "olmo": case("olmo", SIZES, clip_qkv=0.7),
    "olmo_tied": case("olmo", DIVISIBLE | {"head_dim": 8}, attention_bias=True, tie_word_embeddings=True),
    "olmo2": case("olmo2", SIZES, rms_norm_eps=1e-3),
    "olmo2_tied": case("olmo2", DIVISIBLE | {"head_dim": 8}, attention_bias=True, tie_word_embeddings=True),
    "olmo3": case(
        "olmo3",
        SIZES | {"num_hidden_layers": 4},
        sliding_window=5,
        rope_parameters={SLIDING: default(100.0), FULL: YARN},
    ),
    "olmo3_layers": case(
        "olmo3",
        DIVISIBLE | {"num_hidden_layers": 3, "head_dim": 8},
        sliding_window=7,
        layer_types=[FULL, SLIDING, FULL],
        tie_word_embeddings=True,
        attention_bias=True,
    ),
    "exaone4": case("exaone4", SIZES | {"num_hidden_layers": 4}, sliding_window=5, sliding_window_pattern=4),
    "exaone4_full": case(
        "exaone4", SIZES | {"head_dim": 8}, sliding_window=None, layer_types=[FULL] * 2, tie_word_embeddings=True
    ),
    "glm": case("glm", SIZES | {"head_dim": 8}),
    "glm_no_bias": case(
        "glm",
        WIDE,
        attention_bias=False,
        tie_word_embeddings=True,
        rope_parameters=default(100.0) | {"partial_rotary_factor": 0.75},
    ),
    "glm4": case("glm4", SIZES | {"head_dim": 12}, hidden_act="gelu_new"),
    "glm4_no_bias": case("glm4", WIDE, attention_bias=False, tie_word_embeddings=True),
    "seed_oss": case("seed_oss", WIDE, attention_out_bias=True, mlp_bias=True),
    "seed_oss_no_bias": case("seed_oss", SIZES | {"head_dim": None}, attention_bias=False, tie_word_embeddings=True),
    "ernie4_5": case("ernie4_5", WIDE, use_bias=True),
    "ernie4_5_untied": case("ernie4_5", SIZES | {"head_dim": 8}, tie_word_embeddings=False),
    "arcee": case("arcee", SIZES, mlp_bias=True, attention_bias=True),
    "arcee_tied": case("arcee", DIVISIBLE, tie_word_embeddings=True, hidden_act="silu", rope_parameters=YARN),
    "apertus": case("apertus", SIZES),
    "apertus_tied": case(
        "apertus", DIVISIBLE | {"head_dim": 8}, tie_word_embeddings=True, attention_bias=True, rope_parameters=LLAMA3
    ),
    "gemma": case("gemma", SIZES | {"head_dim": 10}),
    "gemma_untied": case(
        "gemma", WIDE | {"num_hidden_layers": 2}, tie_word_embeddings=False, attention_bias=True, hidden_act="gelu"
    ),
    "gemma2": case(
        "gemma2",
        SIZES | {"head_dim": 10, "num_hidden_layers": 3},
        sliding_window=5,
        query_pre_attn_scalar=7,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "gemma2_layers": case(
        "gemma2",
        DIVISIBLE | {"num_hidden_layers": 3},
        sliding_window=6,
        layer_types=[FULL, SLIDING, FULL],
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        query_pre_attn_scalar=8,
        tie_word_embeddings=False,
        attention_bias=True,
    ),
    "gemma3_text": case(
        "gemma3_text",
        SIZES | {"head_dim": 8, "num_hidden_layers": 3},
        sliding_window=5,
        layer_types=[SLIDING, FULL, SLIDING],
        query_pre_attn_scalar=11,
        rope_parameters={SLIDING: default(50.0), FULL: linear(4.0, 2000.0)},
        final_logit_softcapping=4.0,
    ),
    "gemma3_text_default": case(
        "gemma3_text", DIVISIBLE | {"num_hidden_layers": 7}, sliding_window=4, query_pre_attn_scalar=8
    ),
    "vaultgemma": case(
        "vaultgemma", SIZES | {"head_dim": 8, "num_hidden_layers": 3}, sliding_window=5, query_pre_attn_scalar=6
    ),
    "vaultgemma_untied": case(
        "vaultgemma",
        DIVISIBLE | {"num_hidden_layers": 2},
        sliding_window=7,
        layer_types=[FULL, SLIDING],
        attn_logit_softcapping=None,
        final_logit_softcapping=2.0,
        tie_word_embeddings=False,
        attention_bias=True,
    ),
    "cohere": case("cohere", SIZES, use_qk_norm=True, logit_scale=0.4, layer_norm_eps=1e-3),
    "cohere_untied": case(
        "cohere", DIVISIBLE | {"head_dim": 8, "num_hidden_layers": 2}, tie_word_embeddings=False, attention_bias=True
    ),
    "cohere2": case("cohere2", SIZES | {"num_hidden_layers": 4}, sliding_window=5, logit_scale=0.3),
    "cohere2_layers": case(
        "cohere2",
        SIZES | {"num_hidden_layers": 3},
        sliding_window=6,
        layer_types=[FULL, SLIDING, FULL],
        attention_bias=True,
        tie_word_embeddings=False,
        rope_parameters=linear(2.0),
    ),
    "hunyuan_v1_dense": case("hunyuan_v1_dense", SIZES | {"head_dim": 8}, attention_bias=True),
    "hunyuan_v1_dense_alpha": case(
        "hunyuan_v1_dense",
        WIDE | {"num_hidden_layers": 2},
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 100.0, "factor": 1.0, "alpha": 50.0},
    ),
    "nanochat": case("nanochat", SIZES, final_logit_softcapping=4.0, rms_norm_eps=1e-3),
    "nanochat_tied": case(
        "nanochat",
        DIVISIBLE | {"num_hidden_layers": 2, "head_dim": 8},
        tie_word_embeddings=True,
        attention_bias=True,
        final_logit_softcapping=None,
        hidden_act="gelu",
        rope_parameters=YARN,
    ),
    "diffllama": case("diffllama", SIZES, attention_bias=True),
    "diffllama_tied": case("diffllama", SIZES | {"head_dim": 8, "num_key_value_heads": 4}, tie_word_embeddings=True),
}
LATENT: dict[str, Any] = SIZES | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 9,
    "q_lora_rank": 10,
    "qk_nope_head_dim": 5,
    "qk_rope_head_dim": 6,
    "v_head_dim": 7,
}
CASES["llama_dynamic"] = dataclasses.replace(CASES["llama_dynamic"], greedy=False)
CASES |= {
    "youtu": case("youtu", LATENT, rms_norm_eps=1e-3),
    "youtu_yarn": case(
        "youtu",
        LATENT,
        q_lora_rank=None,
        attention_bias=True,
        tie_word_embeddings=False,
        rope_interleave=False,
        rope_parameters=YARN | {"mscale": 0.7, "mscale_all_dim": 1.2},
    ),
    "minicpm3": case("minicpm3", LATENT, scale_emb=3, scale_depth=1.1, dim_model_base=10, mlp_bias=True),
    "minicpm3_untied": case(
        "minicpm3",
        LATENT | {"v_head_dim": None, "q_lora_rank": None},
        attention_bias=True,
        tie_word_embeddings=False,
        scale_depth=None,
        dim_model_base=None,
        rope_parameters=LONG,
    ),
}
