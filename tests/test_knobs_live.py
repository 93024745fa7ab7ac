"""Rule 4: every knob is live. Each field of the configuration, changed alone, changes something that can be observed.

Fields are found by themselves: a new one is tried with a value made from its type, and needs an entry below only where
that can't be, or where it shows in nothing that is computed: neither in the program of the initial values or of a step,
nor in the data.
"""

import contextlib
import dataclasses
import hashlib
import re
import time
import typing
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from gpt_jax import config as knobs
from gpt_jax.analysis.scoring import Scorer
from gpt_jax.config import Attention, Config, Mlp
from gpt_jax.config.conversion import to_dict
from gpt_jax.config.variant import Variant
from gpt_jax.data import open_data
from gpt_jax.data.tokenizer import ByteTokenizer, CharacterTokenizer
from gpt_jax.model.gpt import GPT
from gpt_jax.runs import diagnostics, questions, watchdog
from gpt_jax.runs.checkpoint import Checkpoints
from gpt_jax.runs.console import sample_text
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.goodput import INIT, STEPS, Stopwatch
from gpt_jax.runs.metrics import DIAGNOSTICS, check_wandb, read
from gpt_jax.runs.rewind import TooManySpikes, read_left_out
from gpt_jax.runs.spikes import SPIKE
from gpt_jax.runs.train import train
from gpt_jax.runs.watchdog import HangWatch
from gpt_jax.training import evaluate
from gpt_jax.training.resolve import resolve
from gpt_jax.training.sharding import make_mesh, shard_batch
from gpt_jax.training.state import init_state
from gpt_jax.training.step import make_train_step
from tests.tiny import PROGRAMS, tiny_config

Place = Callable[[Config, Any], Config]

# ── where in a configuration something stands ────────────────────────────────────────────────────────────────────────


def in_model(**fields: Any) -> Config:
    return tiny_config(model=fields)


def in_block(config: Config, **fields: Any) -> Config:
    blocks = (dataclasses.replace(config.model.blocks[0], **fields),) * 2
    return dataclasses.replace(config, model=dataclasses.replace(config.model, blocks=blocks))


def in_attention(config: Config, **fields: Any) -> Config:
    return in_block(config, attention=dataclasses.replace(config.model.blocks[0].attention, **fields))


def with_values(config: Config, values: Any) -> Config:
    """In every layer; where they are shared, the first layer makes values of the same width."""
    if not isinstance(values, knobs.Shared):
        return in_attention(config, value=values)
    first, second = config.model.blocks
    made = dataclasses.replace(
        first, attention=dataclasses.replace(first.attention, value=knobs.Projected(values.width))
    )
    shared = dataclasses.replace(second, attention=dataclasses.replace(second.attention, value=values))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, blocks=(made, shared)))


BASE = tiny_config(schedule=knobs.WarmupCosine(warmup=2, steps=9))
PLACES: dict[type, Place] = {
    knobs.NormConfig: lambda c, v: in_block(c, norm=v),
    knobs.PositionConfig: lambda c, v: in_attention(c, position=v),
    knobs.RopeScaling: lambda c, v: in_attention(c, position=knobs.Rope(scaling=v)),
    knobs.MaskConfig: lambda c, v: in_attention(c, mask=v),
    knobs.TemperatureConfig: lambda c, v: in_attention(c, score=knobs.Score(temperature=v)),
    knobs.GateConfig: lambda c, v: in_attention(c, gate=v),
    knobs.ValueConfig: lambda c, v: with_values(c, v),
    knobs.ValueEmbeddingConfig: lambda c, v: in_attention(c, value=knobs.Projected(embedding=v)),
    knobs.ValueResidualConfig: lambda c, v: in_attention(c, value=knobs.Projected(residual=v)),
    knobs.AttentionConfig: lambda c, v: in_block(c, attention=v),
    knobs.MlpConfig: lambda c, v: in_block(c, mlp=v),
    knobs.AbsolutePositionConfig: lambda c, v: in_model(embedding=knobs.Embedding(position=v)),
    knobs.AdapterConfig: lambda c, v: in_block(dataclasses.replace(c, init_from="a run"), adapter=v),
    knobs.TokenizerConfig: lambda c, v: dataclasses.replace(c, data=text(tokenizer=v)),
    knobs.DataConfig: lambda c, v: dataclasses.replace(c, data=v),
    knobs.ScheduleConfig: lambda c, v: dataclasses.replace(c, schedule=v),
    knobs.OptimizerConfig: lambda c, v: dataclasses.replace(c, optimizer=v),
    knobs.SpikesConfig: lambda c, v: dataclasses.replace(c, train=dataclasses.replace(c.train, spikes=v)),
    knobs.Watchdog: lambda c, v: dataclasses.replace(c, watchdog=v),
    knobs.Diagnostics: lambda c, v: dataclasses.replace(c, diagnostics=v),
    knobs.Suites: lambda c, v: dataclasses.replace(c, suites=v),
    knobs.AverageConfig: lambda c, v: dataclasses.replace(c, train=dataclasses.replace(c.train, average=v)),
    knobs.Score: lambda c, v: in_attention(c, score=v),
    knobs.BlockConfig: lambda c, v: dataclasses.replace(
        c, model=dataclasses.replace(c.model, blocks=(v,) * 2), init_from=None if v.adapter is None else "a run"
    ),
    knobs.Embedding: lambda c, v: in_model(embedding=v),
    knobs.Head: lambda c, v: in_model(head=v),
    knobs.Init: lambda c, v: in_model(init=v, head=knobs.Head(tied=False)),
    knobs.ModelConfig: lambda c, v: dataclasses.replace(c, model=v),
    knobs.Train: lambda c, v: dataclasses.replace(c, train=v),
    knobs.Evaluation: lambda c, v: dataclasses.replace(c, evaluation=v),
    knobs.Checkpoint: lambda c, v: dataclasses.replace(c, checkpoint=v),
    knobs.Config: lambda c, v: v,
}


