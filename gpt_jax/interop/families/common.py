"""The common part of all families: settings with the same spelling, and the names of tensors in Llama-like models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from gpt_jax import config as cfg
from gpt_jax.config.errors import ConfigError
from gpt_jax.config.foreign import quoted
from gpt_jax.interop.rope import ROPE_KEYS, read_rope, write_rope
from gpt_jax.interop.settings import Settings

T = TypeVar("T")
SLIDING, FULL = "sliding_attention", "full_attention"

# name of an activation in config.json → ours; and ours → the name to write
ACTIVATIONS: dict[str, cfg.Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
    "xielu": "xielu",
}
ACTIVATION_NAMES = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())} | {"gelu_tanh": "gelu_pytorch_tanh"}

# The defaults of `transformers` for Llama-like models; families add their own.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": None,
    **ROPE_KEYS,
}

# our modules → the family's modules
STEM = {"embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
QKVO = {
    "blocks/{}/attention/query": "model.layers.{}.self_attn.q_proj",
    "blocks/{}/attention/key": "model.layers.{}.self_attn.k_proj",
    "blocks/{}/attention/value": "model.layers.{}.self_attn.v_proj",
    "blocks/{}/attention/output": "model.layers.{}.self_attn.o_proj",
}
MLP = {
    "blocks/{}/mlp/gate": "model.layers.{}.mlp.gate_proj",
    "blocks/{}/mlp/up": "model.layers.{}.mlp.up_proj",
    "blocks/{}/mlp/down": "model.layers.{}.mlp.down_proj",
}
PRE = {
    "blocks/{}/attention_norm": "model.layers.{}.input_layernorm",
    "blocks/{}/mlp_norm": "model.layers.{}.post_attention_layernorm",
}
QK = {
    "blocks/{}/attention/query_norm": "model.layers.{}.self_attn.q_norm",
    "blocks/{}/attention/key_norm": "model.layers.{}.self_attn.k_norm",
}
OUTPUT = {
    "blocks/{}/attention_output_norm": "model.layers.{}.post_attention_layernorm",
    "blocks/{}/mlp_output_norm": "model.layers.{}.post_feedforward_layernorm",
}
LLAMA = STEM | QKVO | MLP | PRE


def activation(s: Settings, key: str = "hidden_act") -> cfg.Activation:
    """Returns our name of the activation under `key`.

    Raises:
      ConfigError: gpt_jax does not have it.
    """
    return ACTIVATIONS[s.expect(key, ACTIVATIONS, f"such activation; there are {', '.join(ACTIVATIONS)}")]


def head_width(s: Settings) -> int:
    """Returns D: `head_dim`, or C / H if the family or the file has none.

    Raises:
      ConfigError: C is not a multiple of H.
    """
    if s.has_default("head_dim") and s["head_dim"] is not None:
        return s.integer("head_dim")
    C, H = s.integer("hidden_size"), s.integer("num_attention_heads")
    if C % H:
        raise ConfigError(f'config.json has "hidden_size": {C}, which is not a multiple of "num_attention_heads": {H}')
    return C // H


def layer_types(s: Settings, default: list[str]) -> list[str]:
    """Returns the kind of attention of each layer, which is `default` if the file does not give it.

    Raises:
      ConfigError: an unknown kind, or not one per layer.
    """
    kinds = default if s["layer_types"] is None else s.listed("layer_types")
    if len(kinds) != s.integer("num_hidden_layers"):
        raise ConfigError(f'config.json has {len(kinds)} "layer_types" for {s["num_hidden_layers"]} layers')
    for kind in kinds:
        if kind not in (SLIDING, FULL):
            raise ConfigError(
                f'config.json has "layer_types" of {quoted(kind)}, and this family has {SLIDING} and {FULL}'
            )
    return kinds


def window(s: Settings, kind: str = SLIDING) -> cfg.MaskConfig:
    """Returns the mask of layers of `kind`.

    Raises:
      ConfigError: the layers have a window and the file has no "sliding_window".
    """
    if kind == FULL:
        return cfg.Causal()
    if s["sliding_window"] is None:
        raise ConfigError(f'config.json has layers of {SLIDING} and lacks "sliding_window"')
    return cfg.Window(s.integer("sliding_window"))


def attention(s: Settings, kind: Any = cfg.Attention, *, partial: bool = False, **changes: Any) -> Any:
    """Returns attention in the spelling of most families, with `changes`.

    `attention_bias` gives all four projections a bias; `partial` is that of `read_rope`.
    """
    D = head_width(s)
    H = s.integer("num_attention_heads")
    K = s.optional_integer("num_key_value_heads")
    if "position" not in changes:
        changes["position"] = read_rope(s, D, partial=partial)
    if "bias" not in changes:
        changes["bias"] = cfg.PROJECTIONS if s.has_default("attention_bias") and s.flag("attention_bias") else ()
    dropout = s.number("attention_dropout") if s.has_default("attention_dropout") else 0.0
    return kind(H, H if K is None else K, D, dropout=dropout, **changes)


def gated(s: Settings, key: str = "hidden_act") -> cfg.GatedMlp:
    """Returns a gated MLP, with biases if the family has `mlp_bias` and it is true."""
    bias = s.has_default("mlp_bias") and s.flag("mlp_bias")
    return cfg.GatedMlp(s.integer("intermediate_size"), activation(s, key), bias)


def decoder(
    s: Settings,
    blocks: cfg.BlockConfig | list[cfg.BlockConfig],
    final_norm: cfg.NormConfig | None,
    embedding: cfg.Embedding | None = None,
    **head: Any,
) -> cfg.ModelConfig:
    """Returns a model with sizes in the spelling of most families; a single block is repeated for every layer."""
    return cfg.ModelConfig(
        s.integer("vocab_size"),
        s.integer("max_position_embeddings"),
        s.integer("hidden_size"),
        tuple(blocks) if isinstance(blocks, list) else (blocks,) * s.integer("num_hidden_layers"),
        cfg.Embedding() if embedding is None else embedding,
        final_norm,
        cfg.Head(tied=s.flag("tie_word_embeddings"), **head),
    )


def rms(s: Settings, **changes: Any) -> cfg.RmsNorm:
    return cfg.RmsNorm(s.number("rms_norm_eps"), **changes)


def require_divisible_width(model: cfg.ModelConfig) -> None:
    """Raises ConfigError if C is not a multiple of H.

    `transformers` requires that in some families, even if D does not follow from C and H.
    """
    heads = getattr(model.attentions[0], "heads", 1)
    if model.width % heads:
        raise ConfigError(f"a width ({model.width}) that is a multiple of the heads ({heads})")


def shortest_decimal(value: float, read: Callable[[float], float], wanted: float) -> float:
    """Returns the shortest decimal near `value` from which `read` gives exactly `wanted`."""
    rounded = [float(f"{value:.{digits}g}") for digits in range(1, 18)]
    return next((number for number in rounded if read(number) == wanted), value)


def require_type(value: Any, kind: type[T]) -> T:
    """Returns `value`, which must be of type `kind` for the family that is being written.

    Raises:
      ConfigError: it has another type. The message completes "the family lacks …".
    """
    if not isinstance(value, kind):
        raise ConfigError(f"a {kind.__name__} where the model has {type(value).__name__}")
    return value


def first_attention(model: cfg.ModelConfig) -> cfg.Attention:
    """Returns the attention of the first layer.

    Raises:
      ConfigError: it is not of type `Attention`.
    """
    return require_type(model.attentions[0], cfg.Attention)


def common_settings(model: cfg.ModelConfig, defaults: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    """Returns settings in the spelling of most families, limited to the keys in `defaults`, updated with `own`.

    Anything that the family cannot represent is left out; `choose_family` reads the settings back and compares.
    """
    block = model.blocks[0]
    attention = first_attention(model)
    mlp: Any = require_type(block.mlp, cfg.MlpConfig)
    masks = [getattr(other, "mask", None) for other in model.attentions]
    windows = [mask.size for mask in masks if isinstance(mask, cfg.Window)]
    norm = model.final_norm if block.norm is None else block.norm
    values: dict[str, Any] = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "intermediate_size": mlp.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.resolved_kv_heads,
        "head_dim": attention.resolved_head_width(model.width),
        "hidden_act": ACTIVATION_NAMES[mlp.activation],
        "hidden_activation": ACTIVATION_NAMES[mlp.activation],
        "max_position_embeddings": model.context_length,
        "rms_norm_eps": getattr(norm, "eps", None),
        "layer_norm_eps": getattr(norm, "eps", None),
        "tie_word_embeddings": model.head.tied,
        "attention_bias": "query" in attention.bias,
        "attention_dropout": attention.dropout,
        "mlp_bias": mlp.bias,
        # With `layer_types`, transformers needs a window even if no layer uses it.
        "sliding_window": windows[0] if windows else model.context_length if "layer_types" in defaults else None,
        "layer_types": [SLIDING if isinstance(mask, cfg.Window) else FULL for mask in masks],
        "rope_parameters": rope_settings(model),
    } | own
    return {key: value for key, value in values.items() if key in defaults}


def rope_settings(model: cfg.ModelConfig, nested: bool = False) -> dict[str, Any]:
    """Returns the RoPE settings of the first layer that has RoPE; with `nested`, one group per kind of layer."""
    groups: dict[str, Any] = {}
    for attention in model.attentions:
        position = getattr(attention, "position", None)
        if isinstance(position, cfg.Rope):
            kind = SLIDING if isinstance(getattr(attention, "mask", None), cfg.Window) else FULL
            groups.setdefault(kind, write_rope(position))
    if nested:
        return groups
    return next(iter(groups.values()), {"rope_type": "default", "rope_theta": 10_000.0})
