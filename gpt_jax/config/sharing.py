"""What layers of a stack take from those below them: keys and values, and the first layer's values."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_jax.config.attention import Attention, AttentionConfig
from gpt_jax.config.checks import require
from gpt_jax.config.errors import ConfigError


def value_source(attentions: Sequence[AttentionConfig]) -> int | None:
    """The layer whose values the value residuals mix in: the first that has one."""
    own = [i for i, a in enumerate(attentions) if isinstance(a, Attention) and a.value_residual is not None]
    return own[0] if own else None


def is_kv_shared(attentions: Sequence[AttentionConfig]) -> bool:
    """Whether some layer takes its keys and values from one below."""
    return any(isinstance(a, Attention) and a.shared_kv for a in attentions)


def check_shared(attentions: Sequence[AttentionConfig], width: int) -> None:
    """Refuses, in a model of width C, what a layer can't take from one below it."""
    for layer, attention in enumerate(attentions):
        if isinstance(attention, Attention) and attention.shared_kv:
            _check_keys(attentions, layer, attention, width)
        if isinstance(attention, Attention) and attention.value_residual is not None:
            _check_values(attentions, layer, attention, width)


def _check_keys(attentions: Sequence[AttentionConfig], layer: int, attention: Attention, C: int) -> None:
    source = layer - 1
    while source > 0 and is_kv_shared(attentions[source : source + 1]):
        source -= 1
    other = attentions[source] if source >= 0 else None
    if not isinstance(other, Attention) or other.shared_kv:
        raise ConfigError(
            f"layer {layer} has attention.shared_kv, and no layer below it with keys and values of its own"
        )
    for name, mine, theirs in [
        ("kv_heads", attention.resolved_kv_heads, other.resolved_kv_heads),
        ("head_width", attention.resolved_head_width(C), other.resolved_head_width(C)),
        ("value_width", attention.resolved_value_width(C), other.resolved_value_width(C)),
        ("mask", attention.mask, other.mask),
        ("position", attention.position, other.position),
    ]:
        require(
            mine == theirs,
            f"layer {layer} shares the keys and values of layer {source}, so its attention.{name} must be that"
            f" one's, {theirs}, not {mine}",
        )
    require(not other.forget_gate and not other.value_from_key, f"layer {source} has keys that can't be shared")


def _check_values(attentions: Sequence[AttentionConfig], layer: int, attention: Attention, C: int) -> None:
    first = value_source(attentions)
    assert first is not None
    other = attentions[first]
    assert isinstance(other, Attention)
    shapes = [(a.resolved_kv_heads, a.resolved_value_width(C)) for a in (attention, other)]
    require(
        shapes[0] == shapes[1],
        f"layer {layer} mixes in the values of layer {first}, so both need the same kv_heads and value_width,"
        f" not {shapes[0]} and {shapes[1]}",
    )
