"""Mixers with a state as sublayers of a model, against the papers' equations: decoding, training, copying."""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from rich.console import Console

from gpt_jax import GPT, Greedy, generate, init_cache, load_run
from gpt_jax.config import (
    Attention,
    BlockConfig,
    Checkpoint,
    Copy,
    Delta,
    Evaluation,
    Init,
    LayerNorm,
    LinearAttention,
    Mlp,
    ModelConfig,
    RmsNorm,
    Rope,
    pattern,
)
from gpt_jax.model.cache import Cache
from gpt_jax.model.delta import gated_delta
from gpt_jax.model.linear_attention import linear_attention
from gpt_jax.model.paths import map_with_path
from gpt_jax.model.recurrence import LogDecay
from gpt_jax.model.registry import mixer_of
from gpt_jax.model.row import Row
from gpt_jax.model.stack import canonical, stacked
from gpt_jax.runs.train import train
from tests import reference_recurrent
from tests.reference import as_float64
from tests.reference_attention import Row as ReferenceRow
from tests.tiny import apply, random_params, tiny, tiny_config

T = 8
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, T)), jnp.int32)
SEGMENTS = np.array([[0, 0, 0, 1, 1, 1, 1, 2], [5] * T])
POSITIONS = np.array([[0, 1, 2, 0, 1, 2, 3, 0], list(range(T))])
KINDS: dict[str, LinearAttention | Delta] = {
    "linear": LinearAttention(2),
    "relu, narrow": LinearAttention(2, 6, 3, feature_map="relu", convolution=3, bias=("query", "value", "output")),
    "rotated": LinearAttention(2, 4, decay="gated", position=Rope(fraction=0.5), gate="sigmoid"),
    "retention": LinearAttention(
        2, 4, 6, None, False, "fixed", Rope(theta=100.0), output_norm=LayerNorm(eps=0.1, bias=False), gate="silu"
    ),
    "lightning": LinearAttention(4, 4, None, "silu", False, "gated", convolution=2, output_norm=RmsNorm(eps=0.1)),
    "gated delta": Delta(4, output_norm=RmsNorm(eps=0.1), head_width=4),
    "delta": Delta(2, None, 4, 6, None, True, ("key", "output"), 2, None, None),
    "shared keys": Delta(4, 2, 4, 3, "fixed", output_norm=RmsNorm(eps=0.1), gate="sigmoid", convolution=None),
}


def alone(c: LinearAttention | Delta, **model: Any) -> ModelConfig:
    """One layer of nothing but the mixer."""
    return tiny(c, None, 1, **model)


def hybrid(letters: str = "DLA", **model: Any) -> ModelConfig:
    """Layers with a state of both kinds, and one with softmax attention."""
    blocks = pattern(
        letters,
        D=BlockConfig(KINDS["gated delta"], None, RmsNorm(eps=0.1), convolution=2),
        L=BlockConfig(KINDS["lightning"], Mlp(12), RmsNorm(eps=0.1)),
        A=BlockConfig(Attention(2, position=Rope()), None, RmsNorm(eps=0.1)),
    )
    return tiny(blocks=blocks, **model)


@pytest.mark.parametrize("name", KINDS)
def test_a_sublayer_computes_the_papers_equations(name: str) -> None:
    c, model = KINDS[name], alone(KINDS[name])
    mixer = mixer_of(c)(c, model, 1.0)
    row = Row(TOKENS, jnp.arange(T), jnp.asarray(POSITIONS), jnp.asarray(SEGMENTS))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, T, 8)), jnp.float32)
    shapes = jax.eval_shape(lambda: mixer.init(jax.random.key(0), x, row, None, {}, False))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.5, jnp.float32), shapes)
    y, cache, shared = jax.jit(mixer.apply, static_argnums=5)(params, x, row, None, {}, False)
    assert cache is None and shared == {}
    reference = (
        reference_recurrent.linear_attention if isinstance(c, LinearAttention) else reference_recurrent.gated_delta
    )
    for b in range(2):
        there = ReferenceRow(TOKENS[b], SEGMENTS[b], POSITIONS[b], 0, T, model)
        wanted = reference(c, as_float64(params["params"]), list(np.asarray(x[b], np.float64)), there)
        np.testing.assert_allclose(y[b], wanted, atol=1e-5)


