"""Configurations that earlier versions wrote mean today what they meant then."""

import copy
import json
from typing import Any

import pytest

from gpt_jax.config import (
    Attention,
    AttentionConfig,
    Average,
    BlockConfig,
    Differential,
    ElementwiseGate,
    FromKey,
    HeadwiseGate,
    Latent,
    LinearAttention,
    ModelConfig,
    Projected,
    Rope,
    Shared,
    ValueEmbedding,
    ValueResidual,
    Window,
    pattern,
)
from gpt_jax.config.conversion import from_dict, to_dict
from gpt_jax.config.upgrade import upgraded
from tests.tiny import tiny

FLAGS = {
    "value_width": None,
    "gate": None,
    "forget_gate": False,
    "value_residual": None,
    "value_embedding": False,
    "value_from_key": False,
    "shared_kv": False,
}
RESIDUAL = Projected(6, ValueEmbedding(), ValueResidual(0.3))


def flat(**changes: Any) -> dict[str, Any]:
    """`Attention(2, 1)` as earlier versions wrote it."""
    today = to_dict(Attention(2, 1))
    return {key: item for key, item in today.items() if key not in ("value", "gate")} | FLAGS | changes


@pytest.mark.parametrize(
    "flags, today",
    [
        ({}, Attention(2, 1)),
        ({"value_width": 6}, Attention(2, 1, value=Projected(6))),
        ({"value_residual": 0.3, "value_embedding": True, "value_width": 6}, Attention(2, 1, value=RESIDUAL)),
        ({"value_residual": 0.0}, Attention(2, 1, value=Projected(residual=ValueResidual(0.0)))),
        ({"value_from_key": True}, Attention(2, 1, value=FromKey())),
        ({"shared_kv": True, "value_width": 6}, Attention(2, 1, value=Shared(6))),
        ({"gate": "elementwise", "forget_gate": True}, Attention(2, 1, gate=ElementwiseGate(), forget_gate=True)),
        ({"gate": "headwise"}, Attention(2, 1, gate=HeadwiseGate())),
    ],
)
def test_flags_become_types(flags: dict[str, Any], today: Attention) -> None:
    new = upgraded({"attention": flat(**flags)})["attention"]
    assert from_dict(Attention, new) == today
    assert new == to_dict(today)  # each setting is written out, as today's version does


# What earlier versions wrote in `letters`, beside a base of `Attention(2, 1)` with the given flags.
LETTERS: list[tuple[dict[str, Any], dict[str, Any], AttentionConfig, AttentionConfig]] = [
    ({"value_residual": 0.5}, {"value_residual": 0.2}, *(Attention(2, 1, value=v) for v in (
        Projected(residual=ValueResidual(0.5)), Projected(residual=ValueResidual(0.2))
    ))),
    # The width is the base's, though the letter does not repeat it.
    ({"value_width": 6}, {"shared_kv": True}, *(Attention(2, 1, value=v) for v in (Projected(6), Shared(6)))),
    (
        {"value_residual": 0.5, "value_embedding": True, "gate": "elementwise"},
        {"value_residual": None, "value_embedding": False, "shared_kv": True, "gate": "headwise"},
        Attention(2, 1, value=Projected(None, ValueEmbedding(), ValueResidual(0.5)), gate=ElementwiseGate()),
        Attention(2, 1, value=Shared(), gate=HeadwiseGate()),
    ),
    ({"gate": "headwise"}, {"gate": None, "mask": {"type": "Window", "size": 3}},
     Attention(2, 1, gate=HeadwiseGate()), Attention(2, 1, mask=Window(3))),
    ({"value_from_key": True}, {"type": "Average", "value_width": 5}, Attention(2, 1, value=FromKey()), Average(5)),
    ({}, {**flat(value_from_key=True, kv_heads=2), "type": "Differential", "norm": {"type": "none"}},
     Attention(2, 1), Differential(2, 2, value=FromKey(), norm=None)),
]  # fmt: skip


@pytest.mark.parametrize("base, letter, first, second", LETTERS)
def test_a_letter_keeps_what_it_takes_from_the_base(
    base: dict[str, Any], letter: dict[str, Any], first: AttentionConfig, second: AttentionConfig
) -> None:
    wanted = tiny(blocks=pattern("AB", A=BlockConfig(first, None), B=BlockConfig(second, None)))
    written = to_dict(wanted) | {"attention": flat(**base), "letters": {"B": {"attention": letter}}}
    before = copy.deepcopy(written)
    assert from_dict(ModelConfig, upgraded(written)) == wanted
    assert written == before  # the argument is left alone


def test_linear_attention_had_another_name() -> None:
    """Its own gate and width stay; `Linear` as the base and in a letter."""
    first, second = LinearAttention(2, value_width=6, gate="silu"), LinearAttention(4, position=Rope())
    for blocks in (pattern("AB", A=BlockConfig(first, None), B=BlockConfig(second, None)),
                   pattern("AB", A=BlockConfig(Attention(2), None), B=BlockConfig(second, None))):  # fmt: skip
        today = tiny(blocks=blocks)
        written = json.loads(json.dumps(to_dict(today)).replace('"LinearAttention"', '"Linear"'))
        assert from_dict(ModelConfig, upgraded(written)) == today


@pytest.mark.parametrize(
    "attention", [Attention(2, value=Shared(6)), Attention(2, gate=HeadwiseGate()), Latent(2, 6, 4, 4), Average(5)]
)
def test_what_is_written_today_is_left_alone(attention: AttentionConfig) -> None:
    """In a run's file and in any that contains configurations; also where "attention" is another program's word."""
    first, second = BlockConfig(Attention(2, value=Projected(6)), None), BlockConfig(attention, None)
    record = {"config": {"model": to_dict(tiny(blocks=(first, second)))}, "arms": [{"attention": {"a": 1}}, 3, None]}
    assert upgraded(record) == record
