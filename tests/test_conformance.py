"""What every legal model must do, on a covering set of them: each pair of choices occurs together in some case."""

import dataclasses
import itertools
from collections import OrderedDict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from allpairspy import AllPairs
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gpt_jax import GPT, ModelConfig, init_cache
from gpt_jax.config import (
    Alibi,
    Attention,
    BlockConfig,
    Causal,
    Embedding,
    GatedMlp,
    Head,
    Init,
    LayerNorm,
    Learned,
    Mlp,
    RmsNorm,
    Rope,
    Score,
    Sinusoidal,
    Window,
    pattern,
)
from gpt_jax.model.stack import canonical, stacked
from tests import reference
from tests import tiny as models
from tests.tiny import VOCABULARY, tiny

W, T = 3, 8
random_params = partial(models.random_params, size=0.5)  # activations of order 1 in every case
CHOICES: OrderedDict[str, list[Any]] = OrderedDict(
    norm=[LayerNorm(), LayerNorm(scale=False, bias=False), RmsNorm(eps=1e-3)],
    residual=["pre", "post", "sandwich", "parallel"],
    position=[None, Rope(), Rope(theta=100.0, fraction=0.5, interleaved=True), Alibi()],
    code=[None, Learned(), Sinusoidal(theta=50.0)],
    masks=[(Causal(),), (Window(W),), (Window(W), Causal())],
    kv_heads=[4, 2, 1],
    mlp=[Mlp(12, "gelu"), Mlp(12, "relu2", bias=True), GatedMlp(12, "silu"), None],
    # Of 4 values the variance may be tiny, and dividing by it blows rounding up: hence the large eps.
    score=[Score(), Score(0.7, RmsNorm()), Score(None, LayerNorm(eps=0.1), 2.0)],
    convolution=[(None, None), (3, None), (None, 2)],  # on the sublayers' inputs; on queries, keys and values
    biases=[(False, False), (True, False), (False, True)],
    head=[Head(), Head(tied=False, bias=True), Head(bias=True, softcap=2.0)],
    embedding_norm=[None, RmsNorm()],
    final_norm=[RmsNorm(), None],
    scan=[False, True],
    remat=[None, "full", "dots"],
    dtype=["float32", "bfloat16"],
)


def build(case: dict[str, Any]) -> ModelConfig:
    masks = case["masks"]
    bias, output_bias = case["biases"]
    convolution, projected = case["convolution"]
    letters = {
        letter: BlockConfig(
            Attention(4, case["kv_heads"], 4, mask, case["position"], case["score"], bias, output_bias, 0.0, projected),
            case["mlp"],
            case["norm"],
            # The one illegal pair, refused by BlockConfig.
            "pre" if case["mlp"] is None and case["residual"] == "parallel" else case["residual"],
            convolution=convolution,
        )
        for letter, mask in zip("AB", masks, strict=False)
    }
    return tiny(
        blocks=pattern("AA" if len(masks) == 1 else "ABAB", **letters),
        embedding=Embedding(case["code"], case["embedding_norm"]),
        final_norm=case["final_norm"],
        head=case["head"],
        scan=case["scan"],
        remat=case["remat"],
        dtype=case["dtype"],
    )


CASES = [dict(zip(CHOICES, row, strict=True)) for row in AllPairs(CHOICES)]
TOKENS = jnp.asarray(np.random.default_rng(0).permutation(VOCABULARY)[: 2 * T].reshape(2, T))  # no two alike
SEGMENTS = jnp.array([[0, 0, 0, 1, 1, 1, 1, 2], [5] * T])
POSITIONS = jnp.array([[0, 1, 2, 0, 1, 2, 3, 0], list(range(T))])


def canonical_params(params: Any) -> Any:
    return jax.tree.map(np.asarray, canonical(params["params"]))


def test_the_covering_set_is_one() -> None:
    for a, b in itertools.combinations(CHOICES, 2):
        pairs = {(repr(case[a]), repr(case[b])) for case in CASES}
        assert pairs == {(repr(x), repr(y)) for x in CHOICES[a] for y in CHOICES[b]}


