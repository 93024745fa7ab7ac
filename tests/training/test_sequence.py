"""Rows divided by positions: the gradients and losses of one device, equal work, and nothing that holds a whole row."""

import dataclasses
import re
from collections import Counter
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.config import (
    Adamw,
    Alibi,
    Attention,
    Average,
    Chunk,
    Config,
    Copy,
    Delta,
    Differential,
    Head,
    Latent,
    LinearAttention,
    Lora,
    ModelConfig,
    Prefix,
    Rope,
    Score,
    Shared,
    T5Bias,
    Text,
    Train,
    Window,
)
from gpt_jax.config.errors import ConfigError
from gpt_jax.data import Batch
from gpt_jax.model import ring
from gpt_jax.model.blocked import HIDDEN
from gpt_jax.model.mask import Side
from gpt_jax.model.paths import map_with_path
from gpt_jax.training.evaluate import compile_sums_by_row
from gpt_jax.training.partition import shardings
from gpt_jax.training.programs import Programs
from gpt_jax.training.sharding import make_mesh, shard_batch, traced_under
from gpt_jax.training.step import _loss, accumulate
from tests.tiny import VOCABULARY, random_params, tiny

# Of parts of 4 positions: Window(4) reaches into one neighbour, Window(6) into two, Window(10) into all.
KINDS: dict[str, Any] = {
    "grouped": Attention(heads=4, kv_heads=2, position=Rope()),
    "window": Attention(heads=4, kv_heads=2, position=Rope(), mask=Window(4)),
    "window of two": Attention(heads=4, mask=Window(6), forget_gate=True),
    "window of all": Attention(heads=4, mask=Window(10)),
    "chunk": Attention(heads=4, mask=Chunk(4), convolution=3),
    "sinks": Attention(heads=4, score=Score(normalizer="sinks", softcap=5.0)),
    "alibi": Attention(heads=4, position=Alibi(), forget_gate=True),
    "t5": Attention(heads=4, position=T5Bias(buckets=8, max_distance=16)),
    "sigmoid": Attention(heads=4, score=Score(normalizer="sigmoid")),
    "prefix": Attention(heads=4, mask=Prefix()),
    "latent": Latent(heads=4, rank=8, head_width=4, rotary_width=4),
    "linear": LinearAttention(heads=4),
    "linear of two heads": LinearAttention(heads=2, decay="gated"),
    "delta": Delta(heads=4),
    "differential": Differential(heads=4),
    "average": Average(value_width=8),
}
QUICK = ("grouped", "window", "window of two", "sinks", "alibi", "prefix", "latent", "linear", "differential")


def model_of(kind: str, **changes: Any) -> ModelConfig:
    return tiny(KINDS[kind], **{"width": 16, "layers": 1, "head": Head(tied=False)} | changes)


def make_batch(rows: int = 4, positions: int = 16, packed: bool = True) -> Batch:
    """Packed rows have documents of about five tokens, which end anywhere."""
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, VOCABULARY, (2, rows, positions)).astype(np.int32)
    weights = rng.choice([0.0, 1.0], (rows, positions)).astype(np.float32)
    if not packed:
        return Batch(tokens, targets, weights)
    starts = rng.random((rows, positions)) < 0.2
    starts[:, 0] = True
    at = np.arange(positions)
    begun = np.maximum.accumulate(np.where(starts, at, 0), axis=1)
    return Batch(tokens, targets, weights, np.cumsum(starts, 1).astype(np.int32), (at - begun).astype(np.int32))


def compiled(model: ModelConfig, axes: str, devices: int, batch: Batch, parts: int = 1) -> Any:
    """The program of the raw gradients, and its arguments."""
    mesh = make_mesh(jax.devices()[:devices], axes)
    params = random_params(GPT(model), size=0.3)  # larger ones make a delta rule's states ill-conditioned
    places = shardings(model, mesh, params)

    def of(params: Any, batch: Batch) -> Any:
        loss = _loss(GPT(model), Train(1, 8, accumulate=parts), params, jnp.float32(1 / 32))
        return accumulate(loss, params, batch, jax.random.key(0), parts)[0]

    arguments = jax.device_put(params, places), shard_batch(batch, mesh, "jit", parts)
    return jax.jit(traced_under(mesh, of), out_shardings=places).lower(*arguments).compile(), arguments


