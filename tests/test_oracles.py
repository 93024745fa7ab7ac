"""Hugging Face's numbers for the same parameters: an implementation that shares nothing with ours."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.flax import load_file

from gpt_jax import GPT, ModelConfig
from gpt_jax.config import (
    PROJECTIONS,
    Alibi,
    Attention,
    BlockConfig,
    Embedding,
    GatedMlp,
    Head,
    LayerNorm,
    Learned,
    Llama3Scaling,
    Mlp,
    RmsNorm,
    Rope,
    RopeScaling,
    Score,
    Yarn,
)

Tensors = dict[str, jax.Array]


def gpt2(c: dict[str, Any], t: Tensors) -> tuple[ModelConfig, Any]:
    norm = LayerNorm(c["layer_norm_epsilon"])
    block = BlockConfig(Attention(c["n_head"], bias=PROJECTIONS), Mlp(4 * c["n_embd"], "gelu_tanh", bias=True), norm)
    model = ModelConfig(
        c["vocab_size"], c["n_positions"], c["n_embd"], (block,) * c["n_layer"], Embedding(Learned()), norm
    )

    def linear(name: str, part: slice = slice(None)) -> dict[str, jax.Array]:
        return {"kernel": t[f"{name}.weight"][:, part], "bias": t[f"{name}.bias"][part]}

    def affine(name: str) -> dict[str, jax.Array]:
        return {"scale": t[f"{name}.weight"], "bias": t[f"{name}.bias"]}

    def layer(i: int) -> dict[str, Any]:
        h, width = f"transformer.h.{i}", c["n_embd"]
        parts = {name: slice(n * width, (n + 1) * width) for n, name in enumerate(("query", "key", "value"))}
        attention = {name: linear(f"{h}.attn.c_attn", part) for name, part in parts.items()}
        return {
            "attention_norm": affine(f"{h}.ln_1"),
            "attention": attention | {"output": linear(f"{h}.attn.c_proj")},
            "mlp_norm": affine(f"{h}.ln_2"),
            "mlp": {"up": linear(f"{h}.mlp.c_fc"), "down": linear(f"{h}.mlp.c_proj")},
        }

    return model, {
        "embedding": {"table": t["transformer.wte.weight"], "position": {"table": t["transformer.wpe.weight"]}},
        "blocks": {str(i): layer(i) for i in range(c["n_layer"])},
        "final_norm": affine("transformer.ln_f"),
    }


def rope(c: dict[str, Any]) -> Rope:
    scaling: RopeScaling | None = None
    match c["rope_type"]:
        case "llama3":
            low, high = c["low_freq_factor"], c["high_freq_factor"]
            scaling = Llama3Scaling(c["factor"], low, high, c["original_max_position_embeddings"])
        case "yarn":
            scaling = Yarn(c["factor"], c["original_max_position_embeddings"], c["beta_fast"], c["beta_slow"])
    return Rope(c["rope_theta"], scaling=scaling)


def llama(c: dict[str, Any], t: Tensors) -> tuple[ModelConfig, Any]:
    """Llama and Qwen 3, which is Llama with a norm on each head's queries and keys."""
    norm, has_qk_norm = RmsNorm(c["rms_norm_eps"]), c["model_type"] == "qwen3"
    attention = Attention(
        c["num_attention_heads"],
        c["num_key_value_heads"],
        c["head_dim"],
        position=rope(c["rope_parameters"]),
        score=Score(qk_norm=norm if has_qk_norm else None),
    )
    block = BlockConfig(attention, GatedMlp(c["intermediate_size"], c["hidden_act"]), norm)
    blocks = (block,) * c["num_hidden_layers"]
    head = Head(tied=c["tie_word_embeddings"])
    model = ModelConfig(
        c["vocab_size"], c["max_position_embeddings"], c["hidden_size"], blocks, final_norm=norm, head=head
    )

    def layer(i: int) -> dict[str, Any]:
        h = f"model.layers.{i}"
        linears = {
            group: {ours: {"kernel": t[f"{h}.{place}.{theirs}_proj.weight"].T} for ours, theirs in names.items()}
            for group, place, names in [
                ("attention", "self_attn", {"query": "q", "key": "k", "value": "v", "output": "o"}),
                ("mlp", "mlp", {"gate": "gate", "up": "up", "down": "down"}),
            ]
        }
        if has_qk_norm:
            for ours, theirs in {"query_norm": "q_norm", "key_norm": "k_norm"}.items():
                linears["attention"][ours] = {"scale": t[f"{h}.self_attn.{theirs}.weight"]}
        return linears | {
            "attention_norm": {"scale": t[f"{h}.input_layernorm.weight"]},
            "mlp_norm": {"scale": t[f"{h}.post_attention_layernorm.weight"]},
        }

    return model, {
        "embedding": {"table": t["model.embed_tokens.weight"]},
        "blocks": {str(i): layer(i) for i in range(c["num_hidden_layers"])},
        "final_norm": {"scale": t["model.norm.weight"]},
        "head": {"kernel": t["lm_head.weight"].T},
    }


