"""Studies that would mislead are refused: arms that differ in more than they say, arms that are one function, arms that
are evaluated on other text, picked seeds, and endpoints that nothing measures.
"""

import dataclasses
import importlib
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gpt_jax.ablation.combine import vary
from gpt_jax.ablation.endpoint import FinalLoss, LongLoss, PositionLoss, ProbeAccuracy, RateSensitivity
from gpt_jax.ablation.plan import StudyPlan, describe, make_plan
from gpt_jax.ablation.schema import Grouping, Leaf, Origin
from gpt_jax.ablation.show import show_plan
from gpt_jax.ablation.study import Arm, Probe, Study, Tuning
from gpt_jax.config import (
    Alibi,
    Attention,
    BlockConfig,
    Bpe,
    Bytes,
    Characters,
    Config,
    Copy,
    Learned,
    LinearAttention,
    Mlp,
    Muon,
    Rope,
    Score,
    Text,
    WarmupCosine,
    Window,
)
from gpt_jax.config.conversion import from_config_dict
from gpt_jax.config.errors import ConfigError
from tests.tiny import tiny_config

KV, MASK, POSITION = "model.attention.kv_heads", "model.attention.mask", "model.attention.position"


def base(**changes: Any) -> Config:
    """Two layers of 4 heads with Rope."""
    block = BlockConfig(Attention(heads=4, position=Rope()), Mlp(32))
    return tiny_config(model={"blocks": (block,) * 2}, **changes)


def study(rival: dict[str, Any], knobs: tuple[str, ...], start: Config | None = None, **changes: Any) -> Study:
    """The base as it is, and an arm "b" beside it."""
    options = {"arms": (Arm("a"), Arm("b", rival)), "fresh_seeds": 0, "aa": False} | changes
    return Study("?", start or base(), options.pop("arms"), "a", knobs, 0.01, **options)


def plan(*args: Any, **changes: Any) -> StudyPlan:
    return make_plan(study(*args, **changes))