@pytest.mark.parametrize("name", [*KINDS, "hybrid"])
def test_decoding_in_pieces_is_the_full_forward_and_left_padding_writes_nothing(name: str) -> None:
    """Row 0 is full, row 1 has two tokens of left padding; the state after them is that of the row alone."""
    c = hybrid() if name == "hybrid" else alone(KINDS[name])
    model, padding = GPT(c), (0, 2)
    tokens = np.random.default_rng(1).integers(0, 32, (2, 13)).astype(np.int32)
    params = random_params(model, size=0.5)

    def decode(tokens: np.ndarray, cache: Cache, pieces: tuple[int, ...]) -> tuple[np.ndarray, Cache]:
        out, at = [], 0
        for piece in pieces:
            logits, cache = apply(model, params, tokens[:, at : at + piece], cache=cache)
            out.append(logits)
            at += piece
        return np.concatenate(out, axis=1), cache

    # Of the first two pieces, row 1 has nothing but padding in one, and begins in the other.
    out, cache = decode(tokens, init_cache(c, 2, 13, jnp.array(padding)), (1, 3, 1, 3, 1, 3, 1))
    for b, start in enumerate(padding):
        row = np.zeros((1, 13), np.int32)  # zeros to its right, which no earlier token sees, make one shape of both
        row[0, : 13 - start] = tokens[b, start:]
        full = np.asarray(apply(model, params, row))[0, : 13 - start]
        np.testing.assert_allclose(out[b, start:], full, atol=1e-5)
    _, only = decode(np.repeat(tokens[1:, 2:], 2, axis=0), init_cache(c, 2, 13), (1, 3, 1, 3, 3))
    for layer, other in zip(cache.layers, only.layers, strict=True):
        for leaf in {"state", "normalizer"} & layer.keys():
            np.testing.assert_allclose(layer[leaf][1], other[leaf][0], atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_a_cache_has_the_same_size_for_rows_of_any_length(name: str) -> None:
    c, model = KINDS[name], alone(KINDS[name])
    shapes = [jax.tree.map(jnp.shape, init_cache(model, 3, length).layers) for length in (1, 16, 5000)]
    assert shapes[0] == shapes[1] == shapes[2]
    H, D, E = c.heads, c.resolved_head_width(8), c.resolved_value_width(8)
    K = c.resolved_key_heads if isinstance(c, Delta) else H
    numbers = H * D * E + (0 if c.convolution is None else (c.convolution - 1) * (2 * K * D + H * E))
    numbers += H * D if isinstance(c, LinearAttention) and c.normalize else 0
    cache = init_cache(model, 3, 16).layers[0]
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(cache)) == 3 * 4 * numbers
    half = init_cache(dataclasses.replace(model, dtype="bfloat16"), 3, 16).layers[0]
    assert all((leaf.dtype == jnp.float32) == (name in ("state", "normalizer")) for name, leaf in half.items())


def products(jaxpr: Any) -> int:
    """Operations of the matrix products in a program."""
    total = 0
    for equation in jaxpr.eqns:
        shapes = [variable.aval.shape for variable in (*equation.invars, *equation.outvars)]
        if equation.primitive.name == "dot_general":
            summed = equation.params["dimension_numbers"][0][0]
            total += 2 * math.prod(shapes[-1]) * math.prod(shapes[0][axis] for axis in summed)
        inner = sum(products(sub) for sub in jaxprs_in_params(equation.params))
        total += inner * (equation.params["length"] if equation.primitive.name == "scan" else 1)
    return total


@pytest.mark.parametrize("c", [LinearAttention(3, 8, 6, "silu", False), Delta(3, None, 8, 6)], ids=["linear", "delta"])
def test_mixing_flops_are_the_products_of_the_chunks(c: LinearAttention | Delta) -> None:
    for T in (16, 64, 256):
        query, key, value, scalars = (jnp.zeros((1, 3, T, *width)) for width in [(8,), (8,), (6,), ()])
        if isinstance(c, LinearAttention):
            program = jax.make_jaxpr(linear_attention)(query, key, value, scalars)
        else:
            program = jax.make_jaxpr(gated_delta)(query, key, value, scalars, scalars)
        assert mixer_of(c).mixing_flops(c, tiny(c), T) * T == products(program.jaxpr)


def test_packed_documents_score_as_if_each_were_alone() -> None:
    model = GPT(hybrid())
    params = random_params(model, size=0.5)
    options = {"segments": jnp.asarray(SEGMENTS[:1]), "positions": jnp.asarray(POSITIONS[:1])}
    together = np.asarray(apply(model, params, TOKENS[:1], **options))
    for a, b in ((0, 3), (3, 7), (7, 8)):
        alone = np.zeros((1, T), np.int32)  # padded to one shape, to the right of the document
        alone[0, : b - a] = TOKENS[0, a:b]
        np.testing.assert_allclose(together[:, a:b], np.asarray(apply(model, params, alone))[:, : b - a], atol=1e-5)


