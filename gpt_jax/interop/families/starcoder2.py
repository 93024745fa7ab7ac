"""StarCoder2, StableLM and Nemotron: Llama-like, with LayerNorm."""

from __future__ import annotations

from typing import Any

from gpt_jax import config as cfg
from gpt_jax.interop.families.classic import classic_settings, layer_norm, mlp
from gpt_jax.interop.families.common import DEFAULTS as LLAMAS
from gpt_jax.interop.families.common import MLP, PRE, QKVO, STEM, attention, decoder, gated, require_type
from gpt_jax.interop.families.gpt_neox import explicit_fraction
from gpt_jax.interop.family import Family, TensorRow, by_name
from gpt_jax.interop.settings import Settings

NAMES = STEM | QKVO | MLP | PRE
STARCODER2_NAMES = NAMES | {
    "blocks/{}/mlp/up": "model.layers.{}.mlp.c_fc",
    "blocks/{}/mlp/down": "model.layers.{}.mlp.c_proj",
}
COMMON = {key: value for key, value in LLAMAS.items() if key not in ("attention_bias", "rms_norm_eps")}
# Keys of older files, which `transformers` ignores.
STARCODER2_UNUSED = dict.fromkeys(
    (
        "activation_function",
        "layer_norm_epsilon",
        "scale_attn_weights",
        "attention_softmax_in_fp32",
        "scale_attention_softmax_in_fp32",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
    )
)
STARCODER2_DEFAULTS: dict[str, Any] = (
    COMMON
    | STARCODER2_UNUSED
    | {
        "vocab_size": 49152,
        "hidden_size": 3072,
        "intermediate_size": 12288,
        "num_hidden_layers": 30,
        "num_attention_heads": 24,
        "num_key_value_heads": 2,
        "head_dim": None,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 4096,
        "norm_epsilon": 1e-5,
        "sliding_window": None,
        "use_bias": True,
        "norm_type": "layer_norm",  # in older files, like mlp_type
        "mlp_type": "default",
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
        "tie_word_embeddings": True,
    }
)
STABLELM_DEFAULTS: dict[str, Any] = COMMON | {
    "vocab_size": 50304,
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "layer_norm_eps": 1e-5,
    "partial_rotary_factor": 0.25,
    "use_qkv_bias": False,
    "qk_layernorm": False,
    "use_parallel_residual": False,
    "hidden_dropout": 0.0,  # applied to MLPs only, which gpt_jax cannot do
}
NEMOTRON_DEFAULTS: dict[str, Any] = COMMON | {
    "vocab_size": 256000,
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "num_attention_heads": 48,
    "head_dim": None,
    "hidden_act": "relu2",
    "max_position_embeddings": 4096,
    "norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "attention_bias": False,
    "mlp_bias": False,
}
UNWRITTEN = ("rope_scaling", "rope_theta", "partial_rotary_factor", "norm_type", "mlp_type", *STARCODER2_UNUSED)


def read_starcoder2(s: Settings) -> cfg.ModelConfig:
    s.expect("norm_type", ("layer_norm", None), "such norm in StarCoder2")
    s.expect("mlp_type", ("default", None), "such MLP in StarCoder2")
    norm, W, bias = layer_norm(s, "norm_epsilon"), s.optional_integer("sliding_window"), s.flag("use_bias")
    mask = cfg.Causal() if W is None else cfg.Window(W)
    mixer = attention(s, mask=mask, bias=cfg.PROJECTIONS if bias else ())
    block = cfg.BlockConfig(mixer, mlp(s, "hidden_act", bias), norm, dropout=s.number("residual_dropout"))
    return decoder(s, block, norm, cfg.Embedding(dropout=s.number("embedding_dropout")))


def write_starcoder2(model: cfg.ModelConfig) -> dict[str, Any]:
    return _settings(model, STARCODER2_DEFAULTS, use_bias=require_type(model.blocks[0].mlp, cfg.Mlp).bias)


def starcoder2_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    return by_name(model, STARCODER2_NAMES)


def read_stablelm(s: Settings) -> cfg.ModelConfig:
    norm = layer_norm(s, "layer_norm_eps")
    qk_norm = layer_norm(s, "layer_norm_eps", bias=False)
    score = cfg.Score(qk_norm=qk_norm, qk_norm_over="heads") if s.flag("qk_layernorm") else cfg.Score()
    bias: tuple[cfg.Projection, ...] = ("query", "key", "value") if s.flag("use_qkv_bias") else ()
    residual: Any = "parallel" if s.flag("use_parallel_residual") else "pre"
    return decoder(
        s, cfg.BlockConfig(attention(s, partial=True, score=score, bias=bias), gated(s), norm, residual), norm
    )


def write_stablelm(model: cfg.ModelConfig) -> dict[str, Any]:
    block = model.blocks[0]
    mixer = require_type(block.attention, cfg.Attention)
    return _settings(
        model,
        STABLELM_DEFAULTS,
        use_qkv_bias="query" in mixer.bias,
        qk_layernorm=mixer.score.qk_norm is not None,
        use_parallel_residual=block.residual == "parallel",
        hidden_dropout=0.0,
    )


def stablelm_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    """The query and key norm of each head is a separate tensor."""
    block = model.blocks[0]
    mixer = require_type(block.attention, cfg.Attention)
    names = NAMES | ({"blocks/{}/norm": PRE["blocks/{}/attention_norm"]} if block.residual == "parallel" else {})
    if mixer.score.qk_norm is None:
        return by_name(model, names)

    def stacked(layer: int, ours: str, theirs: str, heads: int) -> TensorRow:
        name = f"model.layers.{layer}.self_attn.{theirs}_layernorm.norms.{{}}.weight"
        return TensorRow(name, (f"blocks/{layer}/attention/{ours}_norm/scale",), lambda x: (x,), lambda x: x, heads)

    parts = (("query", "q", mixer.heads), ("key", "k", mixer.resolved_kv_heads))
    return by_name(model, names, [stacked(layer, *part) for layer in range(model.layers) for part in parts])


def read_nemotron(s: Settings) -> cfg.ModelConfig:
    norm = layer_norm(s, "norm_eps", unit_offset=True)
    block = cfg.BlockConfig(attention(s, partial=True), mlp(s, "hidden_act", s.flag("mlp_bias")), norm)
    return decoder(s, block, norm)


def write_nemotron(model: cfg.ModelConfig) -> dict[str, Any]:
    return _settings(model, NEMOTRON_DEFAULTS)


def nemotron_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    return by_name(model, NAMES)


def _settings(model: cfg.ModelConfig, defaults: dict[str, Any], **own: Any) -> dict[str, Any]:
    values = classic_settings(model, {key: value for key, value in defaults.items() if key not in UNWRITTEN}, **own)
    if "partial_rotary_factor" in defaults:
        values["rope_parameters"] = explicit_fraction(values["rope_parameters"])
    return values


FAMILIES = [
    Family(
        "starcoder2",
        "Starcoder2ForCausalLM",
        STARCODER2_DEFAULTS,
        read_starcoder2,
        write_starcoder2,
        starcoder2_rows,
    ),
    Family(
        "stablelm",
        "StableLmForCausalLM",
        STABLELM_DEFAULTS,
        read_stablelm,
        write_stablelm,
        stablelm_rows,
    ),
    Family("nemotron", "NemotronForCausalLM", NEMOTRON_DEFAULTS, read_nemotron, write_nemotron, nemotron_rows),
]
