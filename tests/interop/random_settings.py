"""Random settings of the families of Llama's make: other sizes, head counts, kinds of RoPE, and every switch."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

SLIDING, FULL = "sliding_attention", "full_attention"
Json = dict[str, Any]


class Draw:
    """Settings drawn from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def flag(self) -> bool:
        return self.random.random() < 0.5

    def one(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def sizes(
        self, heads: tuple[int, ...] = (1, 2, 3, 4, 6), even_keys: bool = False, head_dim: bool | None = None
    ) -> Json:
        """`head_dim`: with a width of heads that doesn't follow from the others; None: either way."""
        H = self.one(*heads)
        K = self.one(*(k for k in range(1, H + 1) if H % k == 0 and (not even_keys or k % 2 == 0)))
        sizes = {
            "vocab_size": self.one(33, 64, 101),
            "hidden_size": H * self.one(4, 6, 8),
            "intermediate_size": self.one(16, 27),
            "num_hidden_layers": self.random.randint(1, 5),
            "num_attention_heads": H,
            "num_key_value_heads": K,
            "max_position_embeddings": self.one(32, 40),
            "tie_word_embeddings": self.flag(),
        }
        if self.flag() if head_dim is None else head_dim:
            sizes["head_dim"] = self.one(4, 6, 8)
        return sizes

    def rope(self, sizes: Json, width: int | None = None, types: str = "default linear llama3 yarn longrope") -> Json:
        D = width_of(sizes) if width is None else width
        original = self.one(8, 16)
        group: Json = {"rope_type": self.one(*types.split()), "rope_theta": self.one(50.0, 1000.0, 10000)}
        match group["rope_type"]:
            case "linear":
                group["factor"] = self.one(2, 3.5)
            case "llama3":
                group |= {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
                group["original_max_position_embeddings"] = original
            case "yarn":
                group |= {"factor": self.one(2.0, 8.0), "original_max_position_embeddings": original}
                group |= self.one({}, {"beta_fast": 4.0, "beta_slow": 0.5}, {"truncate": False})
                group |= self.one({}, {"attention_factor": 1.2}, {"mscale": 0.8, "mscale_all_dim": 1.1})
            case "longrope":
                group["short_factor"] = [1.0 + 0.1 * i for i in range(D // 2)]
                group["long_factor"] = [1.0 + 0.5 * i for i in range(D // 2)]
                group["original_max_position_embeddings"] = self.one(12, 30)
                group |= self.one({"factor": 4.0}, {"attention_factor": 1.3}, {})
        return group

    def with_rope(self, sizes: Json, **more: Any) -> Json:
        return sizes | {"rope_parameters": self.rope(sizes)} | more

    def both_ropes(self, sizes: Json) -> Json:
        return {"rope_parameters": {SLIDING: self.rope(sizes), FULL: self.rope(sizes)}} if self.flag() else {}

    def windows(self, sizes: Json) -> Json:
        kinds = [self.one(SLIDING, FULL) for _ in range(sizes["num_hidden_layers"])]
        return {"sliding_window": self.one(3, 7, 30)} | ({"layer_types": kinds} if self.flag() else {})

    def biases(self, *names: str) -> Json:
        return {f"{name}_bias": self.flag() for name in names}


def width_of(sizes: Json) -> int:
    return sizes["head_dim"] if "head_dim" in sizes else sizes["hidden_size"] // sizes["num_attention_heads"]


def llama(d: Draw) -> Json:
    activation = d.one("silu", "gelu", "gelu_new", "relu", "relu2", "swish")
    return d.with_rope(d.sizes(), hidden_act=activation, rms_norm_eps=d.one(1e-6, 1e-3), **d.biases("attention", "mlp"))


def mistral(d: Draw) -> Json:
    return d.with_rope(d.sizes(), sliding_window=d.one(None, 3, 7))


def ministral(d: Draw) -> Json:
    sizes = d.sizes(head_dim=True)
    return d.with_rope(sizes, **d.windows(sizes))


def ministral3(d: Draw) -> Json:
    sizes = d.sizes(head_dim=True)
    group = d.rope(sizes, types="yarn llama3 default") | {"llama_4_scaling_beta": d.one(0.1, 0.5)}
    group.setdefault("original_max_position_embeddings", 9)
    return sizes | {"rope_parameters": group, "sliding_window": d.one(None, 4)}


def qwen2(d: Draw) -> Json:
    sizes = d.sizes()
    first = {"use_sliding_window": True, "max_window_layers": d.one(0, 1, 2)}
    return d.with_rope(sizes, **(first | d.windows(sizes) if d.flag() else {}))


def qwen3(d: Draw) -> Json:
    return (
        qwen2(d)
        | {"head_dim": d.one(6, 8), "rope_parameters": {"rope_type": "default", "rope_theta": 99}}
        | d.biases("attention")
    )


def smollm3(d: Draw) -> Json:
    sizes = d.sizes()
    settings = d.with_rope(
        sizes, no_rope_layer_interval=d.one(2, 3, 4), **d.biases("attention", "mlp"), **d.windows(sizes)
    )
    settings["use_sliding_window"] = d.flag()
    if d.flag():
        settings["no_rope_layers"] = [d.one(0, 1) for _ in range(sizes["num_hidden_layers"])]
    return settings


def granite(d: Draw) -> Json:
    multipliers = {
        "embedding_multiplier": d.one(1, 12.0),
        "logits_scaling": d.one(1, 8.0, 49.0, 1.3),
        "residual_multiplier": d.one(0.22, 1),
        "attention_multiplier": d.one(0.3, 0.0078125),
    }
    return d.with_rope(d.sizes(), **multipliers, **d.biases("attention", "mlp"))


def granite_swa(d: Draw) -> Json:
    settings = granite(d)
    settings |= d.windows(settings) | {"rope_parameters": d.rope(settings, types="default linear yarn llama3")}
    if d.flag():
        settings["layer_rope_theta"] = [d.one(0, 100.0, 1000.0) for _ in range(settings["num_hidden_layers"])]
    return settings


def helium(d: Draw) -> Json:
    sizes = d.sizes(head_dim=False)
    return d.with_rope(sizes | {"head_dim": width_of(sizes)}, **d.biases("attention", "mlp"))


def olmo(d: Draw) -> Json:
    return d.with_rope(d.sizes(), clip_qkv=d.one(None, 0.5), **d.biases("attention"))


def olmo2(d: Draw) -> Json:
    return d.with_rope(d.sizes(), **d.biases("attention"))


def olmo3(d: Draw) -> Json:
    sizes = d.sizes()
    return sizes | d.both_ropes(sizes) | d.windows(sizes) | d.biases("attention")


def exaone4(d: Draw) -> Json:
    sizes = d.sizes()
    if d.flag():
        return d.with_rope(sizes, sliding_window=None, layer_types=[FULL] * sizes["num_hidden_layers"])
    return d.with_rope(sizes, sliding_window_pattern=d.one(2, 4), **d.windows(sizes))


def glm(d: Draw) -> Json:
    sizes = d.sizes() | {"head_dim": 8}
    share = d.one(0.25, 0.5, 1.0)
    group = d.rope(sizes, int(8 * share)) | {"partial_rotary_factor": share}
    return sizes | {"rope_parameters": group} | d.biases("attention")


def seed_oss(d: Draw) -> Json:
    return d.with_rope(d.sizes(head_dim=True), **d.biases("attention", "attention_out", "mlp"))


def ernie4_5(d: Draw) -> Json:
    return d.with_rope(d.sizes(head_dim=True), **d.biases("use"))


def gemma(d: Draw) -> Json:
    activation = d.one("gelu", "gelu_pytorch_tanh", "silu")
    return d.with_rope(d.sizes(head_dim=True), hidden_act=activation, **d.biases("attention"))


def gemma2(d: Draw) -> Json:
    sizes = d.sizes(head_dim=True)
    softcaps = {"attn_logit_softcapping": d.one(None, 2.0), "final_logit_softcapping": d.one(None, 3.0)}
    scalar = {"query_pre_attn_scalar": d.one(4, 7, 8, 224)}
    return d.with_rope(sizes, **softcaps, **scalar, **d.windows(sizes), **d.biases("attention"))


def gemma3(d: Draw) -> Json:
    settings = {key: value for key, value in gemma2(d).items() if key != "rope_parameters"}
    return settings | d.both_ropes(settings)


def cohere(d: Draw) -> Json:
    return d.with_rope(d.sizes(), use_qk_norm=d.flag(), logit_scale=d.one(0.25, 1.0), **d.biases("attention"))


def cohere2(d: Draw) -> Json:
    sizes = d.sizes(head_dim=False)
    return d.with_rope(sizes, logit_scale=d.one(0.25, 1.0), **d.windows(sizes), **d.biases("attention"))


def hunyuan(d: Draw) -> Json:
    settings = d.with_rope(d.sizes(head_dim=True), **d.biases("attention"))
    stretched = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 1.0, "alpha": d.one(1000.0, 20)}
    return settings | ({"rope_parameters": stretched} if d.flag() else {})


def nanochat(d: Draw) -> Json:
    return d.with_rope(d.sizes(), final_logit_softcapping=d.one(None, 5.0), **d.biases("attention"))


def diffllama(d: Draw) -> Json:
    return d.with_rope(d.sizes((2, 4, 6), even_keys=True), **d.biases("attention"))


def latent(d: Draw) -> Json:
    sizes = d.sizes(head_dim=False)
    sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    P = d.one(2, 4, 6)
    ranks = {"kv_lora_rank": d.one(5, 8), "q_lora_rank": d.one(None, 7), "qk_nope_head_dim": d.one(3, 6)}
    widths = {
        "qk_rope_head_dim": P,
        "v_head_dim": d.one(3, 6),
        "rope_parameters": d.rope(sizes, P, "default yarn linear"),
    }
    return sizes | ranks | widths | d.biases("attention")


def youtu(d: Draw) -> Json:
    return latent(d) | {"rope_interleave": d.flag()}


def minicpm3(d: Draw) -> Json:
    depth = {"scale_emb": d.one(1, 12), "scale_depth": d.one(None, 1.4), "dim_model_base": d.one(None, 7)}
    return latent(d) | depth | {"v_head_dim": d.one(None, 5)} | d.biases("mlp")


SETTINGS: dict[str, Callable[[Draw], Json]] = {
    "llama": llama,
    "arcee": llama,
    "mistral": mistral,
    "ministral": ministral,
    "ministral3": ministral3,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "smollm3": smollm3,
    "granite": granite,
    "granite_swa": granite_swa,
    "helium": helium,
    "olmo": olmo,
    "olmo2": olmo2,
    "olmo3": olmo3,
    "exaone4": exaone4,
    "glm": glm,
    "glm4": glm,
    "seed_oss": seed_oss,
    "ernie4_5": ernie4_5,
    "apertus": olmo2,
    "gemma": gemma,
    "gemma2": gemma2,
    "vaultgemma": gemma2,
    "gemma3_text": gemma3,
    "cohere": cohere,
    "cohere2": cohere2,
    "hunyuan_v1_dense": hunyuan,
    "nanochat": nanochat,
    "diffllama": diffllama,
    "youtu": youtu,
    "minicpm3": minicpm3,
}