def asked(leaves: tuple[Leaf, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {leaf.key: (leaf.asked_by, leaf.layers) for leaf in leaves}


# ── what nobody asked for ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_default_that_came_along_is_refused_and_can_be_asked_for() -> None:
    lost = {"model.attention": Attention(heads=4, kv_heads=1)}
    with pytest.raises(ConfigError, match=f"{POSITION}.type: 'Rope' → 'none'.*\"{POSITION}\": None"):
        plan(lost, ("model.attention",))
    found = plan(lost | {POSITION: None}, ("model.attention",)).leaves["b"]
    assert asked(found) == {KV: ("arm", ()), f"{POSITION}.type": ("arm", ())}
    kept = {"model.attention": Attention(heads=4, kv_heads=1, position=Rope())}
    assert asked(plan(kept, ("model.attention",)).leaves["b"]) == {KV: ("arm", ())}


def test_a_default_is_refused_inside_a_group_and_against_the_words_of_the_baseline() -> None:
    start = base()
    block = dataclasses.replace(start.model.blocks[0], attention=Attention(4, position=Rope(theta=500.0)))
    start = dataclasses.replace(start, model=dataclasses.replace(start.model, blocks=(block,) * 2))
    with pytest.raises(ConfigError, match=f"{POSITION}.theta: 500.0 → 10000.0"):
        plan({POSITION: Rope(fraction=0.5)}, (POSITION,), start)
    whole = vary("model.attention", a=Attention(4, position=Rope()), b=Attention(4, kv_heads=1))
    with pytest.raises(ConfigError, match=f"{POSITION}.type"):
        plan({}, ("model.attention",), arms=whole)
    reset = {"model.attention.score": Score(softcap=9.0)}
    start = dataclasses.replace(start, model=dataclasses.replace(
        start.model, blocks=(dataclasses.replace(block, attention=Attention(4, score=Score(normalizer="sinks"))),) * 2
    ))  # fmt: skip
    with pytest.raises(ConfigError, match="score.normalizer: 'sinks' → 'softmax'"):
        plan(reset, ("model.attention.score.softcap", "model.attention.score.normalizer"), start)


def test_what_the_baseline_says_counts_where_the_arm_leaves_the_base() -> None:
    arms = (Arm("a", {POSITION: Alibi()}), Arm("b"))
    assert asked(plan({}, (POSITION,), arms=arms).leaves["b"])[f"{POSITION}.type"] == ("arm", ())


def test_settings_of_another_type_come_with_it() -> None:
    linear = {"model.attention": LinearAttention(heads=4), POSITION: None}
    found = asked(plan(linear, ("model.attention",)).leaves["b"])
    assert found["model.attention.type"] == found[f"{POSITION}.type"] == ("arm", ())
    assert found["model.attention.feature_map"] == ("type", ())
    assert "model.attention.mask.type" not in found, "what the type does not have is no difference of its own"
    with pytest.raises(ConfigError, match="optimizer.weight_decay: 0.1 → 0.0"):
        plan({"optimizer": Muon(0.01)}, ("optimizer.type",))
    muon = {"optimizer": Muon(0.01), "optimizer.weight_decay": 0.1}
    found = asked(plan(muon, ("optimizer.type",)).leaves["b"])
    assert found["optimizer.type"] == ("arm", ()) and found["optimizer.momentum"] == ("type", ())


def test_what_a_run_derives_is_asked_for_by_what_it_is_derived_from() -> None:
    start = base(schedule=WarmupCosine(warmup=2))
    found = asked(plan({"train.steps": 8}, ("train.steps",), start).leaves["b"])
    assert found == {"train.steps": ("arm", ()), "schedule.steps": ("arm", ())}
    with pytest.raises(ConfigError, match="schedule.steps"):
        plan({"train.steps": 8, "schedule.steps": 4}, ("train.steps",), start)


# ── layers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def letters(**settings: Any) -> dict[str, Any]:
    return {"model.pattern": "BA", "model.letters": {"B": settings}}


def test_layers_are_compared_setting_by_setting() -> None:
    found = plan(letters(attention={"mask": Window(4)}), (MASK,)).leaves["b"]
    assert asked(found) == {f"{MASK}.type": ("arm", (0,)), f"{MASK}.size": ("arm", (0,))}
    with pytest.raises(ConfigError, match="model.mlp.width: 32 → 256 in layer 0"):
        plan(letters(attention={"mask": Window(4)}, mlp={"width": 256}), (MASK,))
    with pytest.raises(ConfigError, match=f"{POSITION}.type: 'Rope' → 'none' in layer 0.*nobody asked"):
        plan(letters(attention=Attention(heads=4, mask=Window(4))), ("model.attention",))


def test_a_pattern_of_known_letters_is_asked_for_by_itself() -> None:
    start = base()
    full = start.model.blocks[0]
    local = dataclasses.replace(full, attention=dataclasses.replace(full.attention, mask=Window(4)))
    start = dataclasses.replace(start, model=dataclasses.replace(start.model, blocks=(full, local)))
    found = plan({"model.pattern": "BA"}, (MASK,), start).leaves["b"]
    assert {(leaf.key, leaf.arm, leaf.asked_by, leaf.layers) for leaf in found} == {
        (f"{MASK}.type", "Window", "arm", (0,)),
        (f"{MASK}.size", 4, "arm", (0,)),
        (f"{MASK}.type", "Causal", "arm", (1,)),
    }


def test_more_layers_are_compared_with_the_pattern_of_the_baseline() -> None:
    assert asked(plan({"model.layers": 3}, ("model.layers",)).leaves["b"]) == {"model.layers": ("arm", ())}
    wide = {"model.layers": 3, "model.pattern": "AAB", "model.letters": {"B": {"mlp": {"width": 256}}}}
    with pytest.raises(ConfigError, match="model.mlp.width: 32 → 256 in layer 2"):
        plan(wide, ("model.layers",))


# ── knobs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("knob", "message"),
    [
        ("model", "more than one choice"),
        ("train", "more than one choice"),
        ("optimizer", "more than one choice"),
        ("data", "more than one choice"),
        ("model.attention.score", "more than one choice"),
        ("model.blocks", "not a setting"),
        ("model.letters", "name the settings that differ between layers"),
        ("model.pattern", "name the settings that differ between layers"),
        ("seed", "is no knob"),
    ],
)
def test_a_knob_is_one_setting_or_one_choice(knob: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan({KV: 1}, (KV, knob))


def test_what_is_solved_tuned_or_swept_is_not_set_by_hand() -> None:
    width, rate = "model.mlp.width", "optimizer.learning_rate"
    with pytest.raises(ConfigError, match='"b" sets "model.mlp.width" by hand'):
        study({KV: 1, width: 48}, (KV,), match="params", free=width)
    both = (Arm("a"), Arm("b", {KV: 1}), Arm("c", {KV: 2, width: 48}))
    with pytest.raises(ConfigError, match='"c" sets "model.mlp.width" by hand'):
        study({}, (KV,), match="params", free={"b": width}, arms=both)
    with pytest.raises(ConfigError, match=f'sets "{rate}"'):
        study({rate: 0.1}, (rate,), tuning=Tuning((0.1, 0.2)))
    with pytest.raises(ConfigError, match=f'sets "{rate}"'):
        study({rate: 0.1}, (rate,), learning_rates=(0.1, 0.2), endpoint=RateSensitivity())


@pytest.mark.parametrize("key", ["b", "a"])
def test_arms_that_are_one_function_are_refused(key: str) -> None:
    """Also where neither is the baseline, and however the settings are spelled."""
    arms = {"b": (Arm("a"), Arm("b", {KV: 4})), "a": (Arm("a", {KV: 1}), Arm("b", {KV: 4}), Arm("c"))}[key]
    with pytest.raises(ConfigError, match='"(a|b)" and "(b|c)" are the same function'):
        plan({}, (KV,), arms=arms)


@pytest.mark.parametrize("rival", [{KV: 2}, {"model.attention.dropout": 0.5}])
def test_arms_of_different_functions_are_not(rival: dict[str, Any]) -> None:
    """Also where only training tells them apart."""
    assert plan(rival, tuple(rival)).leaves["b"]


# ── the same text ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A run on 12 kB of text in 40 documents."""
    monkeypatch.setenv("GPT_JAX_CACHE", str(tmp_path / "cache"))
    text = "\n\n".join(f"{i} times {i} are {i * i}, and that is all there is to say. " * 5 for i in range(40))
    (tmp_path / "text.txt").write_text(text)
    return base(data=Text(path=str(tmp_path / "text.txt"), separator="\n\n"))


@pytest.mark.parametrize(
    ("change", "knob"),
    [
        ({"data.validation_tokens": 64}, "data.validation_tokens"),
        ({"data.validation_fraction": 0.3}, "data.validation_fraction"),
        ({"data.tokenizer": Characters()}, "data.tokenizer"),
        ({"data.held_out": "tuning"}, "data.held_out"),
    ],
)
def test_other_validation_text_is_refused(change: dict[str, Any], knob: str, corpus: Config) -> None:
    with pytest.raises(ConfigError, match='"b" is evaluated on another validation text'):
        plan(change, (knob,), corpus)


def test_a_cut_in_tokens_of_different_bytes_is_refused(corpus: Config) -> None:
    cut = dataclasses.replace(corpus, data=dataclasses.replace(corpus.data, validation_tokens=100))
    with pytest.raises(ConfigError, match="no data.validation_tokens"):
        plan({"data.tokenizer": Bpe(270)}, ("data.tokenizer",), cut)


def test_the_same_text_under_another_name_is_allowed(corpus: Config, tmp_path: Path) -> None:
    """A limit that cuts nothing changes the data's hash and not the text."""
    found = plan({"data.validation_tokens": 10**6}, ("data.validation_tokens",), corpus)
    assert found.unit == "nats per token"


def test_other_tokenizers_and_contexts_are_compared_per_byte(corpus: Config) -> None:
    found = plan({"data.tokenizer": Bpe(270)}, ("data.tokenizer",), corpus)
    record = describe(found, Origin(), Grouping(1, "", ""), False)
    assert record.unit == "bits per byte" and isinstance(corpus.data, Text) and corpus.data.tokenizer == Bytes()
    assert asked(found.leaves["b"])["model.vocab_size"] == ("arm", ())
    assert plan({"model.context_length": 8}, ("model.context_length",), corpus).unit == "bits per byte"
    with pytest.raises(ConfigError, match="has no value per byte"):
        plan({"data.tokenizer": Bpe(270)}, ("data.tokenizer",), corpus, endpoint=LongLoss(2), extrapolation=(2,))


def test_other_tasks_and_other_rows_are_refused() -> None:
    for change in ({"data.length": 3}, {"data.validation_rows": 11}):
        with pytest.raises(ConfigError, match="other validation rows"):
            plan(change, tuple(change))


# ── seeds and endpoints ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (0, 3, 4, 11)}, "name the first and how many"),
        ({"seeds": tuple(range(41))}, "more than most_seeds=40"),
        ({"tuning": Tuning((0.1,), seeds=(3,))}, "tuning seed 3"),
        ({"tuning": Tuning((0.1,), seeds=(12,)), "seeds": (0, 1), "most_seeds": 20}, "from 20 on"),
        ({"tuning": Tuning((0.1,), seeds=(21,)), "fresh_seeds": 3, "most_seeds": 20}, "from 23 on"),
        ({"learning_rates": (0.1, 0.2)}, "use tuning="),
        ({"endpoint": RateSensitivity()}, "two or more learning_rates"),
        ({"endpoint": LongLoss(4), "extrapolation": (1, 2)}, "add 4 to extrapolation"),
        ({"endpoint": ProbeAccuracy(3)}, "has no probe"),
        ({"endpoint": ProbeAccuracy(3), "probe": Probe("n", {4: Copy(8, 4)})}, "a probe at 4 only"),
        ({"endpoint": PositionLoss(0, 17)}, "position 16, and the context has 16"),
        ({"endpoint": PositionLoss(16)}, "position 16"),
    ],
)
def test_what_a_study_can_not_decide_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study({KV: 1}, (KV,), **changes)


