"""What a study refuses, how arms are built, and budgets that match."""

import dataclasses

import jax
import pytest

from gpt_jax import GPT
from gpt_jax.ablation.combine import chain, product, vary, with_changes, zip_arms
from gpt_jax.ablation.matching import costs, match_arms, solve
from gpt_jax.ablation.plan import make_plan
from gpt_jax.ablation.study import Arm, Study, change
from gpt_jax.config import Alibi, Attention, Config, Latent, Rope, Window
from gpt_jax.config.errors import ConfigError
from tests.tiny import tiny_config

KV = "model.attention.kv_heads"
F = "model.mlp.width"


def base() -> Config:
    config = tiny_config()
    attention = Attention(heads=4, kv_heads=4, position=Rope())
    block = dataclasses.replace(config.model.blocks[0], attention=attention)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=9, blocks=(block,) * 2))


def study(arms=None, knobs=(KV,), **changes) -> Study:
    arms = vary(KV, mha=4, mqa=1) if arms is None else arms
    return Study("?", base(), arms, arms[0].name, knobs, 0.01, **changes)


def checked(s: Study):
    return {name: arm.config for name, arm in make_plan(s).arms.items()}


def test_arms_differ_in_their_knob():
    configs = checked(study())
    assert [c.model.blocks[1].attention.kv_heads for c in configs.values()] == [4, 1]


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (vary(KV, mha=4) + (Arm("mqa", {KV: 1, "train.steps": 7}),), "train.steps: 6 → 7"),
        (vary(KV, mha=4) + (Arm("mqa", {KV: 1, F: 48}),), F),
        (vary(KV, mha=4) + (Arm("mqa", {KV: 1, "optimizer.learning_rate": 0.1}),), "optimizer.learning_rate"),
        (vary(KV, mha=4) + (Arm("mqa", {KV: 1, "data.length": 3}),), "data.length"),
        (vary(KV, mha=4, same=4), '"mha" and "same" are the same'),
    ],
)
def test_arms_that_differ_in_more_are_refused(arms, message):
    with pytest.raises(ConfigError, match=message):
        checked(study(arms))


def test_what_is_matched_counts_as_declared():
    assert checked(study(match="params", free=F))["mqa"].model.blocks[0].mlp.width > 32


def test_a_group_is_a_knob():
    arms = vary("model.attention.position", rope=Rope(), alibi=Alibi(), none=None)
    configs = checked(study(arms, knobs=("model.attention.position",)))
    assert [type(c.model.blocks[0].attention.position).__name__ for c in configs.values()] == [
        "Rope",
        "Alibi",
        "NoneType",
    ]


def test_a_choice_that_nobody_makes_is_a_knob():
    checked(study(knobs=(KV, "model.attention.gate")))


