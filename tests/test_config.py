"""Configurations convert to plain dicts and ConfigDicts and back; what can't be is refused in one sentence."""

import ast
import dataclasses
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from gpt_jax import config
from gpt_jax.config import (
    Adamw,
    Alibi,
    Attention,
    BlockConfig,
    Causal,
    Chunk,
    Config,
    Differential,
    Embedding,
    FromKey,
    GatedMlp,
    Head,
    HeadwiseGate,
    Init,
    Latent,
    LayerNorm,
    Learned,
    LogTemperature,
    Lora,
    Mlp,
    ModelConfig,
    Projected,
    RmsNorm,
    Rope,
    Score,
    Shared,
    Sinusoidal,
    Text,
    Train,
    ValueEmbedding,
    ValueResidual,
    WarmupCosine,
    Window,
    pattern,
)
from gpt_jax.config.conversion import (
    config_hash,
    difference,
    flatten,
    from_config_dict,
    from_dict,
    to_config_dict,
    to_dict,
)
from gpt_jax.config.errors import ConfigError
from gpt_jax.config.variant import Variant, implementation
from tests.tiny import tiny

ROOT = Path(__file__).resolve().parents[1]
KINDS = Variant.__subclasses__()
LOCAL = BlockConfig(Attention(4, mask=Window(3), position=Rope()), GatedMlp(12))
GLOBAL = BlockConfig(Attention(4, kv_heads=1), Mlp(16), LayerNorm(), "sandwich")


def run_config(**changes: Any) -> Config:
    model = tiny(blocks=pattern("LLG" * 2, L=LOCAL, G=GLOBAL))
    return Config(**{"model": model, "data": Text(), "optimizer": Adamw(), "train": Train(8, 4)} | changes)


def through_json(value: Any) -> Any:
    return from_dict(type(value), json.loads(json.dumps(to_dict(value))))


def through_config_dict(value: Any) -> Any:
    return from_config_dict(type(value), to_config_dict(value))


# ── round trips ──────────────────────────────────────────────────────────────────────────────────────────────────────


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field's declared type, combinations that a class refuses left out."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return st.sampled_from(args)
    if typing.get_origin(hint) is tuple:
        return st.lists(values_of(args[0]), min_size=1, max_size=5).map(tuple)
    if args:  # X | None
        return st.one_of(*[st.none() if arg is type(None) else values_of(arg) for arg in args])
    if hint in KINDS:
        choices = [c for c in hint.choices.values() if c.__module__.startswith("gpt_jax.config")]
        return st.one_of([st.deferred(lambda c=c: instances_of(c)) for c in choices])
    if dataclasses.is_dataclass(hint):
        return instances_of(hint)
    if hint is int:
        return st.sampled_from([1, 2, 4, 8, 16, 24, 64])
    return {
        float: st.floats(0.01, 0.99),
        bool: st.booleans(),
        str: st.text(max_size=6),
    }[hint]


OVER_1 = ("factor", "high", "beta_fast")  # numbers that are refused below


@st.composite
def instances_of(draw: Any, kind: type) -> Any:
    hints = typing.get_type_hints(kind)
    values = {
        f.name: draw(st.floats(1.0, 64.0) if f.name in OVER_1 else values_of(hints[f.name]))
        for f in dataclasses.fields(kind)
    }
    try:
        return kind(**values)
    except ConfigError:
        assume(False)


# The run-time type checks look at random items of containers, which Hypothesis warns of.
checked_at_random = pytest.mark.filterwarnings("ignore:Do not use the `random` module")
relaxed = settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@checked_at_random
@relaxed
@given(instances_of(ModelConfig))
def test_any_model_survives_the_round_trip(model: ModelConfig) -> None:
    assert through_json(model) == model
    assert through_config_dict(model) == model
    assert config_hash(through_json(model)) == config_hash(model)


CHOICES = [choice for kind in KINDS for choice in kind.choices.values() if "gpt_jax.config" in choice.__module__]