def test_scan_and_remat_change_no_initial_value_and_no_gradient() -> None:
    results, initial = [], []
    for scan, remat in [(False, None), (True, None), (False, "full"), (True, "dots")]:
        model = GPT(hybrid("DLDL", scan=scan, remat=remat))
        initial += [] if remat else [canonical(model.init(jax.random.key(3), TOKENS))]
        params = stacked(model.config, random_params(GPT(hybrid("DLDL")), size=0.5))
        loss = jax.jit(jax.grad(lambda params, model=model: jnp.square(model.apply(params, TOKENS)).mean()))
        results.append(canonical(loss(params)))
    jax.tree.map(np.testing.assert_array_equal, *initial)
    for gradients in results[1:]:
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), gradients, results[0])


def test_the_state_is_float32_in_bfloat16_too() -> None:
    full, half = GPT(hybrid()), GPT(hybrid(dtype="bfloat16"))
    params = random_params(full, size=0.5)
    logits, narrow = (np.asarray(apply(model, params, TOKENS)) for model in (full, half))
    assert 1e-4 < np.abs(logits - narrow).max() < 0.2
    cached, cache = apply(half, params, TOKENS, cache=init_cache(half.config, 2, T))
    np.testing.assert_allclose(cached, narrow, atol=2e-2)
    assert cache.layers[0]["state"].dtype == jnp.float32
    gradients = jax.jit(jax.grad(lambda params: half.apply(params, TOKENS).std()))(params)
    assert all(leaf.dtype == jnp.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_switches_leave_the_other_initial_values_unchanged() -> None:
    plain = Delta(2, decay=None, convolution=None, output_norm=None, gate=None)
    changed = Delta(2, decay="gated", convolution=4, output_norm=RmsNorm(), gate="silu", bias=("query",))
    a, b = (GPT(alone(c)).init(jax.random.key(1), TOKENS) for c in (plain, changed))
    names: list[str] = []
    flat = {}
    map_with_path(flat.__setitem__, b)
    map_with_path(lambda path, leaf: names.append(path) or np.testing.assert_array_equal(leaf, flat[path]), a)
    assert "blocks/0/attention/beta/kernel" in names and len(flat) > len(names)


def test_decays_are_initialised_as_in_mamba_2() -> None:
    x = jnp.zeros((1, 1, 3))
    module = LogDecay(1000, 0.02, "float32")
    params = module.init(jax.random.key(0), x)
    rate = np.exp(params["params"]["log_rate"])
    steps = -module.apply(params, x)[0, 0] / rate
    assert 1 <= rate.min() < 1.5 and 15.5 < rate.max() <= 16
    assert 0.00099 < steps.min() < 0.0011 and 0.09 < steps.max() < 0.101
    np.testing.assert_allclose(np.median(np.log(steps)), np.log(0.01), atol=0.2)


@pytest.mark.parametrize("letters", ["DDDA", "DL"])
def test_it_learns_to_copy_and_generates(letters: str, tmp_path: Path) -> None:
    """Three symbols, a separator, then the three again; without softmax too, since what is asked for fits the state."""
    blocks = pattern(
        letters,
        D=BlockConfig(Delta(2), Mlp(32)),
        L=BlockConfig(
            LinearAttention(2, decay="gated", position=Rope(), convolution=4, gate="silu", output_norm=RmsNorm()),
            Mlp(32),
        ),
        A=BlockConfig(Attention(2, position=Rope()), Mlp(32)),
    )
    config = tiny_config(
        model={"blocks": blocks, "width": 32, "init": Init(kernel_std=None)},
        steps=200,
        data=Copy(symbols=4, length=3, validation_rows=50),
        evaluation=Evaluation(every=200, batch_size=50),
        checkpoint=Checkpoint(every=200),
    )
    outcome = train(config, tmp_path / "run", console=Console(quiet=True))
    assert outcome.validation is not None
    assert outcome.validation["loss"] < 0.1  # uniform: 1.6
    model, params, _ = load_run(tmp_path / "run")
    prompts = [[0, 1, 2, 4], [3, 0, 2, 4, 3]]  # 4 is the separator
    out = generate(model, params, prompts, key=jax.random.key(0), max_new_tokens=2, sampler=Greedy())
    np.testing.assert_array_equal(out.tokens, [[0, 1], [0, 2]])
