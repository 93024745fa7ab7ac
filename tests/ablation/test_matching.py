"""Budgets are matched by keys that move them, within bounds, over the whole run."""

import dataclasses
from typing import Any

import pytest

from gpt_jax.ablation.combine import vary
from gpt_jax.ablation.matching import Matched, match_arms
from gpt_jax.ablation.plan import make_plan
from gpt_jax.ablation.study import Arm, Study
from gpt_jax.config import (
    Attention,
    BlockConfig,
    Config,
    Constant,
    InverseSqrt,
    LinearDecay,
    Mlp,
    Rope,
    ScheduleConfig,
    TailAverage,
    Train,
    WarmupCosine,
    WarmupStableDecay,
)
from gpt_jax.config.errors import ConfigError
from tests.tiny import tiny_config

KV, F, STEPS, BATCH = "model.attention.kv_heads", "model.mlp.width", "train.steps", "train.batch_size"


def base(steps: int = 60, **changes: Any) -> Config:
    block = BlockConfig(Attention(heads=4, position=Rope()), Mlp(32))
    return tiny_config(steps, model={"vocab_size": 9, "blocks": (block,) * 2}, **changes)


def study(arms: tuple[Arm, ...], knob: str, start: Config | None = None, **changes: Any) -> Study:
    options = {"fresh_seeds": 0, "aa": False, "seeds": (0,)} | changes
    return Study("?", start or base(), arms, arms[0].name, (knob,), 0.01, **options)


def matched(s: Study) -> dict[str, Matched]:
    return match_arms(s, s.configs(), {arm.name: 8 for arm in s.arms})


WIDTH = "model.attention.head_width"
HEADS = vary(KV, mha=4, mqa=1)


@pytest.mark.parametrize(("match", "free"), [("kv_bytes", F), ("params", STEPS), ("kv_bytes", STEPS), ("tokens", F)])
def test_a_key_that_does_not_move_the_cost_is_refused(match: Any, free: str) -> None:
    with pytest.raises(ConfigError, match=f'"{free}" does not change match="{match}"'):
        matched(study(HEADS, KV, match=match, free=free))


def test_a_key_that_lowers_the_cost_is_refused() -> None:
    """With one key/value head, more query heads of a given width are narrower, and the cache shrinks."""
    start = base()
    block = dataclasses.replace(start.model.blocks[0], attention=Attention(heads=4, kv_heads=1))
    start = dataclasses.replace(start, model=dataclasses.replace(start.model, blocks=(block,) * 2))
    with pytest.raises(ConfigError, match="falls where the free key"):
        matched(study(vary("model.head.bias", a=False, b=True), "model.head.bias", start, match="kv_bytes",
                      free="model.attention.heads"))  # fmt: skip


def test_a_solution_beyond_four_times_the_start_must_be_declared() -> None:
    s = study(vary(WIDTH, wide=32, narrow=4), WIDTH, match="params", free=F)
    with pytest.raises(ConfigError, match=r"would need model.mlp.width=(\d+).*allows 8 to 128: declare free_bounds="):
        matched(s)
    found = matched(dataclasses.replace(s, free_bounds=(8, 1000)))["narrow"]
    assert found.is_ranked and found.value is not None and found.value > 128
    with pytest.raises(ConfigError, match="free_bounds allow 8 to 200"):
        matched(dataclasses.replace(s, free_bounds=(8, 200)))


def test_a_budget_out_of_reach_is_not_ranked_and_stays_within_bounds() -> None:
    """Heads 16 times as wide cost too much even with an MLP of one unit."""
    s = study(vary(WIDTH, narrow=4, wide=64), WIDTH, match="params", free=F)
    found = matched(s)["wide"]
    assert found.value == 8 and not found.is_ranked


def test_flops_are_those_of_the_whole_run() -> None:
    s = study(vary(BATCH, small=8, large=16), BATCH, match="flops")
    assert matched(s)["large"].ratio == pytest.approx(2)
    found = matched(dataclasses.replace(s, free=STEPS))["large"]
    assert (found.value, found.ratio) == (30, 1.0)
    wide = matched(study(vary(F, narrow=32, wide=64), F, match="flops", free=STEPS))["wide"]
    assert wide.is_ranked and wide.value is not None and wide.value < 60


@pytest.mark.parametrize(
    ("schedule", "length"),
    [
        (Constant(), None),
        (Constant(warmup=5), None),
        (InverseSqrt(warmup=5), None),
        (WarmupCosine(warmup=5), 30),
        (WarmupCosine(warmup=5, steps=60), 30),
        (WarmupCosine(warmup=5, steps=120), 60),
        (LinearDecay(steps=60), 30),
        (LinearDecay(), 30),
        (WarmupStableDecay(decay=10, warmup=5, steps=60), 30),
        (WarmupStableDecay(decay=10), 30),
    ],
)
def test_tokens_match_by_steps_with_every_schedule(schedule: ScheduleConfig, length: int | None) -> None:
    plan = make_plan(study(vary(BATCH, small=8, large=16), BATCH, base(schedule=schedule), match="tokens", free=STEPS))
    small, large = plan.arms.values()
    assert small.costs.tokens == large.costs.tokens and large.ratio == 1.0
    resolved: Any = next(run.resolved.schedule for run in plan.runs if run.arm == "large")
    assert (resolved.steps if hasattr(resolved, "steps") else None) == length
    asked = {leaf.key: leaf.asked_by for leaf in plan.leaves["large"]}
    assert asked == {BATCH: "arm", STEPS: "match"} | ({"schedule.steps": "match"} if length else {})


@pytest.mark.parametrize(("steps", "length"), [(None, 30), (60, 30), (40, 20)])
def test_an_average_of_the_last_steps_follows(steps: int | None, length: int) -> None:
    start = base(train=Train(60, 8, average=TailAverage(steps=steps)))
    plan = make_plan(study(vary(BATCH, small=8, large=16), BATCH, start, match="tokens", free=STEPS))
    resolved: Any = next(run.resolved.train.average for run in plan.runs if run.arm == "large")
    assert resolved.steps == length
    asked = {leaf.key: leaf.asked_by for leaf in plan.leaves["large"]}
    assert asked == {BATCH: "arm", STEPS: "match", "train.average.steps": "match"}


def test_every_schedule_is_tried() -> None:
    marks = [mark for mark in test_tokens_match_by_steps_with_every_schedule.pytestmark if mark.name == "parametrize"]
    assert {type(schedule).__name__ for schedule, _ in marks[0].args[1]} >= {
        kind for kind, value in ScheduleConfig.choices.items() if value.__module__.startswith("gpt_jax.")
    }


@pytest.mark.parametrize("steps", [None, 60])
def test_a_schedule_without_room_is_refused(steps: int | None) -> None:
    schedule = WarmupStableDecay(decay=30, warmup=20, steps=steps)
    with pytest.raises(ConfigError, match="train.steps=30, whose schedule has no room"):
        matched(study(vary(BATCH, small=8, large=16), BATCH, base(schedule=schedule), match="tokens", free=STEPS))


def test_free_names_arms() -> None:
    with pytest.raises(ConfigError, match='free names "mqaa".*"mqa"'):
        matched(study(HEADS, KV, match="params", free={"mqaa": F}))
    with pytest.raises(ConfigError, match='free names "mha"'):
        matched(study(HEADS, KV, match="params", free={"mha": F}))