def test_a_pattern_is_written_with_letters():
    local = {"attention": {"mask": Window(4)}}
    config = change(base(), {"model.pattern": "AB", "model.letters": {"B": local}})
    assert [type(block.attention.mask).__name__ for block in config.model.blocks] == ["Causal", "Window"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.attention.kv_head": 1}, 'the arm "b": unknown setting.*kv_heads'),
        ({"modl.width": 1}, "unknown setting"),
        ({KV: 3}, "must divide"),
        ({KV: "many"}, "must be of type int"),
    ],
)
def test_mistakes_in_an_arm_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        study((Arm("a"), Arm("b", changes))).configs()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": vary(KV, a=4) + vary(KV, a=1)}, "the name"),
        ({"knobs": ("model.attention.heats",)}, 'not a setting.*"model.attention.heads"'),
        ({"seeds": (1, 1)}, "all different"),
        ({"rules_out_failures": 1.0}, "a share of the seeds"),
        ({"rules_out_failures": 0.0}, "a share of the seeds"),
        ({"match": "params", "free": KV}, "can't be the free width"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        checked(study(**changes))
    with pytest.raises(ConfigError, match='not an arm of the study; did you mean "mha"'):
        dataclasses.replace(study(), baseline="mhaa")
    for margin in (0.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="smallest difference"):
            dataclasses.replace(study(), smallest_difference=margin)


def test_combinators():
    kv, width = vary(KV, mha=4, mqa=1), vary(F, {"narrow": 16, "wide": 64})
    assert [arm.name for arm in product(kv, width)] == ["mha+narrow", "mha+wide", "mqa+narrow", "mqa+wide"]
    assert product(kv, width)[3].changes == {KV: 1, F: 64}
    assert [arm.name for arm in zip_arms(kv, width)] == ["mha+narrow", "mqa+wide"]
    assert [arm.name for arm in chain(kv, width)] == ["mha", "mqa", "narrow", "wide"]
    assert [arm.changes for arm in with_changes(kv, {KV: 2, F: 8})] == [{KV: 2, F: 8}] * 2


def test_combinators_are_strict():
    kv = vary(KV, mha=4, mqa=1)
    with pytest.raises(ConfigError, match="set by two"):
        product(kv, vary("model.attention", other=Attention(heads=2)))
    with pytest.raises(ConfigError, match="groups of one size"):
        zip_arms(kv, vary(F, narrow=16))
    with pytest.raises(ConfigError, match="two arms"):
        chain(kv, kv)


def test_parameters_match_within_one_percent():
    s = study(match="params", free=F)
    matched = match_arms(s, s.configs(), {"mha": 16, "mqa": 16})
    params = {name: GPT(arm.config.model).init(jax.random.key(0), jax.numpy.zeros((1, 2), int)) for name, arm in
              matched.items()}  # fmt: skip
    counted = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in params.items()}
    assert counted["mqa"] == matched["mqa"].costs.parameters
    assert abs(counted["mqa"] / counted["mha"] - 1) < 0.01
    assert matched["mqa"].is_ranked and matched["mqa"].value > 32
    assert matched["mha"].config == s.configs()["mha"]


def test_what_is_not_solved_is_not_ranked():
    s = study(match="kv_bytes")
    matched = match_arms(s, s.configs(), {"mha": 16, "mqa": 16})
    assert matched["mqa"].ratio == pytest.approx(0.25)
    assert not matched["mqa"].is_ranked and matched["mha"].is_ranked


def test_a_latent_matches_bytes_of_cache():
    latent = Arm("mla", {"model.attention": Latent(heads=4, rank=8, head_width=4, rotary_width=2)})
    rank = "model.attention.rank"
    s = study((Arm("gqa", {KV: 2}), latent), ("model.attention",), match="kv_bytes", free={"mla": rank})
    matched = match_arms(s, s.configs(), {"gqa": 16, "mla": 16})
    assert (matched["mla"].value, matched["mla"].ratio) == (14, 1.0)  # 2 · 2 · 4 = 14 + 2


def test_widths_that_must_be_even_are_found():
    width = "model.attention.head_width"
    config = change(base(), {width: 4})
    solved = solve(config, width, 2 * costs(config, 16).parameters, lambda c: float(costs(c, 16).parameters))
    assert solved.model.blocks[0].attention.head_width % 2 == 0
    assert costs(solved, 16).parameters == pytest.approx(2 * costs(config, 16).parameters, rel=0.05)


def test_tokens_match_by_steps():
    s = study(vary("train.batch_size", small=8, large=12), ("train.batch_size",), match="tokens", free="train.steps")
    assert match_arms(s, s.configs(), {"small": 8, "large": 8})["large"].value == 4


def test_a_free_width_must_be_a_number():
    with pytest.raises(ConfigError, match="whole number"):
        solve(base(), "model.attention.head_width", 1, lambda c: 1.0)
    with pytest.raises(ConfigError, match="not a setting"):
        solve(base(), "model.mlp.widt", 1, lambda c: 1.0)
