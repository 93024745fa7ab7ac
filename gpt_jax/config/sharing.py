"""What the layers of a stack take from layers below them: keys and values, and the values of the first layer."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_jax.config.attention import Attention, AttentionConfig
from gpt_jax.config.checks import require
from gpt_jax.config.errors import ConfigError
from gpt_jax.config.values import Projected, Shared


def value_source(attentions: Sequence[AttentionConfig]) -> int | None:
    """The layer whose values the value residuals mix in: the lowest that has a value residual; None: there is none."""
    return next((layer for layer, attention in enumerate(attentions) if _has_residual(attention)), None)


def is_kv_shared(attentions: Sequence[AttentionConfig]) -> bool:
    """Whether some layer takes its keys and values from a layer below."""
    return any(_takes_keys(attention) for attention in attentions)


def check_shared(attentions: Sequence[AttentionConfig], width: int) -> None:
    """Raises ConfigError where a layer of a model of width C cannot use what it takes from a layer below."""
    for layer, attention in enumerate(attentions):
        if isinstance(attention, Attention) and _takes_keys(attention):
            _check_keys(attentions, layer, attention, width)
        if isinstance(attention, Attention) and _has_residual(attention):
            _check_values(attentions, layer, attention, width)


def _takes_keys(attention: AttentionConfig) -> bool:
    return isinstance(attention, Attention) and isinstance(attention.value, Shared)


def _has_residual(attention: AttentionConfig) -> bool:
    values = attention.value if isinstance(attention, Attention) else None
    return isinstance(values, Projected) and values.residual is not None


def _check_keys(attentions: Sequence[AttentionConfig], layer: int, attention: Attention, C: int) -> None:
    source = layer - 1
    while source > 0 and _takes_keys(attentions[source]):
        source -= 1
    other = attentions[source] if source >= 0 else None
    if not isinstance(other, Attention) or _takes_keys(other):
        raise ConfigError(
            f'layer {layer} has attention.value of type "Shared", and no layer below it has keys and values of its'
            " own: give one Projected()"
        )
    for name, mine, theirs in [
        ("kv_heads", attention.resolved_kv_heads, other.resolved_kv_heads),
        ("head_width", attention.resolved_head_width(C), other.resolved_head_width(C)),
        ("value.width", attention.resolved_value_width(C), other.resolved_value_width(C)),
        ("mask", attention.mask, other.mask),
        ("position", attention.position, other.position),
    ]:
        require(
            mine == theirs,
            f"layer {layer} shares the keys and values of layer {source}, so its attention.{name} must be {theirs} too,"
            f" not {mine}",
        )
    require(
        isinstance(other.value, Projected) and not other.forget_gate,
        f"layer {layer} shares the keys and values of layer {source}, which must project both and have no forget gate",
    )


def _check_values(attentions: Sequence[AttentionConfig], layer: int, attention: Attention, C: int) -> None:
    first = value_source(attentions)
    assert first is not None
    other = attentions[first]
    assert isinstance(other, Attention)
    shapes = [(a.resolved_kv_heads, a.resolved_value_width(C)) for a in (attention, other)]
    require(
        shapes[0] == shapes[1],
        f"layer {layer} mixes in the values of layer {first}, so both need the same kv_heads and value.width,"
        f" not {shapes[0]} and {shapes[1]}",
    )
