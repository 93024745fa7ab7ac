"""RoPE: between the settings of config.json and `gpt_jax.config.Rope`.

Since transformers 5, config.json has `rope_parameters`, one group of settings or one per kind of layer; before, it had
`rope_theta` and `rope_scaling`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gpt_jax import config as cfg
from gpt_jax.config.errors import ConfigError
from gpt_jax.config.foreign import quoted, shown
from gpt_jax.interop.settings import TINY, Settings, checked_number, checked_whole

# The keys of every family with RoPE; a family may override the default of `rope_theta`.
ROPE_KEYS: dict[str, Any] = {"rope_parameters": None, "rope_scaling": None, "rope_theta": 10_000.0}

# rope_type → the keys that its group may have, in addition to COMMON
OPTIONS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "yarn": frozenset(
        "factor original_max_position_embeddings attention_factor beta_fast beta_slow mscale mscale_all_dim"
        " truncate".split()
    ),
    "llama3": frozenset("factor original_max_position_embeddings low_freq_factor high_freq_factor".split()),
    "longrope": frozenset("factor original_max_position_embeddings attention_factor short_factor long_factor".split()),
}
COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
# Keys that may be left over in any group from other types or older versions, and are ignored there.
LEFT_OVER = {"original_max_position_embeddings", "max_position_embeddings", "mrope_section"}


def rope_group(s: Settings, kind: str | None = None) -> dict[str, Any]:
    """Returns the settings of RoPE for layers of `kind` ("full_attention" …), in any spelling of config.json.

    The result always has `rope_type` and `rope_theta`, and `partial_rotary_factor` if the file or the family has one.

    Raises:
      ConfigError: the settings are no group, or have no group for this kind of layer.
    """
    group: Mapping[str, Any] = s.group("rope_scaling") or s.group("rope_parameters")
    if kind is not None and isinstance(group.get(kind), Mapping):
        group = group[kind]
    elif any(isinstance(value, Mapping) for value in group.values()):
        raise ConfigError(
            f'config.json has "rope_parameters" for {shown(sorted(group))}, and none for {kind or "all layers"}'
        )
    found = {key: value for key, value in group.items() if value is not None and key != "type"}
    kind_of_rope = group["rope_type"] if "rope_type" in group else group["type"] if "type" in group else "default"
    found["rope_type"] = "longrope" if kind_of_rope == "su" else kind_of_rope
    for key in ("rope_theta", "partial_rotary_factor"):
        if key not in found and (key in s or s.has_default(key)) and s[key] is not None:
            found[key] = s[key]
    return found


def read_rope(
    s: Settings,
    head_width: int,
    kind: str | None = None,
    *,
    interleaved: bool = False,
    partial: bool = False,
    theta: float | None = None,
    original: int | None = None,
    extra: frozenset[str] = frozenset(),
) -> cfg.Rope:
    """Reads the RoPE of heads of `head_width`.

    Args:
      s: the settings.
      head_width: D.
      kind: the kind of layer, if the family has RoPE settings for each.
      interleaved: whether the family rotates neighbouring pairs instead of halves.
      partial: whether the family can rotate a part of each head.
      theta: replaces the group's `rope_theta`.
      original: replaces the group's `original_max_position_embeddings`.
      extra: keys of the group that the family reads itself.

    Raises:
      ConfigError: an unknown type or key, a missing value, or a partial rotation that the family cannot do.
    """
    if head_width < 1:
        raise ConfigError('config.json has a "hidden_size" below its "num_attention_heads": restore the file')
    group = rope_group(s, kind)
    name = group["rope_type"]
    if not isinstance(name, str) or name not in OPTIONS:
        raise ConfigError(f"config.json has the rope_type {quoted(name)}, and gpt_jax reads only {', '.join(OPTIONS)}")
    for key in group:
        if key not in COMMON | OPTIONS[name] | LEFT_OVER | extra:
            raise ConfigError(f'config.json has an unknown key "{key}" for RoPE of type "{name}"')
    key = "partial_rotary_factor"
    share = checked_number(key, group[key], 0, 1) if key in group else 1.0
    rotated = int(head_width * share)
    if rotated % 2 or (share != 1.0 and not partial):
        raise ConfigError(
            f'config.json has "partial_rotary_factor": {share}, with heads of width {head_width}: this family rotates '
            + ("an even number of elements" if partial else "whole heads")
        )
    theta = checked_number("rope_theta", group["rope_theta"], TINY) if theta is None else theta
    if original is not None:
        group["original_max_position_embeddings"] = original
    scaling = _read_scaling(group, s.integer("max_position_embeddings"))
    return cfg.Rope(theta, rope_fraction(rotated, head_width), interleaved, scaling)


def per_kind(s: Settings, local_theta: float) -> Settings:
    """Returns the settings with one RoPE group per kind of layer.

    In older files, `rope_theta` and `rope_scaling` apply to full attention only, and layers with a window use
    `local_theta`.

    Raises:
      ConfigError: the file has one group for all layers.
    """
    groups = s.group("rope_parameters")
    for key, value in groups.items():
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(
                f'config.json has "rope_parameters" with "{key}", and this family needs one group per kind of layer'
            )
    thetas = {"full_attention": s["rope_theta"], "sliding_attention": local_theta}
    found = {kind: {"rope_theta": thetas[kind], **(groups.get(kind) or {})} for kind in thetas}
    found["full_attention"] |= s.group("rope_scaling")
    return s.replaced(rope_parameters=found, rope_scaling=None)


def rope_fraction(rotated: int, width: int) -> float:
    """Returns the smallest float f near rotated / width for which int(width * f) is `rotated`."""
    share = rotated / width
    while int(width * share) < rotated:
        share = math.nextafter(share, 1.0)
    return share


def _read_scaling(group: Mapping[str, Any], length: int) -> cfg.RopeScaling | None:
    """Reads the scaling of RoPE; `length` is the context length, the default of a missing original length."""

    def number(key: str) -> float:
        if key not in group:
            raise ConfigError(f'config.json has RoPE of type "{group["rope_type"]}" without its "{key}"')
        return checked_number(key, group[key])

    def optional(key: str) -> float | None:
        return checked_number(key, group[key]) if key in group and group[key] else None

    key = "original_max_position_embeddings"
    original = checked_whole(key, group[key], 1) if key in group else length
    match group["rope_type"]:
        case "linear":
            return cfg.LinearScaling(number("factor"))
        case "dynamic":
            return cfg.DynamicNtk(number("factor"), length)
        case "llama3":
            return cfg.Llama3Scaling(number("factor"), number("low_freq_factor"), number("high_freq_factor"), original)
        case "yarn":
            given, scale, scale_all = (optional(name) for name in ("attention_factor", "mscale", "mscale_all_dim"))
            both = given is None and scale is not None and scale_all is not None
            return cfg.Yarn(
                optional("factor") or length / original,
                original,
                optional("beta_fast") or 32.0,
                optional("beta_slow") or 1.0,
                given,
                scale if both else None,
                scale_all if both else None,
                bool(group["truncate"]) if "truncate" in group else True,
            )
        case "longrope":
            if not all(f"{name}_factor" in group for name in ("short", "long")):
                raise ConfigError('config.json has a "rope_type" of longrope without "short_factor" and "long_factor"')
            short, long = (_factors(group, f"{name}_factor") for name in ("short", "long"))
            factor, given = optional("factor") or length / original, optional("attention_factor")
            if given is None and factor <= 1:
                given = 1.0
            return cfg.LongRope(short, long, original, factor if given is None else None, given)
    return None


def _factors(group: Mapping[str, Any], key: str) -> tuple[float, ...]:
    if not isinstance(group[key], list):
        raise ConfigError(f'config.json has "{key}": {shown(group[key])}, which must be a list of numbers')
    return tuple(checked_number(key, each, TINY) for each in group[key])


def write_rope(rope: cfg.Rope) -> dict[str, Any]:
    """Returns `rope` as a group of settings."""
    group: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
    if rope.fraction != 1.0:
        group["partial_rotary_factor"] = rope.fraction
    match rope.scaling:
        case cfg.LinearScaling(factor):
            group |= {"rope_type": "linear", "factor": factor}
        case cfg.DynamicNtk(factor):
            group |= {"rope_type": "dynamic", "factor": factor}
        case cfg.Llama3Scaling(factor, low, high, original):
            group |= {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high}
            group |= {"original_max_position_embeddings": original}
        case cfg.Yarn() as yarn:
            group |= {"rope_type": "yarn", "factor": yarn.factor, "beta_fast": yarn.beta_fast}
            group |= {"beta_slow": yarn.beta_slow, "truncate": yarn.truncate}
            group |= {"original_max_position_embeddings": yarn.original_length}
            for key in ("attention_factor", "mscale", "mscale_all_dim"):
                if getattr(yarn, key) is not None:
                    group[key] = getattr(yarn, key)
        case cfg.LongRope() as long:
            group |= {"rope_type": "longrope", "short_factor": list(long.short), "long_factor": list(long.long)}
            group |= {"original_max_position_embeddings": long.original_length}
            if long.attention_factor is not None:
                group["attention_factor"] = long.attention_factor
            else:
                group["factor"] = long.factor
    return group
