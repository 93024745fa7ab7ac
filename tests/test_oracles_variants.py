"""The laboratory's switches against Hugging Face's models that have them, all of Llama's make: gated MLPs, RMS norms,
rotated queries and keys.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.flax import load_file

from gpt_jax import GPT, Greedy, ModelConfig, generate
from gpt_jax.config import (
    Attention,
    BlockConfig,
    Differential,
    Embedding,
    GatedMlp,
    Head,
    Latent,
    LayerNorm,
    LinearScaling,
    Mlp,
    RmsNorm,
    Rope,
    Score,
    Window,
)

Json = dict[str, Any]
MLP = {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
QKVO = {name: f"self_attn.{name[0] if name != 'output' else 'o'}_proj" for name in ("query", "key", "value", "output")}
PRE = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
OUTPUT = {"attention_output_norm": "post_attention_layernorm", "mlp_output_norm": "post_feedforward_layernorm"}
SANDWICH = OUTPUT | {"attention_norm": "input_layernorm", "mlp_norm": "pre_feedforward_layernorm"}
QK = {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}


def attention(c: Json, kind: Any = Attention, **changes: Any) -> Any:
    width = c["head_dim"] if "head_dim" in c else None
    position = changes.pop("position") if "position" in changes else rope(c["rope_parameters"])
    return kind(c["num_attention_heads"], c["num_key_value_heads"], width, position=position, **changes)


def rope(c: Json, **changes: Any) -> Rope:
    return Rope(c["rope_theta"], scaling=LinearScaling(c["factor"]) if c["rope_type"] == "linear" else None, **changes)


def model(c: Json, blocks: Any, norm: Any, embedding: Any = None, head: Any = None) -> ModelConfig:
    blocks = blocks if isinstance(blocks, tuple) else (blocks,) * c["num_hidden_layers"]
    embedding, head = Embedding() if embedding is None else embedding, Head() if head is None else head
    head = dataclasses.replace(head, tied=c["tie_word_embeddings"])
    return ModelConfig(c["vocab_size"], c["max_position_embeddings"], c["hidden_size"], blocks, embedding, norm, head)


def gated(c: Json, activation: Any = "silu") -> GatedMlp:
    return GatedMlp(c["intermediate_size"], activation)


def qwen2(c: Json) -> ModelConfig:
    """Biases of queries, keys and values."""
    norm = RmsNorm(c["rms_norm_eps"])
    return model(c, BlockConfig(attention(c, bias=("query", "key", "value")), gated(c), norm), norm)


def olmo2(c: Json) -> ModelConfig:
    """Norms on outputs alone, and over the whole width of queries and keys."""
    norm = RmsNorm(c["rms_norm_eps"])
    block = BlockConfig(attention(c, score=Score(qk_norm=norm, qk_norm_over="width")), gated(c), norm, "output")
    return model(c, block, norm)


def gemma(c: Json) -> ModelConfig:
    """Scales stored less 1, embeddings times √C; later windows, soft-caps, sandwiches, a theta for each kind."""
    norm, generation = RmsNorm(c["rms_norm_eps"], unit_offset=True), c["model_type"]
    embedding = Embedding(scale=math.sqrt(c["hidden_size"]))
    if generation == "gemma":
        return model(c, BlockConfig(attention(c), gated(c, "gelu_tanh"), norm), norm, embedding)

    def block(kind: str) -> BlockConfig:
        is_local, ropes = kind == "sliding_attention", c["rope_parameters"]
        given: Json = {"mask": Window(c["sliding_window"])} if is_local else {}
        given["position"] = rope(ropes[kind] if kind in ropes else ropes)
        scale, qk_norm = c["query_pre_attn_scalar"] ** -0.5, norm if generation == "gemma3_text" else None
        score = Score(scale=scale, qk_norm=qk_norm, softcap=c["attn_logit_softcapping"])
        return BlockConfig(attention(c, score=score, **given), gated(c, "gelu_tanh"), norm, "sandwich")

    head = Head(softcap=c["final_logit_softcapping"])
    return model(c, tuple(block(kind) for kind in c["layer_types"]), norm, embedding, head)


def cohere(c: Json) -> ModelConfig:
    """Attention and MLP side by side, each head's own norm, pairs interleaved, logits scaled."""
    norm, qk_norm = (LayerNorm(c["layer_norm_eps"], bias=False) for _ in range(2))
    position = rope(c["rope_parameters"], interleaved=True)
    score = Score(qk_norm=qk_norm, qk_norm_over="heads")
    block = BlockConfig(attention(c, position=position, score=score), gated(c), norm, "parallel")
    return model(c, block, norm, head=Head(scale=c["logit_scale"]))


def granite(c: Json) -> ModelConfig:
    """Multipliers of embedding, scores, residual and logits."""
    norm = RmsNorm(c["rms_norm_eps"])
    score = Score(scale=c["attention_multiplier"])
    block = BlockConfig(attention(c, score=score), gated(c), norm, residual_scale=c["residual_multiplier"])
    head = Head(scale=1 / c["logits_scaling"])
    return model(c, block, norm, Embedding(scale=c["embedding_multiplier"]), head)


def diffllama(c: Json) -> ModelConfig:
    norm = RmsNorm(c["rms_norm_eps"])
    kind = attention(c, Differential, norm=RmsNorm(c["rms_norm_eps"], scale=False))
    return model(c, BlockConfig(kind, gated(c), norm), norm)