@cache
def gradients(model: ModelConfig, axes: str, devices: int, packed: bool = True, parts: int = 1) -> Any:
    program, arguments = compiled(model, axes, devices, make_batch(packed=packed), parts)
    return jax.tree.map(np.asarray, program(*arguments))


def assert_close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """The norm of each array's difference, relative to the array's."""

    def check(path: str, a: Any, b: Any) -> None:
        assert np.linalg.norm(a - b) <= tolerance * max(float(np.linalg.norm(b)), 1e-3), path

    map_with_path(check, found, expected)


@pytest.mark.parametrize("kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_gradients_are_those_of_one_device(kind: str) -> None:
    """Of packed rows, and of rows that are one document."""
    packed = kind != "prefix"
    model = model_of(kind)
    assert_close(gradients(model, "sequence=4", 4, packed), gradients(model, "data=1", 1, packed))


def test_so_are_those_of_rows_of_one_document() -> None:
    model = model_of("grouped")
    assert_close(gradients(model, "sequence=4", 4, False), gradients(model, "data=1", 1, False))


ONE_KEY_HEAD = tiny(Attention(heads=4, kv_heads=1, position=Rope()), width=16, layers=1, head=Head(tied=False))


@pytest.mark.parametrize(
    ("model", "axes"),
    [
        (model_of("sinks"), "data=2,sequence=2"),
        (ONE_KEY_HEAD, "tensor=2,sequence=2"),  # which gets a copy of the key head on each device
        pytest.param(model_of("latent"), "fsdp=2,sequence=2", marks=pytest.mark.slow),
        pytest.param(model_of("alibi"), "tensor=2,sequence=2", marks=pytest.mark.slow),
        pytest.param(model_of("sinks"), "tensor=2,sequence=2", marks=pytest.mark.slow),
        pytest.param(model_of("linear"), "tensor=2,sequence=2", marks=pytest.mark.slow),
        pytest.param(model_of("delta"), "tensor=2,sequence=2", marks=pytest.mark.slow),
    ],
)
def test_beside_other_axes(model: ModelConfig, axes: str) -> None:
    assert_close(gradients(model, axes, 4), gradients(model, "data=1", 1))


BOTH = {"blocks": (model_of("grouped").blocks[0], model_of("window").blocks[0]) * 2}
FIRST = model_of("grouped").blocks[0]
SHARED = (FIRST, dataclasses.replace(FIRST, attention=Attention(heads=4, kv_heads=2, position=Rope(), value=Shared())))
ADAPTED = tuple(dataclasses.replace(block, adapter=Lora(rank=2)) for block in BOTH["blocks"])


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({**BOTH, "scan": True, "remat": "full", "head": Head(block=3)}, 2),
        pytest.param(BOTH, 1, marks=pytest.mark.slow),
        pytest.param({"blocks": SHARED}, 1, marks=pytest.mark.slow),
        pytest.param({"blocks": ADAPTED, "head": Head()}, 1, marks=pytest.mark.slow),
        pytest.param({"remat": "dots"}, 2, marks=pytest.mark.slow),
    ],
    ids=["scanned, recomputed, by blocks, accumulated", "looped", "shared keys", "adapters", "dots"],
)
def test_however_the_model_is_executed(changes: dict[str, Any], parts: int) -> None:
    model = dataclasses.replace(model_of("grouped"), **changes)
    found = gradients(model, "data=2,sequence=2", 4, True, parts)
    assert_close(found, gradients(model, "data=1", 1, True, parts))


def test_training_has_the_losses_of_one_device() -> None:
    """Twenty steps, and the sums of an evaluation after them."""
    model = dataclasses.replace(model_of("grouped"), vocab_size=10, head=Head(block=3), scan=True, remat="full")
    found = {}
    for axes, devices in (("data=1", 1), ("data=2,sequence=2", 4)):
        config = Config(model, Copy(symbols=8, length=4), Adamw(1e-2), Train(20, 4, accumulate=2), mesh=axes)
        mesh, programs, losses = make_mesh(jax.devices()[:devices], axes), Programs(), []
        state, step = programs.init(config, mesh), programs.step(config, mesh)
        for seed in range(20):
            tokens = np.random.default_rng(seed).integers(0, 10, (4, 16)).astype(np.int32)
            batch = make_batch()._replace(tokens=tokens, targets=np.roll(tokens, -1, 1))
            state, metrics = step(state, shard_batch(batch, mesh, "jit", 2))
            losses.append(float(metrics["loss"]))
        sums = compile_sums_by_row(GPT(model), mesh)(state.params, shard_batch(batch, mesh, "jit"))
        found[devices] = losses, np.asarray(sums)
    np.testing.assert_allclose(found[4][0], found[1][0], rtol=2e-4)
    np.testing.assert_allclose(found[4][1], found[1][1], rtol=1e-3)