@pytest.mark.parametrize("i", range(len(CASES)))
def test_outputs_are_the_papers_and_no_gradient_comes_from_later_or_another_document(
    i: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt_jax.model.mask.SHORTEST_SPAN", (3, 64)[i % 2])  # attention in several spans, and in one
    c = build(CASES[i])
    model = GPT(c)
    params = random_params(model)

    @jax.jit
    def run(params: Any) -> tuple[Any, Any]:
        def forward(table: Any) -> tuple[Any, Any]:
            inner = params["params"]
            changed = {"params": inner | {"embedding": inner["embedding"] | {"table": table}}}
            logits, taps = model.apply(changed, TOKENS, segments=SEGMENTS, positions=POSITIONS, capture="hidden")
            return taps["hidden"].astype(jnp.float32), logits

        table = params["params"]["embedding"]["table"]
        hidden, pullback, logits = jax.vjp(forward, table, has_aux=True)
        direction = jax.random.normal(jax.random.key(1), hidden.shape)
        each = jnp.eye(2 * T).reshape(2 * T, 2, T, 1)
        (gradients,) = jax.vmap(lambda one: pullback(one * direction))(each)
        return logits, jnp.abs(gradients).sum(-1)[:, TOKENS.reshape(-1)]  # (output token, input token)

    logits, paths = run(params)
    assert logits.shape == (2, T, VOCABULARY) and logits.dtype == jnp.float32
    assert np.isfinite(logits).all()
    expected = np.zeros((2 * T, 2 * T), bool)
    for b in range(2):
        expected[b * T : (b + 1) * T, b * T : (b + 1) * T] = reference.reachable(c, np.asarray(SEGMENTS[b]))
    np.testing.assert_array_equal(np.asarray(paths) > 0, expected)
    if c.dtype == "float32":
        wanted = reference.logits(c, canonical_params(params), *map(np.asarray, (TOKENS, SEGMENTS, POSITIONS)))
        np.testing.assert_allclose(logits, wanted, atol=1e-5)


# Chunks of 10 tokens; prompts of 1, W − 1, W, W + 1 and longer, then single steps and odd chunks.
SCHEDULES = [(4, 1, 1, 3, 1), (3, 1, 1, 4, 1), (2, 1, 5, 1, 1), (1, 1, 2, 1, 5), (7, 1, 1, 1)]


def decode(model: GPT, params: Any, tokens: jax.Array, chunks: tuple[int, ...], padding: list[int]) -> np.ndarray:
    """Logits of all tokens, chunk by chunk through a cache."""
    step = jax.jit(lambda params, tokens, cache: model.apply(params, tokens, cache=cache))
    cache = init_cache(model.config, len(tokens), tokens.shape[1], jnp.array(padding))
    out, at = [], 0
    for chunk in chunks:
        logits, cache = step(params, tokens[:, at : at + chunk], cache)
        out.append(logits)
        at += chunk
    assert at == tokens.shape[1] == int(cache.step)
    return np.concatenate(out, axis=1)


def check_cached(c: ModelConfig, chunks: tuple[int, ...]) -> None:
    """Row 0 is full, row 1 has two tokens of left padding; each must score as if it stood alone."""
    model = GPT(c)
    params = random_params(model)
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (2, sum(chunks)))
    logits = decode(model, params, jnp.asarray(tokens), chunks, [0, 2])
    assert np.isfinite(logits).all()
    for b, padding in enumerate([0, 2]):
        wanted = reference.logits(c, canonical_params(params), tokens[b : b + 1, padding:])
        np.testing.assert_allclose(logits[b : b + 1, padding:], wanted, atol=1e-5)


# Of what matters to a cache; the rest is fixed.
FIXED = {"norm": RmsNorm(), "mlp": Mlp(12, "gelu"), "biases": (False, False), "head": Head(), "embedding_norm": None}
FIXED |= {"final_norm": RmsNorm(), "scan": True, "remat": "full", "dtype": "float32"}
VARIED = OrderedDict((name, choices) for name, choices in CHOICES.items() if name not in FIXED)
CACHED_CASES = [FIXED | dict(zip(VARIED, row, strict=True)) for row in AllPairs(VARIED)]


@pytest.mark.parametrize("i", range(len(CACHED_CASES)))
def test_cached_decoding_equals_the_full_forward_at_every_position(i: int) -> None:
    check_cached(build(CACHED_CASES[i]), SCHEDULES[i % len(SCHEDULES)])


@pytest.mark.parametrize("chunks", [(1,) * 8, (2, 1, 1, 1, 1, 1, 1), (3, 1, 1, 1, 1, 1), (4, 1, 1, 1, 1), (5, 3)])
@pytest.mark.parametrize("position", [Rope(), Alibi()], ids=["rope", "alibi"])
def test_a_ring_of_w_slots_serves_prompts_of_every_length(position: Any, chunks: tuple[int, ...]) -> None:
    check_cached(tiny(Attention(4, 2, 4, Window(W), position)), chunks)