def text(**fields: Any) -> knobs.Text:
    return knobs.Text(path=str(TEXTS / "*.txt"), validation_fraction=0.2, **fields)


TEXTS = Path("set by a fixture")

# Instances to start from, for classes that can't be made from nothing or whose fields need companions.
STARTS: dict[str, Callable[[], Any]] = {
    "Attention": lambda: Attention(heads=2, kv_heads=2),
    "Differential": lambda: knobs.Differential(heads=4, kv_heads=4),
    "Latent": lambda: knobs.Latent(heads=2, rank=6, head_width=4, rotary_width=4),
    "Chunk": lambda: knobs.Chunk(4),
    "Average": lambda: knobs.Average(8),
    "LinearAttention": lambda: knobs.LinearAttention(heads=2),
    "Delta": lambda: knobs.Delta(heads=2),
    "Mlp": lambda: Mlp(32),
    "GatedMlp": lambda: knobs.GatedMlp(32),
    "Window": lambda: knobs.Window(4),
    "LinearScaling": lambda: knobs.LinearScaling(2.0),
    "DynamicNtk": lambda: knobs.DynamicNtk(2.0, 4),
    "Yarn": lambda: knobs.Yarn(8.0, 512),
    "Llama3Scaling": lambda: knobs.Llama3Scaling(8.0, 1.0, 64.0, 256),
    "LongRope": lambda: knobs.LongRope((1.0, 1.1, 1.2, 1.3), (1.0, 2.0, 3.0, 4.0), 4, factor=8.0),
    "Bpe": lambda: knobs.Bpe(270),
    "TokenizerFile": lambda: knobs.TokenizerFile(str(TEXTS / "bytes")),
    "Text": lambda: text(separator="\n", validation_tokens=50),
    "Copy": lambda: knobs.Copy(symbols=8, length=4, validation_rows=10),
    "Induction": lambda: knobs.Induction(symbols=8, length=12, shortest_period=2, longest_period=6, validation_rows=10),
    "Recall": lambda: knobs.Recall(symbols=8, pairs=2, length=12, validation_rows=10),
    "Sort": lambda: knobs.Sort(validation_rows=10),
    "HardRecall": lambda: knobs.HardRecall(symbols=12, pairs=2, length=14, validation_rows=10),
    "Needle": lambda: knobs.Needle(symbols=8, needles=2, length=12, validation_rows=10),
    "Track": lambda: knobs.Track(length=8, validation_rows=10),
    "WarmupStableDecay": lambda: knobs.WarmupStableDecay(decay=3, warmup=2, steps=9),
    "WarmupCosine": lambda: knobs.WarmupCosine(warmup=2, steps=9),
    "LinearDecay": lambda: knobs.LinearDecay(warmup=2, steps=9),
    "InverseSqrt": lambda: knobs.InverseSqrt(warmup=4),
    "BlockConfig": lambda: BASE.model.blocks[0],
    "ModelConfig": lambda: BASE.model,
    "Train": lambda: BASE.train,
    "Config": lambda: BASE,
    **{
        name: partial(lambda name: getattr(knobs, name)(weight_decay=0.1), name)
        for name in ("Adamw", "Lion", "Muon", "Sgd", "Adafactor")
    },
}