@checked_at_random
@pytest.mark.parametrize("kind", CHOICES, ids=lambda kind: kind.__name__)
@settings(max_examples=10, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_variant_survives_the_round_trip(kind: type, data: Any) -> None:
    value = data.draw(instances_of(kind))
    assert through_json(value) == value
    assert through_config_dict(value) == value


def test_a_whole_run_survives_the_round_trip() -> None:
    c = run_config(schedule=WarmupCosine(10), wandb="project", seed=3)
    assert through_json(c) == through_config_dict(c) == c


def test_a_variant_defined_outside_the_package_converts_by_being_defined() -> None:
    try:

        @dataclasses.dataclass(frozen=True)
        class Strided(config.MaskConfig):
            stride: int = 2

        @dataclasses.dataclass(frozen=True)
        class Averaging(config.AttentionConfig):
            heads: int
            feature: Literal["relu", "elu"] = "elu"

        blocks = (BlockConfig(Attention(4, mask=Strided(3)), None), BlockConfig(Averaging(2, "relu"), None))
        c = run_config(model=tiny(blocks=blocks))
        assert through_json(c) == through_config_dict(c) == c
        assert to_dict(c)["model"]["attention"]["mask"] == {"type": "Strided", "stride": 3}
    finally:
        config.MaskConfig.choices.pop("Strided", None)
        config.AttentionConfig.choices.pop("Averaging", None)
    with pytest.raises(ConfigError, match='"Strided", which is not known.*must be defined again'):
        through_json(c)


def test_a_variant_that_nothing_implements_is_refused_and_not_ignored() -> None:
    with pytest.raises(ConfigError, match="Alibi has no implementation beside those of Rope"):
        implementation({Rope: 1}, Alibi())
    assert implementation({Rope: 1}, Rope()) == 1


# ── the compact form of a stack ──────────────────────────────────────────────────────────────────────────────────────


def test_pattern_spells_a_stack() -> None:
    assert pattern("LLG", L=LOCAL, G=GLOBAL) == (LOCAL, LOCAL, GLOBAL)
    with pytest.raises(ConfigError, match='uses "X", which is not defined'):
        pattern("LX", L=LOCAL)


def test_the_compact_form_has_the_period_and_only_what_a_letter_changes() -> None:
    blocks = pattern(
        "LLS" * 2, L=LOCAL, S=dataclasses.replace(LOCAL, attention=Attention(4, mask=Window(9), position=Rope()))
    )
    compact = to_dict(tiny(blocks=blocks))
    assert (compact["layers"], compact["pattern"]) == (6, "AAB")
    assert compact["letters"] == {"B": {"attention": {"mask": {"size": 9}}}}
    assert compact["attention"]["mask"] == {"type": "Window", "size": 3}


def test_the_pattern_repeats_until_there_are_enough_layers() -> None:
    values = to_config_dict(tiny(blocks=pattern("LG", L=LOCAL, G=GLOBAL)))
    values.layers = 5
    assert from_config_dict(ModelConfig, values).blocks == (LOCAL, GLOBAL, LOCAL, GLOBAL, LOCAL)


def test_a_setting_of_the_first_letter_reaches_every_letter_that_does_not_change_it() -> None:
    values = to_config_dict(tiny(blocks=pattern("LS", L=LOCAL, S=dataclasses.replace(LOCAL, attention=Attention(4)))))
    values.attention.heads = 2
    values.letters.B.attention.position.type = "none"
    c = from_config_dict(ModelConfig, values)
    assert [block.attention.heads for block in c.blocks] == [2, 2]
    values.letters.B.attention.heads = 8
    assert [block.attention.heads for block in from_config_dict(ModelConfig, values).blocks] == [2, 8]


# ── the command line ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_settings_that_are_none_can_be_set_and_unset() -> None:
    values = to_config_dict(run_config())
    # The command line reads a value by the type that the ConfigDict names, which a plain None does not have.
    assert (values.model.attention.get_type("kv_heads"), values.get_type("wandb")) == (int, str)
    assert values.model.attention.score.get_type("softcap") is float
    values.model.attention.kv_heads = 2
    values.model.attention.score.softcap = 30.0
    values.wandb = "project"
    values.train.clip_norm = None
    c = from_config_dict(Config, values)
    attention = c.model.blocks[0].attention
    assert (attention.kv_heads, attention.score.softcap, c.wandb, c.train.clip_norm) == (2, 30.0, "project", None)
    with pytest.raises((TypeError, ValueError)):
        values.model.attention.kv_heads = "two"


def test_every_setting_is_an_attribute_of_its_config_dict() -> None:
    """A field named like one of ConfigDict's own methods can be set neither in a file nor on the command line."""
    for kind in vars(config).values():
        if dataclasses.is_dataclass(kind):
            assert not [field.name for field in dataclasses.fields(kind) if hasattr(ConfigDict, field.name)], kind


def test_attention_is_composed_on_the_command_line() -> None:
    """A type is chosen by its tag alone, and reaches every layer whose letter does not choose another."""
    values = to_config_dict(run_config())
    values.model.attention.value.type = "FromKey"
    values.model.attention.gate.type = "HeadwiseGate"
    values.model.attention.kv_heads = 2
    c = from_config_dict(Config, values, {"model.attention.value.type": 0, "model.attention.gate.type": 0})
    first, last = c.model.blocks[0].attention, c.model.blocks[-1].attention
    assert (first.value, first.gate, first.kv_heads) == (FromKey(), HeadwiseGate(), 2)
    assert (last.value, last.gate, last.kv_heads) == (FromKey(), HeadwiseGate(), 1)
    values = to_config_dict(run_config())
    values.model.attention.value.embedding.type = "ValueEmbedding"
    c = from_config_dict(Config, values)
    assert {block.attention.value for block in c.model.blocks} == {Projected(embedding=ValueEmbedding())}


def test_switching_a_type_drops_the_old_types_settings_and_keeps_the_given_ones() -> None:
    values = to_config_dict(run_config())
    values.unlock()
    values.optimizer.type = "Lion"
    values.model.attention.mask = ConfigDict({"type": "Causal", "size": 3})
    values.schedule.type = "WarmupCosine"
    values.schedule.final = 0.5
    overridden = {
        "optimizer.type": "Lion",
        "model.attention.mask.type": "Causal",
        "schedule.type": 0,
        "schedule.final": 0.5,
    }
    c = from_config_dict(Config, values, overridden)
    assert (type(c.optimizer).__name__, c.optimizer.learning_rate) == ("Lion", Adamw().learning_rate)
    assert c.model.blocks[0].attention.mask == Causal()
    assert c.schedule == WarmupCosine(final=0.5)


def test_a_given_setting_that_the_new_type_does_not_have_is_refused() -> None:
    values = to_config_dict(run_config())
    values.optimizer.type = "Sgd"
    values.optimizer.beta1 = 0.5
    with pytest.raises(ConfigError, match='unknown setting "optimizer.beta1" of Sgd'):
        from_config_dict(Config, values, {"optimizer.type": "Sgd", "optimizer.beta1": 0.5})


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def changed(path: str, value: Any) -> dict[str, Any]:
    values = to_dict(run_config())
    group = values
    *parts, name = path.split(".")
    for part in parts:
        group = group[part]
    group[name] = value
    return values


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("model.contex_length", 8, r'unknown setting "model.contex_length"; did you mean "context_length"\?'),
        (
            "model.attention.shared_kv",
            True,
            'it is model.attention.value.type "Shared" now',
        ),
        ("model.attention.value_width", 8, "it is model.attention.value.width now"),
        ("model.attention.gate", "headwise", 'must be a group of settings with a "type"; .*HeadwiseGate'),
        ("model.attention.kv_head", 1, r'"model.attention.kv_head" of Attention; did you mean "kv_heads"\?'),
        ("optimizer.learningrate", 1.0, r'did you mean "learning_rate"\?'),
        ("sed", 1, r'unknown setting "sed" of Config; did you mean "seed"\?'),
        ("model.letters.B.attention.kv_head", 1, r'did you mean "kv_heads"\?'),
        ("model.letters.Z", {}, '"Z", which model.pattern "AAB" does not use'),
        ("model.letters.B", 3, "model.letters.B must be a group of settings"),
        ("model.letters", 3, "model.letters must be a group of settings"),
        ("seed", "0", "seed must be of type int, not '0'"),
        ("seed", True, "seed must be of type int, not True"),
        ("seed", 1.0, "seed must be of type int, not 1.0"),
        ("optimizer.eps", "small", "optimizer.eps must be of type float"),
        ("optimizer.eps", True, "optimizer.eps must be of type float"),
        ("model.scan", 1, "model.scan must be of type bool, not 1"),
        ("optimizer.decay", "**", r"optimizer.decay must be a list"),
        ("optimizer.decay", [1], r"optimizer.decay\[0\] must be of type str"),
        ("model.dtype", "float23", r'did you mean "float32"\?'),
        ("model.attention", 3, 'must be a group of settings with a "type"'),
        ("model.attention.mask.type", "Windw", r'"Windw", which is not known; did you mean "Window"\?'),
        ("model.norm", {"type": "none"}, '"none", which is not known'),
        ("model.embedding.norm", {"type": "none", "eps": 1.0}, 'eps is set, but .*type is "none"'),
        ("train", 3, "train must be a group of settings, not 3"),
        ("model.pattern", "", "model.layers and the length of model.pattern must be at least 1"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        from_dict(Config, changed(path, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["model", "model.width", "model.pattern", "train.steps", "model.attention.heads"])
def test_a_missing_setting_is_named(path: str) -> None:
    values = to_dict(run_config())
    group = values
    *parts, name = path.split(".")
    for part in parts:
        group = group[part]
    del group[name]
    with pytest.raises(ConfigError, match=f'needs the setting "{path}"'):
        from_dict(Config, values)


ILLEGAL = {
    "kv_heads must divide": lambda: Attention(4, kv_heads=3),
    "kv_heads must divide .* and 0": lambda: Attention(4, kv_heads=0),
    "heads must be positive": lambda: Attention(0),
    "head_width must be positive": lambda: Attention(4, head_width=0),
    "dropout must lie": lambda: Attention(4, dropout=1.0),
    "is no multiple of attention.heads": lambda: tiny(Attention(3)),
    "holds none": lambda: tiny(Attention(4, head_width=4, position=Rope(fraction=0.25))),
    "fraction must lie": lambda: Rope(fraction=0.0),
    "theta must be positive": lambda: Rope(theta=0.0),
    "size must be positive": lambda: Window(0),
    "softcap must be positive": lambda: Score(softcap=0.0),
    "head.softcap must be positive": lambda: Head(softcap=-1.0),
    "mlp.width must be positive": lambda: GatedMlp(0),
    "norm.eps must be positive": lambda: RmsNorm(eps=0.0),
    "init.kernel_std must be 0 or more": lambda: Init(kernel_std=-0.1),
    "needs an mlp beside the attention": lambda: BlockConfig(Attention(4), None, residual="parallel"),
    "Chunk.size must be positive": lambda: Chunk(0),
    "say how score.qk_norm acts": lambda: Score(qk_norm_over="width"),
    "names a projection twice": lambda: Attention(4, bias=("query", "query")),
    "clip must be positive": lambda: Attention(4, clip=0.0),
    "value.width must be positive": lambda: Projected(0),
    "adapter.rank must be positive": lambda: Lora(rank=0),
    "adapter.alpha must be positive": lambda: Lora(alpha=0.0),
    "adapter.dropout must lie": lambda: Lora(dropout=1.0),
    "adapter.targets names no projection": lambda: Lora(targets=()),
    "model.adapter adapts a trained model: set init_from": lambda: run_config(model=tiny(block={"adapter": Lora()})),
    "attention.value of type Shared projects none: unset one": lambda: Attention(4, value=Shared(), forget_gate=True),
    'bias names "key", which a layer with attention.value of type Shared does not': lambda: Attention(
        4, value=Shared(), bias=("key",)
    ),
    'bias names "value", which a layer with attention.value of type FromKey does not': lambda: Attention(
        4, value=FromKey(), bias=("query", "value")
    ),
    "and no layer below it has keys and values of its own": lambda: tiny(Attention(4, value=Shared())),
    "its attention.mask must be Causal\\(\\) too, not Window": lambda: tiny(
        blocks=(BlockConfig(Attention(4), None), BlockConfig(Attention(4, mask=Window(3), value=Shared()), None))
    ),
    "which must project both and have no forget gate": lambda: tiny(
        blocks=(BlockConfig(Attention(4, forget_gate=True), None), BlockConfig(Attention(4, value=Shared()), None))
    ),
    "must project both": lambda: tiny(
        blocks=tuple(BlockConfig(Attention(4, value=values), None) for values in (FromKey(), Shared()))
    ),
    "must be 6 too, not 2": lambda: tiny(
        blocks=tuple(BlockConfig(Attention(4, value=values), None) for values in (Projected(6), Shared()))
    ),
    "both need the same kv_heads and value.width": lambda: tiny(
        blocks=tuple(BlockConfig(Attention(4, k, 4, value=Projected(residual=ValueResidual())), None) for k in (4, 2))
    ),
    "Differential pairs its heads": lambda: Differential(4, kv_heads=1),
    "Latent normalizes its latents": lambda: Latent(4, 6, 4, 4, score=Score(qk_norm=RmsNorm())),
    "Latent rotates a part of queries and keys with Rope": lambda: Latent(4, 6, 4, 4, position=Alibi()),
    "norm.unit_offset changes how the scale is stored": lambda: RmsNorm(scale=False, unit_offset=True),
    "LogTemperature.length must be positive": lambda: LogTemperature(length=0),
    "needs an even model.width": lambda: tiny(Attention(3, head_width=2), width=9, embedding=Embedding(Sinusoidal())),
    "endpoint needs at least two pairs": lambda: tiny(
        Attention(1), width=2, embedding=Embedding(Sinusoidal(endpoint=True))
    ),
    "length .8. must be at least model.context_length": lambda: tiny(embedding=Embedding(Learned(8))),
    "layers must be at least 1": lambda: tiny(blocks=()),
    "vocab_size must be positive": lambda: tiny(vocab_size=0),
    "context_length must be positive": lambda: tiny(context_length=0),
    "accumulate must divide": lambda: Train(8, 4, accumulate=3),
    "train.steps must be positive": lambda: Train(0, 4),
    "at most 26 different blocks": lambda: to_dict(
        tiny(blocks=tuple(BlockConfig(Attention(4), Mlp(w)) for w in range(1, 28)))
    ),
}


@pytest.mark.parametrize("message", ILLEGAL)
def test_illegal_combinations_are_refused_with_the_reason(message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ILLEGAL[message]()


def test_a_refusal_names_the_group_it_came_from() -> None:
    with pytest.raises(ConfigError, match=r"^model\.attention: attention.kv_heads must divide"):
        from_dict(Config, changed("model.attention.kv_heads", 3))


# ── identity ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_hash_is_of_the_content() -> None:
    assert config_hash(run_config()) == config_hash(run_config())
    assert config_hash(RmsNorm()) == "e1ff7d879fae3086"  # stable between processes, machines and Python releases
    assert config_hash(run_config()) != config_hash(run_config(seed=1))
    assert config_hash(RmsNorm()) != config_hash(LayerNorm(1e-6, bias=False))


def test_the_difference_is_by_dotted_name() -> None:
    old, new = run_config(), run_config(seed=1, schedule=WarmupCosine(5))
    assert difference(old, old) == {}
    assert difference(old, new) == {
        "seed": (0, 1),
        "schedule.type": ("Constant", "WarmupCosine"),
        "schedule.warmup": (0, 5),
        "schedule.final": (None, 0.1),
    }


def test_flatten_joins_names_with_dots() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}


def test_the_two_groups_that_a_compact_model_merges_share_no_name() -> None:
    model, block = ({f.name for f in dataclasses.fields(kind)} for kind in (ModelConfig, BlockConfig))
    assert not (model & block) and not ({"layers", "pattern", "letters", "type"} & (model | block))


# ── one home of defaults ─────────────────────────────────────────────────────────────────────────────────────────────

SETTINGS = {
    field.name
    for kind in vars(config).values()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    for field in dataclasses.fields(kind)
    if field.default is not dataclasses.MISSING
}


def defaults_declared(path: Path) -> Iterator[tuple[str, int]]:
    """(name, line) of every class field and every parameter that has a default."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                is_field = isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
                if is_field and item.value is not None and "pytree_node" not in ast.unparse(item.value):
                    yield item.target.id, item.lineno
        elif isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args]
            with_default = list(zip(arguments[::-1], node.args.defaults[::-1], strict=False))
            with_default += list(zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))
            for argument, default in with_default:
                if default is not None and not (isinstance(default, ast.Constant) and default.value is None):
                    yield argument.arg, node.lineno


def test_no_module_of_the_model_declares_a_settings_default_again() -> None:
    """Linen modules take a config, not its fields: a default lives in `gpt_jax/config/` or nowhere."""
    assert {"eps", "theta", "bias", "dropout", "tied", "activation"} <= SETTINGS
    # A multiplier of initial values, and lengths of caches: no settings.
    allowed = {("linear.py", "scale"), ("row.py", "length"), ("mask.py", "decay"), ("cache.py", "length")}
    for path in sorted((ROOT / "gpt_jax/model").glob("*.py")):
        for name, line in defaults_declared(path):
            assert name not in SETTINGS or (path.name, name) in allowed, f"{path.name}:{line} gives {name} a default"


def test_nothing_reads_a_setting_with_a_default_of_its_own() -> None:
    """`.get(key, default)` hides a default that no configuration file shows."""
    for path in sorted((ROOT / "gpt_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
                owner = ast.unparse(node.func.value)
                settings_like = any(word in owner for word in ("config", "batch", "settings", "values"))
                assert not (settings_like and len(node.args) > 1), f"{path.name}:{node.lineno}: {ast.unparse(node)}"
