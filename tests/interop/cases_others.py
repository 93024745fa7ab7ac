"""The families that are not of Llama's make."""

from typing import Any

from tests.interop.make_fixtures import Case

GPT: dict[str, Any] = {"vocab_size": 61, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
USUAL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
NEO: dict[str, Any] = {"vocab_size": 61, "hidden_size": 16, "num_heads": 4, "max_position_embeddings": 32}
XGLM: dict[str, Any] = {
    "vocab_size": 61,
    "d_model": 16,
    "ffn_dim": 24,
    "num_layers": 2,
    "attention_heads": 4,
    "max_position_embeddings": 32,
}
OPT: dict[str, Any] = {key: value for key, value in USUAL.items() if key != "intermediate_size"} | {"ffn_dim": 24}
BLOOM: dict[str, Any] = {"vocab_size": 61, "hidden_size": 16, "n_layer": 2, "n_head": 4}
MPT: dict[str, Any] = {"vocab_size": 61, "d_model": 16, "n_layers": 2, "n_heads": 4, "max_seq_len": 32}
FALCON: dict[str, Any] = {key: value for key, value in USUAL.items() if key != "intermediate_size"}


def partial(share: float, theta: float = 10_000.0, **scaling: Any) -> dict[str, Any]:
    group = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": share}
    return {"rope_parameters": group | scaling}


def longrope(pairs: int, **more: Any) -> dict[str, Any]:
    short, long = [1.0 + 0.1 * i for i in range(pairs)], [1.0 + 1.5 * i for i in range(pairs)]
    return {"rope_type": "longrope", "short_factor": short, "long_factor": long} | more


CASES = {
    "gpt2": Case("gpt2", GPT),
    "gpt2_switches": Case(
        "gpt2",
        GPT
        | {"n_head": 2, "n_layer": 3, "n_inner": 20, "vocab_size": 53, "tie_word_embeddings": False}
        | {"scale_attn_by_inverse_layer_idx": True, "activation_function": "relu", "layer_norm_epsilon": 1e-3},
    ),
    "gpt2_unscaled": Case(
        "gpt2", GPT | {"scale_attn_weights": False, "n_embd": 12, "n_head": 3, "activation_function": "gelu"}
    ),
    "gpt2_headless": Case("gpt2", GPT, rename={"transformer.": ""}),  # as OpenAI's own are
    "gpt_bigcode": Case("gpt_bigcode", GPT),
    "gpt_bigcode_heads": Case(
        "gpt_bigcode",
        GPT | {"multi_query": False, "n_inner": 20, "tie_word_embeddings": False, "activation_function": "gelu"},
    ),
    "gpt_bigcode_unscaled": Case("gpt_bigcode", GPT | {"n_embd": 12, "n_head": 2, "scale_attn_weights": False}),
    "gpt_neo": Case(
        "gpt_neo", NEO | {"num_layers": 4, "attention_types": [[["global", "local"], 2]], "window_size": 5}
    ),
    "gpt_neo_uneven": Case(
        "gpt_neo",
        NEO
        | {"num_layers": 3, "attention_types": [[["local"], 2], [["global"], 1]], "window_size": 7, "num_heads": 2}
        | {"intermediate_size": 20, "tie_word_embeddings": False, "activation_function": "relu"},
    ),
    "gptj": Case("gptj", GPT | {"rotary_dim": 2}),
    "gptj_whole": Case(
        "gptj", GPT | {"n_head": 2, "rotary_dim": 8, "n_inner": 20, "vocab_size": 53, "tie_word_embeddings": True}
    ),
    "codegen": Case("codegen", GPT | {"rotary_dim": 2}),
    "codegen_eight": Case(
        "codegen", GPT | {"n_embd": 32, "n_head": 8, "n_layer": 1, "rotary_dim": 4, "n_inner": 20, "n_ctx": 32}
    ),
    "gpt_neox": Case("gpt_neox", USUAL | {"num_attention_heads": 2} | partial(0.25)),
    "gpt_neox_serial": Case(
        "gpt_neox",
        USUAL
        | {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True, "hidden_act": "relu"}
        | partial(1.0, 500.0, rope_type="linear", factor=3.0),
    ),
    "pythia": Case(
        "gpt_neox",
        USUAL | {"num_attention_heads": 1, "hidden_size": 12, "layer_norm_eps": 1e-3} | partial(0.7, 300.0),
        rename={"lm_head.": "embed_out."},
    ),
    "opt": Case("opt", OPT),
    "opt_post": Case(
        "opt",
        OPT
        | {"do_layer_norm_before": False, "num_attention_heads": 2, "activation_function": "gelu", "vocab_size": 53},
    ),
    "opt_bare": Case(
        "opt",
        OPT
        | {"enable_bias": False, "layer_norm_elementwise_affine": False, "tie_word_embeddings": False}
        | {"_remove_final_layer_norm": True},
    ),
    "xglm": Case("xglm", XGLM | {"pad_token_id": 1}),
    "xglm_plain": Case(
        "xglm",
        XGLM
        | {"d_model": 12, "attention_heads": 3, "scale_embedding": False, "tie_word_embeddings": False}
        | {"activation_function": "relu", "vocab_size": 53},
    ),
    "bloom": Case("bloom", BLOOM),
    "bloom_six": Case(
        "bloom",
        BLOOM
        | {"hidden_size": 24, "n_head": 6, "n_layer": 1, "tie_word_embeddings": False, "vocab_size": 53}
        | {"layer_norm_epsilon": 1e-3},
        rename={"transformer.": ""},
    ),
    "mpt": Case("mpt", MPT | {"attn_config": {"clip_qkv": 1.0}}),
    "mpt_three": Case(
        "mpt",
        MPT
        | {"d_model": 18, "n_heads": 3, "tie_word_embeddings": False, "expansion_ratio": 2, "vocab_size": 53}
        | {"attn_config": {"softmax_scale": 0.4}, "layer_norm_epsilon": 1e-3},
    ),
    "falcon_7b": Case("falcon", FALCON | {"num_attention_heads": 4, "vocab_size": 53}),
    "falcon_40b": Case(
        "falcon",
        FALCON
        | {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 24, "tie_word_embeddings": False},
    ),
    "falcon_11b": Case(
        "falcon",
        FALCON
        | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "ffn_hidden_size": 24}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "activation": "relu", "bias": True},
    ),
    "falcon_rw": Case(
        "falcon",
        FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True, "ffn_hidden_size": 24},
        extra={"attn_implementation": "sdpa"},
        implementation="sdpa",
    ),
    "falcon_rw_eager": Case(
        "falcon",
        FALCON
        | {"alibi": True, "multi_query": False, "hidden_size": 24, "num_attention_heads": 12, "num_hidden_layers": 1}
        | {"ffn_hidden_size": 24},
        extra={"attn_implementation": "eager"},
    ),
    "phi": Case("phi", USUAL | {"num_key_value_heads": 2} | partial(0.5)),
    "phi_norms": Case(
        "phi",
        USUAL
        | {"num_attention_heads": 2, "qk_layernorm": True, "tie_word_embeddings": True, "layer_norm_eps": 1e-3}
        | partial(0.75, 300.0),
    ),
    "phi3": Case("phi3", USUAL | {"num_key_value_heads": 2, "sliding_window": 5}),
    "phi3_longrope": Case(
        "phi3",
        USUAL
        | {"num_attention_heads": 2, "original_max_position_embeddings": 16, "tie_word_embeddings": True}
        | partial(0.75, 500.0, **longrope(3)),
    ),
    "phi3_shortrope": Case(
        "phi3",
        USUAL | {"original_max_position_embeddings": 30, "vocab_size": 53} | partial(1.0, **longrope(2)),
    ),
    "starcoder2": Case("starcoder2", USUAL | {"num_key_value_heads": 2, "sliding_window": 5}),
    "starcoder2_plain": Case(
        "starcoder2",
        USUAL
        | {"num_key_value_heads": 1, "use_bias": False, "tie_word_embeddings": False, "norm_epsilon": 1e-3}
        | {"hidden_act": "gelu", "vocab_size": 53},
    ),
    "stablelm": Case(
        "stablelm", USUAL | {"num_attention_heads": 2, "num_key_value_heads": 1, "use_qkv_bias": True} | partial(0.25)
    ),
    "stablelm_norms": Case(
        "stablelm",
        USUAL
        | {"num_key_value_heads": 2, "qk_layernorm": True, "use_parallel_residual": True, "tie_word_embeddings": True}
        | partial(0.5, 300.0),
    ),
    "nemotron": Case("nemotron", USUAL | {"num_key_value_heads": 2} | partial(0.5)),
    "nemotron_wide": Case(
        "nemotron",
        USUAL
        | {
            "num_key_value_heads": 4,
            "head_dim": 6,
            "attention_bias": True,
            "mlp_bias": True,
            "hidden_act": "silu",
            "norm_eps": 1e-3,
        }
        | {"tie_word_embeddings": True, "vocab_size": 53}
        | partial(0.7, 300.0),
    ),
}