# The same for single fields that do nothing there.
FIELD_STARTS: dict[str, Callable[[], Any]] = {
    **{
        f"Score.{field}": lambda: knobs.Score(qk_norm=knobs.RmsNorm())
        for field in ("qk_norm", "qk_norm_over", "qk_norm_last")
    },
    "LongRope.short": lambda: dataclasses.replace(start_of(knobs.LongRope), original_length=16),
    "LongRope.attention_factor": lambda: dataclasses.replace(
        start_of(knobs.LongRope), factor=None, attention_factor=1.5
    ),
    **{
        f"Yarn.{field}": lambda: dataclasses.replace(start_of(knobs.Yarn), mscale=1.0, mscale_all_dim=0.8)
        for field in ("mscale", "mscale_all_dim")
    },
}

# Another value, where one made from the type would be illegal or the same.
OTHERS: dict[str, Callable[[], Any]] = {
    "Rope.fraction": lambda: 0.5,
    **{f"{kind}.factor": lambda: 3.0 for kind in ("LinearScaling", "DynamicNtk", "Yarn", "Llama3Scaling", "LongRope")},
    "Yarn.attention_factor": lambda: 1.5,
    "Yarn.beta_fast": lambda: 4.0,
    "Yarn.original_length": lambda: 4096,
    "Llama3Scaling.original_length": lambda: 1024,
    "LongRope.short": lambda: (2.0, 3.0, 4.0, 5.0),
    "LongRope.long": lambda: (2.0, 3.0, 4.0, 5.0),
    "Attention.heads": lambda: 4,
    "Attention.kv_heads": lambda: 1,
    "Differential.heads": lambda: 8,
    "Differential.kv_heads": lambda: 2,
    **{f"{kind}.bias": lambda: ("query",) for kind in ("Attention", "Differential")},
    "Latent.score": lambda: knobs.Score(scale=0.3),
    "Latent.position": lambda: knobs.Rope(theta=100.0),
    "ModelConfig.kernel": lambda: "chunked",
    "LinearAttention.heads": lambda: 4,
    "LinearAttention.bias": lambda: ("query",),
    "Delta.heads": lambda: 4,
    "Delta.key_heads": lambda: 1,
    "Delta.bias": lambda: ("query",),
    "Lora.targets": lambda: ("mlp/up",),
    "Attention.head_width": lambda: 12,
    "BlockConfig.attention": lambda: Attention(heads=4),
    "ModelConfig.width": lambda: 32,
    "ModelConfig.vocab_size": lambda: 40,
    "ModelConfig.blocks": lambda: BASE.model.blocks * 2,
    "Learned.length": lambda: 20,
    "Text.corpus": lambda: None,  # see SPECIAL
    "Text.path": lambda: str(TEXTS / "0.txt"),
    "Text.separator": lambda: " ",
    "Text.validation_fraction": lambda: 0.6,
    "Text.tokenizer": lambda: knobs.Characters(),
    "TokenizerFile.path": lambda: str(TEXTS / "characters"),
    "Config.train": lambda: dataclasses.replace(BASE.train, clip_norm=None),
    "Config.data": lambda: knobs.Sort(),
    "Config.optimizer": lambda: knobs.Lion(),
    "Config.schedule": lambda: knobs.Constant(),
    "Config.model": lambda: tiny_config(model={"width": 32}).model,
    "Train.accumulate": lambda: 2,
    "Train.spikes": lambda: knobs.SkipSpikes(),
    "Adafactor.decay_rate": lambda: 0.6,
    "Needle.needles": lambda: 1,
    **{f"{name}.decay": lambda: ("blocks/0/**",) for name in ("Adamw", "Lion", "Muon", "Sgd", "Adafactor")},
}