def test_an_endpoint_that_an_arm_has_no_value_of_is_refused(corpus: Config) -> None:
    """Before the first run: an arm without a value would just be missing in the verdict."""
    options: dict[str, Any] = {"endpoint": LongLoss(4), "extrapolation": (4,)}
    with pytest.raises(ConfigError, match="a task has rows of one length"):
        plan({KV: 1}, (KV,), **options)
    embedding = "model.embedding.position"
    for length in (64, 63):
        table = {POSITION: None, embedding: Learned(length=length)}
        if length == 64:
            assert plan(table, (POSITION, embedding), corpus, **options)
            continue
        with pytest.raises(ConfigError, match='rows of 64 tokens, and the arm "b" has learned 63 positions'):
            plan(table, (POSITION, embedding), corpus, **options)


SHIPPED = {
    "gate": FinalLoss(),
    "induction": FinalLoss(),
    "kv_heads": FinalLoss(),
    "latent": FinalLoss(),
    "memory": FinalLoss(),
    "positions": LongLoss(4),
    "qk_norm": RateSensitivity(),
    "recall": ProbeAccuracy(),
    "softmax": FinalLoss(),
    "window": PositionLoss(16),
}
ASKED = {
    FinalLoss: "loss",
    LongLoss: "rows 4 times as long",
    RateSensitivity: "sensitivity to the learning rate",
    ProbeAccuracy: "recalls most values",
    PositionLoss: "at the positions that have more before them",
}