def youtu(c: Json) -> ModelConfig:
    """DeepSeek's latent attention, without experts."""
    norm = RmsNorm(c["rms_norm_eps"])
    latent = Latent(
        c["num_attention_heads"],
        c["kv_lora_rank"],
        c["qk_nope_head_dim"],
        c["qk_rope_head_dim"],
        c["q_lora_rank"],
        c["v_head_dim"],
        position=rope(c["rope_parameters"], interleaved=c["rope_interleave"]),
        norm=norm,
    )
    return model(c, BlockConfig(latent, gated(c), norm), norm)


def nanochat(c: Json) -> ModelConfig:
    """No weights in norms, those of queries and keys after the rotation, which turns the other way; relu²."""
    norm = RmsNorm(c["rms_norm_eps"], scale=False)
    score = Score(qk_norm=norm, qk_norm_last=True)
    block = BlockConfig(attention(c, score=score), Mlp(c["intermediate_size"], "relu2"), norm)
    return model(c, block, norm, Embedding(norm=norm), Head(softcap=c["final_logit_softcapping"]))


def parameters(c: Json, t: dict[str, jax.Array], names: dict[str, str]) -> Any:
    def leaf(name: str) -> dict[str, jax.Array]:
        weight, bias = t[f"{name}.weight"], {"bias": t[f"{name}.bias"]} if f"{name}.bias" in t else {}
        return {"scale" if "norm" in name else "kernel": weight if "norm" in name else weight.T} | bias

    def layer(i: int) -> Any:
        h = f"model.layers.{i}"
        params: Any = {"attention": {}, "mlp": {}}
        for ours, theirs in names.items():
            group = {"self_attn": "attention", "mlp": "mlp"}.get(theirs.split(".")[0])
            (params if group is None else params[group])[ours] = leaf(f"{h}.{theirs}")
        attention = params["attention"]
        if c["model_type"] == "diffllama":
            for side, n in [(side, n) for side in "qk" for n in (1, 2)]:
                ours = f"lambda_{'query' if side == 'q' else 'key'}{n}"
                attention[ours] = {"vector": t[f"{h}.self_attn.lambda_{side}{n}"]}
        if c["model_type"] == "youtu":
            H, D, rank = c["num_attention_heads"], c["qk_nope_head_dim"], c["kv_lora_rank"]
            down = t[f"{h}.self_attn.kv_a_proj_with_mqa.weight"].T
            up = t[f"{h}.self_attn.kv_b_proj.weight"].T.reshape(rank, H, -1)
            attention |= {"latent": {"kernel": down[:, :rank]}, "rotary_key": {"kernel": down[:, rank:]}}
            attention |= {"key": {"kernel": up[..., :D].reshape(rank, -1)}}
            attention |= {"value": {"kernel": up[..., D:].reshape(rank, -1)}}
        if c["model_type"] == "nanochat":  # turned by the negative angle: the same with each half's sign changed
            D = c["hidden_size"] // c["num_attention_heads"]
            sign = jnp.where(jnp.arange(D) < D // 2, 1, -1)
            for name in ("query", "key"):
                kernel = attention[name]["kernel"]
                attention[name] = {"kernel": (kernel.reshape(-1, kernel.shape[1] // D, D) * sign).reshape(kernel.shape)}
        return params

    head = {} if c["tie_word_embeddings"] else {"head": {"kernel": t["lm_head.weight"].T}}
    final = {"final_norm": leaf("model.norm")} if "model.norm.weight" in t else {}
    return {
        "embedding": {"table": t["model.embed_tokens.weight"]},
        "blocks": {str(i): layer(i) for i in range(c["num_hidden_layers"])},
        **final,
        **head,
    }


LATENT = {
    "query_latent": "self_attn.q_a_proj",
    "query_latent_norm": "self_attn.q_a_layernorm",
    "query": "self_attn.q_b_proj",
    "latent_norm": "self_attn.kv_a_layernorm",
    "output": "self_attn.o_proj",
}
FAMILIES: dict[str, tuple[Any, dict[str, str]]] = {
    "qwen2": (qwen2, QKVO | MLP | PRE),
    "olmo2": (olmo2, QKVO | QK | MLP | OUTPUT),
    "gemma": (gemma, QKVO | MLP | PRE),
    "gemma2": (gemma, QKVO | MLP | SANDWICH),
    "gemma3_text": (gemma, QKVO | QK | MLP | SANDWICH),
    "cohere": (cohere, QKVO | QK | MLP | {"norm": "input_layernorm"}),
    "granite": (granite, QKVO | MLP | PRE),
    "diffllama": (diffllama, QKVO | MLP | PRE),
    "youtu": (youtu, LATENT | MLP | PRE),
    "nanochat": (nanochat, QKVO | {"up": "mlp.fc1", "down": "mlp.fc2"}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_tokens_are_hugging_faces(family: str, shared: Path) -> None:
    """In a plain forward pass, and greedily from a cache of the variant's own kind."""
    folder = shared / "oracles" / family
    if not folder.is_dir():
        pytest.skip(f"needs the oracle {folder}")
    configure, names = FAMILIES[family]
    c = json.loads((folder / "config.json").read_text())
    model = GPT(configure(c))
    params = {"params": parameters(c, load_file(folder / "model.safetensors"), names)}
    ids, wanted, generated = (np.load(folder / f"{name}.npy") for name in ("input_ids", "logits", "generated"))
    logits = jax.jit(model.apply)(params, jnp.asarray(ids, jnp.int32))
    np.testing.assert_allclose(logits, wanted, atol=1e-4)
    new = generated.shape[1] - ids.shape[1]
    ours = generate(model, params, ids, key=jax.random.key(0), max_new_tokens=new, sampler=Greedy())
    np.testing.assert_array_equal(ours.tokens, generated[:, ids.shape[1] :])