# ── what moves, and how much each device computes ────────────────────────────────────────────────────────────────────

COLLECTIVES = r" (all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("


@pytest.mark.parametrize("kind", ["grouped", "window"])
def test_no_device_holds_a_whole_row(kind: str) -> None:
    """Nothing in the program is as long as a row. With a window of one part, keys come from the device before alone."""
    model = dataclasses.replace(model_of(kind), context_length=64)
    text = compiled(model, "sequence=4", 4, make_batch(1, 64))[0].as_text()
    assert Counter(re.findall(COLLECTIVES, text)).keys() == {"collective-permute"}
    lengths = [int(n) for shape in re.findall(r"(?:f32|s32|pred)\[([\d,]+)\]", text) for n in shape.split(",")]
    assert max(lengths) < 64
    if kind == "window":
        routes = set(re.findall(r"source_target_pairs=\{([\d,{}]*)\}", text))
        assert routes == {"{0,1},{1,2},{2,3},{3,0}", "{1,0},{2,1},{3,2},{0,3}"}  # there, and gradients back


def test_all_devices_compute_equally_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in tiles of scores: a causal mask hides half of them, from each device equally many."""
    monkeypatch.setattr(ring, "TILE", 2)
    counts: Counter[int] = Counter()
    mesh = make_mesh(jax.devices()[:4], "sequence=4")
    x = jnp.ones((1, 1, 32, 4))
    side = Side(jnp.arange(32), jnp.arange(32)[None])

    def adjust(_: Any, scores: Any, queries: Any, keys: Any) -> Any:
        jax.debug.callback(lambda device: counts.update([int(device)]), jax.lax.axis_index("sequence"))
        return jnp.where(queries.steps[:, None] >= keys.steps, scores, HIDDEN)

    def attend(x: Any) -> Any:
        options = {"sinks": None, "normalizer": "softmax", "reach": None, "is_causal": True, "knows_heads": False}
        return ring.ring_attention(x, x, x, side, side, adjust, None, **options)

    placed = jax.device_put(x, jax.NamedSharding(mesh, jax.P(None, None, "sequence")))
    jax.block_until_ready(jax.jit(traced_under(mesh, attend))(placed))
    jax.effects_barrier()
    assert set(counts) == {0, 1, 2, 3} and len(set(counts.values())) == 1
    assert sum(counts.values()) == 16 * 17 / 2  # of 16 · 16


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def run_of(axes: str, model: ModelConfig, **train: Any) -> Config:
    return Config(model, Text(), Adamw(1e-2), Train(20, 8, **train), mesh=axes)


@pytest.mark.parametrize(
    ("changes", "train", "message"),
    [
        ({"context_length": 12}, {}, "model.context_length.* a multiple of 8"),
        ({"kernel": "splash"}, {}, 'choose "chunked"'),
        ({"kernel": "einsum"}, {}, 'choose "chunked"'),
        ({"blocks": tiny(Attention(heads=2, dropout=0.1)).blocks}, {}, "attention.dropout"),
        ({}, {"parallel": "pmap"}, "divides rows alone"),
    ],
)
def test_what_cannot_be_divided_is_refused(changes: dict[str, Any], train: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_of("data=2,sequence=4", dataclasses.replace(model_of("grouped"), **changes), **train)


def test_a_size_that_the_devices_decide_is_checked_with_the_batch() -> None:
    run_of("sequence=-1", dataclasses.replace(model_of("grouped"), context_length=12))
    with pytest.raises(ConfigError, match="a multiple of 8"):
        shard_batch(make_batch(4, 12), make_mesh(jax.devices()[:4], "sequence=-1"), "jit")