def test_every_shipped_study_declares_the_endpoint_that_it_asks_about() -> None:
    folder = Path(__file__).parents[2] / "configs" / "ablations"
    assert {path.stem for path in folder.glob("*.py")} == {*SHIPPED, "base"}
    for name, endpoint in SHIPPED.items():
        module = importlib.import_module(f"configs.ablations.{name}")
        shipped = module.get_study(from_config_dict(Config, module.get_config()))
        assert shipped.endpoint == endpoint and ASKED[type(endpoint)] in shipped.question, name
        assert "endpoint=" in (folder / f"{name}.py").read_text(), "said, not left at a default"


def test_the_plan_is_recorded_and_shown() -> None:
    made = plan({KV: 1}, (KV,), endpoint=PositionLoss(2), match="params", free="model.mlp.width", fails_above=3.0)
    record = describe(made, Origin(), Grouping(1, "", ""), False)
    assert record.endpoint == {"type": "PositionLoss", "first": 2, "stop": None} and record.metric.endswith("the end")
    assert (record.planned_seeds, record.most_seeds, record.fails_above) == (5, 40, 3.0)
    assert (record.setup.steps, record.setup.tokens, record.setup.precision) == (6, 6 * 8 * 8, "float32")
    rival = record.arms[1]
    assert {leaf.key: leaf.asked_by for leaf in rival.leaves} == {KV: "arm", "model.mlp.width": "match"}
    assert rival.tokens == 6 * 8 * 8 and rival.flops == rival.tokens * rival.flops_per_token
    text = io.StringIO()
    show_plan(made, Console(file=text, width=200))
    assert f"{KV}: None → 1 (asked by the arm)" in text.getvalue()
    assert "model.mlp.width: 32 → " in text.getvalue() and "(asked by the match)" in text.getvalue()
    assert "384 tokens and" in text.getvalue() and "positions 2 to the end" in text.getvalue()