FEATURES = {
    "plain": tiny(),
    "period 2": tiny(
        blocks=pattern(
            "ABAB",
            A=BlockConfig(Attention(4, 2, 4, Window(W), Rope()), GatedMlp(12), dropout=0.2),
            B=BlockConfig(Attention(4, 1, 4, dropout=0.3), None, LayerNorm(), "sandwich"),
        ),
        embedding=Embedding(Learned(), RmsNorm(), 0.1),
        head=Head(tied=False, bias=True),
        init=Init(output="same", kernel_std=None),
    ),
    "no repeat": tiny(
        blocks=pattern(
            "AAB",
            A=BlockConfig(Attention(4, None, 4), Mlp(8), dropout=0.2),
            B=BlockConfig(Attention(4), GatedMlp(12), residual="post"),
        ),
        init=Init(output="zero"),
    ),
}


@pytest.mark.parametrize("name", FEATURES)
def test_scan_and_remat_change_no_initial_value_no_loss_and_no_gradient(name: str) -> None:
    """Under dropout too: a layer's mask comes from its own key however the layers are executed."""
    loop = FEATURES[name]
    key, params = jax.random.key(3), {}
    results = {}
    for scan, remat in [(False, None), (True, None), (False, "full"), (True, "dots")]:
        model = GPT(dataclasses.replace(loop, scan=scan, remat=remat))
        if remat is None:
            params[scan] = model.init(key, TOKENS)

        @jax.jit
        def run(params: Any, model: GPT = model) -> Any:
            def loss(params: Any) -> Any:
                logits = model.apply(params, TOKENS, train=True, rngs={"dropout": key})
                return jnp.square(jax.nn.log_softmax(logits)).mean(), logits

            return jax.grad(loss, has_aux=True)(params)

        gradients, logits = run(stacked(model.config, random_params(GPT(loop))))
        results[scan, remat] = canonical(gradients), logits
    assert_trees_equal(canonical(params[True]), params[False])
    assert_trees_equal(stacked(dataclasses.replace(loop, scan=True), params[False]), params[True])
    gradients, logits = results[False, None]
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients)) > 0.01
    for other_gradients, other_logits in results.values():
        np.testing.assert_allclose(other_logits, logits, atol=1e-5)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), other_gradients, gradients)


def assert_trees_equal(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("scan", [False, True])
def test_seeds_can_be_vmapped(scan: bool) -> None:
    model = GPT(dataclasses.replace(FEATURES["period 2"], scan=scan))
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(model.init, (0, None)))(keys, TOKENS)
    assert_trees_equal(jax.tree.map(lambda x: x[1], together), model.init(keys[1], TOKENS))
    logits = jax.jit(jax.vmap(model.apply, (0, None)))(together, TOKENS)
    alone = model.apply(jax.tree.map(lambda x: x[1], together), TOKENS)
    np.testing.assert_allclose(logits[1], alone, atol=1e-5)


@pytest.mark.parametrize("name", ["period 2"])
@pytest.mark.parametrize("scan", [False, True])
def test_two_devices_compute_what_one_does(name: str, scan: bool) -> None:
    """Rows over two devices with parameters replicated (data parallel), and wide kernels cut over them."""
    model = GPT(dataclasses.replace(FEATURES[name], scan=scan))
    params = random_params(model)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])

    @jax.jit
    def run(params: Any, tokens: Any) -> Any:
        return jax.value_and_grad(lambda p: jnp.square(model.apply(p, tokens)).mean())(params)

    loss, gradients = run(params, TOKENS)

    def cut(leaf: Any) -> Any:
        names = [None] * (leaf.ndim - 1) + ["data" if leaf.ndim > 1 and leaf.shape[-1] % 2 == 0 else None]
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*names)))

    tokens = jax.device_put(TOKENS, NamedSharding(mesh, PartitionSpec("data")))
    whole = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    for placed in (whole, jax.tree.map(cut, params)):
        other_loss, other_gradients = run(placed, tokens)
        assert len(other_loss.sharding.device_set) == 2
        np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), other_gradients, gradients)


def test_bfloat16_trains_and_decodes_with_finite_numbers_close_to_float32() -> None:
    """Softmax, statistics and logits stay float32, so that only products round."""
    full = FEATURES["period 2"]
    half = dataclasses.replace(full, dtype="bfloat16")
    params = random_params(GPT(full))
    logits, narrow = (jax.jit(GPT(c).apply)(params, TOKENS) for c in (full, half))
    assert narrow.dtype == jnp.float32
    assert 1e-4 < np.abs(logits - narrow).max() < 0.3
    cached = decode(GPT(half), params, TOKENS, (3, 1, 4), [0, 0])
    np.testing.assert_allclose(cached, narrow, atol=0.3)
    gradients = jax.jit(jax.grad(lambda p: GPT(half).apply(p, TOKENS).std()))(params)
    assert all(g.dtype == jnp.float32 and np.isfinite(g).all() for g in jax.tree.leaves(gradients))