def bloom(c: dict[str, Any], t: Tensors) -> tuple[ModelConfig, Any]:
    """ALiBi, a norm on the embedding, and a fused product whose rows are (head, query | key | value, width)."""
    H, C, norm = c["n_head"], c["hidden_size"], LayerNorm(c["layer_norm_epsilon"])
    attention = Attention(H, position=Alibi(), bias=PROJECTIONS)
    block = BlockConfig(attention, Mlp(4 * C, "gelu_tanh", bias=True), norm)
    model = ModelConfig(c["vocab_size"], 64, C, (block,) * c["n_layer"], Embedding(norm=norm), norm)

    def parameters(i: int) -> dict[str, Any]:
        h = f"transformer.h.{i}"
        fused = affine(t, f"{h}.self_attention.query_key_value")
        parts = {
            name: {key: y.reshape(*y.shape[:-1], H, 3, C // H)[..., n, :] for key, y in fused.items()}
            for n, name in enumerate(("query", "key", "value"))
        }
        parts = {name: {"kernel": y["kernel"].reshape(C, C), "bias": y["bias"].ravel()} for name, y in parts.items()}
        return {
            "attention_norm": scaled(t, f"{h}.input_layernorm"),
            "attention": parts | {"output": affine(t, f"{h}.self_attention.dense")},
            "mlp_norm": scaled(t, f"{h}.post_attention_layernorm"),
            "mlp": {"up": affine(t, f"{h}.mlp.dense_h_to_4h"), "down": affine(t, f"{h}.mlp.dense_4h_to_h")},
        }

    table, embedding_norm = t["transformer.word_embeddings.weight"], scaled(t, "transformer.word_embeddings_layernorm")
    return model, {
        "embedding": {"table": table, "norm": embedding_norm},
        "blocks": {str(i): parameters(i) for i in range(c["n_layer"])},
        "final_norm": scaled(t, "transformer.ln_f"),
    }


def mpt(c: dict[str, Any], t: Tensors) -> tuple[ModelConfig, Any]:
    """ALiBi, clipped queries, keys and values, no biases anywhere."""
    C, norm, options = c["d_model"], LayerNorm(c["layer_norm_epsilon"], bias=False), c["attn_config"]
    position = Alibi(float(options["alibi_bias_max"]))
    attention = Attention(c["n_heads"], position=position, clip=options["clip_qkv"])
    block = BlockConfig(attention, Mlp(4 * C, "gelu"), norm)
    model = ModelConfig(c["vocab_size"], c["max_seq_len"], C, (block,) * c["n_layers"], final_norm=norm)

    def parameters(i: int) -> dict[str, Any]:
        h = f"transformer.blocks.{i}"
        fused = jnp.split(t[f"{h}.attn.Wqkv.weight"].T, 3, axis=1)
        parts = {name: {"kernel": kernel} for name, kernel in zip(("query", "key", "value"), fused, strict=True)}
        return {
            "attention_norm": scaled(t, f"{h}.norm_1"),
            "attention": parts | {"output": affine(t, f"{h}.attn.out_proj")},
            "mlp_norm": scaled(t, f"{h}.norm_2"),
            "mlp": {"up": affine(t, f"{h}.ffn.up_proj"), "down": affine(t, f"{h}.ffn.down_proj")},
        }

    return model, {
        "embedding": {"table": t["transformer.wte.weight"]},
        "blocks": {str(i): parameters(i) for i in range(c["n_layers"])},
        "final_norm": scaled(t, "transformer.norm_f"),
    }


def opt(c: dict[str, Any], t: Tensors) -> tuple[ModelConfig, Any]:
    """Learned positions that begin in row 2."""
    norm = LayerNorm()
    attention = Attention(c["num_attention_heads"], bias=PROJECTIONS)
    block = BlockConfig(attention, Mlp(c["ffn_dim"], "relu", bias=True), norm)
    embedding = Embedding(Learned(c["max_position_embeddings"], offset=2))
    blocks = (block,) * c["num_hidden_layers"]
    model = ModelConfig(c["vocab_size"], c["max_position_embeddings"], c["hidden_size"], blocks, embedding, norm)

    def parameters(i: int) -> dict[str, Any]:
        h = f"model.decoder.layers.{i}"
        names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
        return {
            "attention_norm": scaled(t, f"{h}.self_attn_layer_norm"),
            "attention": {ours: affine(t, f"{h}.self_attn.{theirs}") for ours, theirs in names.items()},
            "mlp_norm": scaled(t, f"{h}.final_layer_norm"),
            "mlp": {"up": affine(t, f"{h}.fc1"), "down": affine(t, f"{h}.fc2")},
        }

    table, positions = (t[f"model.decoder.embed_{name}.weight"] for name in ("tokens", "positions"))
    return model, {
        "embedding": {"table": table, "position": {"table": positions}},
        "blocks": {str(i): parameters(i) for i in range(c["num_hidden_layers"])},
        "final_norm": scaled(t, "model.decoder.final_layer_norm"),
    }


def affine(t: Tensors, name: str) -> dict[str, jax.Array]:
    """A linear layer, with a bias where there is one."""
    bias = {"bias": t[f"{name}.bias"]} if f"{name}.bias" in t else {}
    return {"kernel": t[f"{name}.weight"].T} | bias


def scaled(t: Tensors, name: str) -> dict[str, jax.Array]:
    """A norm, with a bias where there is one."""
    bias = {"bias": t[f"{name}.bias"]} if f"{name}.bias" in t else {}
    return {"scale": t[f"{name}.weight"]} | bias


FAMILIES = {"gpt2": gpt2, "llama": llama, "llama_rope_llama3": llama, "llama_rope_yarn": llama, "qwen3": llama}
FAMILIES |= {"bloom": bloom, "mpt": mpt, "opt": opt}


@pytest.mark.parametrize("family, read", FAMILIES.items())
def test_logits_and_greedy_tokens_are_hugging_faces(family: str, read: Any, shared: Path) -> None:
    folder = shared / "oracles" / family
    if not folder.is_dir():
        pytest.skip(f"needs the oracle {folder}")
    tensors = load_file(folder / "model.safetensors")
    c, params = read(json.loads((folder / "config.json").read_text()), tensors)
    ids, wanted, generated = (np.load(folder / f"{name}.npy") for name in ("input_ids", "logits", "generated"))
    logits = GPT(c).apply({"params": params}, jnp.asarray(ids, jnp.int32))
    np.testing.assert_allclose(logits, wanted, atol=1e-4)
    longer = GPT(c).apply({"params": params}, jnp.asarray(generated, jnp.int32))
    prompt = ids.shape[1]
    np.testing.assert_array_equal(generated[:, :prompt], ids)
    np.testing.assert_array_equal(longer[:, prompt - 1 : -1].argmax(-1), generated[:, prompt:])