def other(name: str, hint: Any, value: Any) -> Any:
    """A value of the same type that is not `value`."""
    if name in OTHERS:
        return OTHERS[name]()
    options = [hint for hint in (typing.get_args(hint) or (hint,)) if hint is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        return next(option for option in typing.get_args(hint) if option != value)
    (first, *_) = options
    if typing.get_origin(first) is typing.Literal:
        return next(option for option in typing.get_args(first) if option != value)
    if isinstance(first, type) and issubclass(first, Variant):
        return next(start for start in map(start_of, first.choices.values()) if start != value)
    if first is bool:
        return not value
    if first is int:
        return 3 if value is None else value + 1
    if first is float:
        return value / 2 if value else 0.25
    if first is str:
        return f"{value}x"
    if dataclasses.is_dataclass(first):
        field = dataclasses.fields(first)[-1]
        changed = other(
            f"{first.__name__}.{field.name}", typing.get_type_hints(first)[field.name], getattr(value, field.name)
        )
        return dataclasses.replace(value, **{field.name: changed})
    raise AssertionError(f"{name} needs another value in OTHERS")


def start_of(kind: type) -> Any:
    return STARTS[kind.__name__]() if kind.__name__ in STARTS else kind()


def all_fields() -> list[str]:
    kinds = [kind for kind in vars(knobs).values() if dataclasses.is_dataclass(kind)]
    return [f"{kind.__name__}.{field.name}" for kind in kinds for field in dataclasses.fields(kind)]


# ── what can be observed ─────────────────────────────────────────────────────────────────────────────────────────────


def digest(value: Any) -> str:
    """A hash of a jaxpr with its constants, of arrays, or of anything with a repr."""
    if hasattr(value, "jaxpr"):
        program = re.sub(r" at 0x[0-9a-f]+", "", str(value))  # where Python keeps a function is no difference
        return digest([program, [np.asarray(const).tobytes() for const in value.consts]])
    plain = jax.tree.map(lambda leaf: leaf.tobytes() if hasattr(leaf, "tobytes") else leaf, value)
    return hashlib.sha256(repr(plain).encode()).hexdigest()


@cache
def observe(config: Config) -> tuple[str, ...]:
    """The data, and the programs of the initial values and of a step."""
    data = open_data(config.data, config.model.context_length, config.data_seed, progress=False)
    batches = [data.batch(step, config.train.batch_size) for step in range(2)]
    held_out = list(data.validation(8))
    config = resolve(config, data)
    model = GPT(config.model)
    init = partial(init_state, model, config)
    step = jax.make_jaxpr(make_train_step(model, config))(jax.eval_shape(init), batches[0])
    return digest([batches, held_out, data.tokenizer.content_hash()]), digest(jax.make_jaxpr(init)()), digest(step)


def written(config: Config, folder: Path) -> Any:
    """The steps of what a run records, evaluates and saves."""
    saved: list[int] = []
    save = Checkpoints.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", lambda self, step, *rest: (saved.append(step), save(self, step, *rest))[1])
        try:
            train(config, folder, console=Console(quiet=True), programs=PROGRAMS)
        except ValueError as error:
            assert "not finite" in str(error)
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    return [(r["step"], r["split"]) for r in read(RunFolder(folder))], saved, kept


def sampled(config: Config, folder: Path) -> str:
    train(config, folder, console=Console(quiet=True), programs=PROGRAMS)
    letters = open_data(config.data, 16, 0).tokenizer
    model = GPT(dataclasses.replace(config.model, vocab_size=letters.vocab_size))
    return sample_text(model, model.init(jax.random.key(0), np.zeros((1, 2), np.int32)), letters, config.prompt, 0)


def wandb_wanted(config: Config, folder: Path) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        try:
            check_wandb(config)
        except ValueError:
            return True
    return False


def base_wanted(config: Config, folder: Path) -> bool:
    try:
        train(config, folder, console=Console(quiet=True), programs=PROGRAMS)
    except FileNotFoundError:
        return True
    return False


def placed(config: Config, folder: Path) -> Any:
    data = open_data(config.data, config.model.context_length, 0)
    batch = shard_batch(data.batch(0, 8), make_mesh(), config.train.parallel)
    return jax.tree.map(lambda leaf: leaf.shape, batch)


def divided(config: Config, folder: Path) -> str:
    """Where the arrays of a state lie."""
    data = open_data(config.data, config.model.context_length, 0)
    return str(PROGRAMS.placement(resolve(config, data), make_mesh(axes=config.mesh)))


def evaluated(config: Config, folder: Path) -> list[tuple[int, ...]]:
    """Shapes of the batches that an evaluation reads."""
    shapes: list[tuple[int, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        place = shard_batch
        patch.setattr(
            evaluate, "shard_batch", lambda batch, *rest: (shapes.append(batch.tokens.shape), place(batch, *rest))[1]
        )
        train(config, folder, console=Console(quiet=True), programs=PROGRAMS)
    return shapes


def spiking(config: Config, folder: Path) -> list[int]:
    """The steps of which the run says that their loss spiked."""
    train(config, folder, console=Console(quiet=True), programs=PROGRAMS)
    return [record["step"] for record in read(RunFolder(folder), SPIKE)]


def rewound(config: Config, folder: Path) -> int:
    """How often the run goes back."""
    with contextlib.suppress(TooManySpikes):
        train(config, folder, console=Console(quiet=True), programs=PROGRAMS)
    return len(read_left_out(RunFolder(folder)).records)


def watched(config: Config, folder: Path) -> Any:
    """The bounds of phases, and how a hanging step ends."""
    ended: list[int] = []
    watch = Stopwatch()
    watch.laps.extend([0.01] * 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watchdog, "GRACE_SECONDS", 0.01)
        patch.setattr(watchdog, "_exit", ended.append)
        with HangWatch(config.watchdog, watch, RunFolder(folder)) as dog:
            watch.switch(STEPS)
            bounds = dog.limit(INIT), dog.limit(STEPS)
            time.sleep(0.6)
    return bounds, len(ended) > 0


def recomputed(config: Config, folder: Path) -> list[int]:
    """The steps that the run computes twice."""
    found: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt_jax.runs.recompute.parts", lambda result: found.append(int(result[0].step)) or {})
        train(config, folder, console=Console(quiet=True), programs=PROGRAMS)
    return found


def diagnosed(config: Config, folder: Path) -> Any:
    """The steps at which the run scores its heads, and shapes of the rows that it reads."""
    shapes: list[tuple[int, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnostics, "head_table", lambda model, params, tokens, **_: shapes.append(tokens.shape) or {})
        train(config, folder, console=Console(quiet=True), programs=PROGRAMS)
    return [record["step"] for record in read(RunFolder(folder), DIAGNOSTICS)], shapes


def asked(config: Config, folder: Path) -> Any:
    """How often the run is asked what."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "terms", lambda self, batch: [batch.weights] * 3)
        watches = questions.watch_suites(config, open_data(config.data, 16, 0), make_mesh())
        return [(watch.every, watch.measure({})) for watch in watches]  # intervals show how many questions


DIVERGING = dataclasses.replace(BASE, optimizer=knobs.Sgd(learning_rate=1e25), schedule=knobs.Constant())
DIVERGING = dataclasses.replace(DIVERGING, train=dataclasses.replace(BASE.train, steps=30, clip_norm=None))

SPIKING = PLACES[knobs.SpikesConfig](BASE, knobs.LogSpikes(window=2, sigmas=0.1))
REWINDING = PLACES[knobs.SpikesConfig](BASE, knobs.RewindSpikes(window=2, sigmas=0.1, most=1))
DIAGNOSED = dataclasses.replace(BASE, diagnostics=knobs.Diagnostics(every=4, rows=2, tokens=4))
ASKED = dataclasses.replace(BASE, suites=knobs.Suites("copy", every=4, questions=2))
HANGING = dataclasses.replace(BASE, watchdog=knobs.Watchdog(floor_seconds=0.2))

# Fields that show in what a run does, not in what it computes: where to start, another value, what to look at.
IN_THE_RUN: dict[str, tuple[Config, Any, Callable[[Config, Path], Any]]] = {
    "Train.steps": (BASE, 4, written),
    "Train.log_every": (BASE, 2, written),
    "LogSpikes.window": (SPIKING, 6, spiking),
    "LogSpikes.sigmas": (SPIKING, 50.0, spiking),
    "RewindSpikes.window": (REWINDING, 6, rewound),
    "RewindSpikes.sigmas": (REWINDING, 50.0, rewound),
    "RewindSpikes.most": (REWINDING, 2, rewound),
    "Watchdog.factor": (HANGING, 90.0, watched),
    "Watchdog.floor_seconds": (HANGING, 1.0, watched),
    "Watchdog.pause_seconds": (HANGING, 9.0, watched),
    "Watchdog.abort": (HANGING, True, watched),
    "Config.watchdog": (HANGING, knobs.Watchdog(), watched),
    "Config.recompute_every": (BASE, 2, recomputed),
    "Diagnostics.every": (DIAGNOSED, 3, diagnosed),
    "Diagnostics.rows": (DIAGNOSED, 3, diagnosed),
    "Diagnostics.tokens": (DIAGNOSED, 6, diagnosed),
    "Config.diagnostics": (DIAGNOSED, knobs.Diagnostics(), diagnosed),
    "Suites.names": (ASKED, None, asked),
    "Suites.every": (ASKED, 3, asked),
    "Suites.questions": (ASKED, 3, asked),
    "Config.suites": (ASKED, knobs.Suites(), asked),
    "Train.max_skipped": (DIVERGING, 3, written),
    "Train.parallel": (BASE, "pmap", placed),
    "Evaluation.every": (BASE, 3, written),
    "Evaluation.batch_size": (BASE, 4, evaluated),
    "Checkpoint.every": (BASE, 3, written),
    "Checkpoint.keep": (BASE, 2, written),
    "Config.evaluation": (BASE, knobs.Evaluation(every=3), written),
    "Config.checkpoint": (BASE, knobs.Checkpoint(every=3), written),
    "Config.mesh": (BASE, "fsdp=2,tensor=2", divided),
    "Config.prompt": (dataclasses.replace(BASE, prompt="AB"), "BA", sampled),
    "Config.init_from": (BASE, "nowhere", base_wanted),
    "Config.wandb": (BASE, "project", wandb_wanted),
}


@pytest.fixture(scope="module", autouse=True)
def texts(tmp_path_factory: pytest.TempPathFactory) -> typing.Iterator[None]:
    global TEXTS
    TEXTS = tmp_path_factory.mktemp("texts")
    generator = np.random.default_rng(0)
    for number in range(6):
        words = generator.choice(["it's", "alpha 123", "beta", "gamma  12\n"], 40)
        (TEXTS / f"{number}.txt").write_text(" ".join(words))
    ByteTokenizer().save(TEXTS / "bytes")
    CharacterTokenizer.train([(file).read_text() for file in TEXTS.glob("*.txt")]).save(TEXTS / "characters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("name", all_fields())
def test_changing_a_field_alone_changes_what_is_observed(name: str, tmp_path: Path) -> None:
    """Observed are the data and the jaxprs of `init` and of a training step, or what the run does (`IN_THE_RUN`)."""
    kind = getattr(knobs, name.split(".")[0])
    field = name.split(".")[1]
    if name in IN_THE_RUN:
        base, value, look = IN_THE_RUN[name]
        place = next(place for holder, place in PLACES.items() if issubclass(kind, holder))
        places = (
            base,
            base.train,
            base.evaluation,
            base.checkpoint,
            base.train.spikes,
            base.watchdog,
            base.diagnostics,
            base.suites,
        )
        start = next(v for v in places if isinstance(v, kind))
        changed = place(base, dataclasses.replace(start, **{field: value}))
        assert look(base, tmp_path / "a") != look(changed, tmp_path / "b")
        return
    if name == "Text.corpus":
        with pytest.raises(ValueError, match='"nowhere"'):
            open_data(knobs.Text(corpus="nowhere"), 16, 0)
        return
    place = next(place for holder, place in PLACES.items() if issubclass(kind, holder))
    start = FIELD_STARTS[name]() if name in FIELD_STARTS else start_of(kind)
    hint = (
        kind.compact_hints() if hasattr(kind, "compact_hints") and field != "blocks" else typing.get_type_hints(kind)
    )[field]
    value = other(name, hint, getattr(start, field))
    assert to_dict(value) != to_dict(getattr(start, field))
    assert observe(place(BASE, start)) != observe(place(BASE, dataclasses.replace(start, **{field: value})))


def test_equal_configurations_have_equal_observations() -> None:
    """Observations are functions of the configuration: made twice, or with a field changed that they exclude, nothing
    differs.
    """
    assert observe.__wrapped__(BASE) == observe.__wrapped__(BASE)
    assert observe(dataclasses.replace(BASE, prompt="other")) == observe(BASE)


def test_every_two_types_that_a_field_accepts_differ() -> None:
    """In the data, or in the jaxprs of the initial values and of a training step."""
    for holder, place in PLACES.items():
        if not issubclass(holder, Variant):
            continue
        own = [choice for choice in holder.choices.values() if choice.__module__.startswith(knobs.__name__)]
        seen: dict[tuple[str, ...], str] = {}
        for choice in own:
            # The same as what was saved; as Causal without a prefix; and as LogSpikes but for what a run does next.
            if choice in (knobs.TokenizerFile, knobs.Prefix, knobs.RewindSpikes):
                continue
            observed = observe(place(BASE, start_of(choice)))
            assert observed not in seen, f"{choice.__name__} does what {seen[observed]} does"
            seen[observed] = choice.__name__
