"""Configurations written by earlier versions, in today's form.

A layer's attention used to be a set of flags: `shared_kv`, `value_from_key`, `value_width`, `value_residual`,
`value_embedding`, and a `gate` by name. Today `value` and `gate` are groups with a `type`, and the attention `Linear`
is `LinearAttention`. Files of runs are read through `upgraded`; command lines and configuration files are not, so there
is one spelling for what people write today.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt_jax.config.conversion import NONE_TAG, overlay, overlay_between

FLAGS = ("shared_kv", "value_from_key", "value_residual", "value_embedding")
GATES = {None: NONE_TAG, "elementwise": "ElementwiseGate", "headwise": "HeadwiseGate"}


def upgraded(values: Any) -> Any:
    """The plain nested form of a configuration, or of anything that contains some, in today's spelling. What is in
    today's spelling already is returned unchanged.
    """
    if isinstance(values, list):
        return [upgraded(item) for item in values]
    if not isinstance(values, Mapping):
        return values
    attention = values["attention"] if "attention" in values else None
    if isinstance(attention, Mapping) and "type" in attention:
        return _model(values, attention)
    return {key: upgraded(item) for key, item in values.items()}


def _model(values: Mapping[str, Any], attention: Mapping[str, Any]) -> dict[str, Any]:
    """A model's group. A letter holds only what it changes in the base's attention: it is written out, upgraded, and
    compared with the upgraded base, because a flag may have become the type of a group, which replaces the group whole.
    """
    old, new = {"attention": attention}, {"attention": _attention(attention)}
    letters = {}
    for letter, changes in (values["letters"] if "letters" in values else {}).items():
        letters[letter] = {key: change for key, change in changes.items() if key != "attention"}
        if "attention" in changes:
            whole = overlay(old, {"attention": changes["attention"]})
            letters[letter] |= overlay_between(new, {"attention": _attention(whole["attention"])})
    return {**values, **new} | ({"letters": letters} if "letters" in values else {})


def _attention(old: Mapping[str, Any]) -> dict[str, Any]:
    new = dict(old)
    if new["type"] == "Linear":
        new["type"] = "LinearAttention"
    if not any(name in old for name in FLAGS):
        return new
    flags, width = {name: new.pop(name, None) for name in FLAGS}, new.pop("value_width", None)
    if flags["shared_kv"]:
        new["value"] = {"type": "Shared", "width": width}
    elif flags["value_from_key"]:
        new["value"] = {"type": "FromKey"}
    else:
        share = flags["value_residual"]
        new["value"] = {
            "type": "Projected",
            "width": width,
            "embedding": {"type": "ValueEmbedding" if flags["value_embedding"] else NONE_TAG},
            "residual": {"type": NONE_TAG} if share is None else {"type": "ValueResidual", "initial": share},
        }
    if "gate" in new:
        new["gate"] = {"type": GATES[new["gate"]]}
    return new
