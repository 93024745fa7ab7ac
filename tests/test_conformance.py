"""Every valid model equals the papers' equations, is causal, and decodes through its cache as in a full forward pass.

Models come from a covering array: each valid pair of choices occurs in some case. References are in NumPy.
"""

import dataclasses
import itertools
from collections import OrderedDict
from functools import lru_cache, partial
from typing import Any

import covertable
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gpt_jax import GPT, ModelConfig, init_cache
from gpt_jax.config import (
    PROJECTIONS,
    Alibi,
    Attention,
    Average,
    BlockConfig,
    Causal,
    Chunk,
    Delta,
    Differential,
    DynamicNtk,
    ElementwiseGate,
    Embedding,
    FromKey,
    GatedMlp,
    Head,
    HeadwiseGate,
    Init,
    Latent,
    LayerNorm,
    Learned,
    LinearAttention,
    LinearScaling,
    LogTemperature,
    Mlp,
    Prefix,
    Projected,
    RmsNorm,
    Rope,
    Score,
    Shared,
    Sinusoidal,
    Ssmax,
    T5Bias,
    ValueEmbedding,
    ValueResidual,
    Window,
    Yarn,
    pattern,
)
from gpt_jax.model.stack import canonical, stacked
from tests import reference
from tests import tiny as models
from tests.tiny import VOCABULARY, tiny

W, T = 3, 8
random_params = partial(models.random_params, size=0.4)  # activations of order 1 in every case
BIASES = [Alibi(), Alibi(scale=0.4, rounded=True), T5Bias(4, 6)]
PARTIAL = Rope(theta=100.0, fraction=0.5, interleaved=True, scaling=LinearScaling(2.0))
CHOICES: OrderedDict[str, list[Any]] = OrderedDict(
    # Of 8 values the variance may be tiny, and dividing by it blows rounding up: hence the large eps.
    norm=[
        LayerNorm(eps=1e-2),
        LayerNorm(1e-2, scale=False, bias=False),
        RmsNorm(eps=1e-3),
        RmsNorm(eps=1e-3, unit_offset=True),
    ],
    residual=["pre", "post", "sandwich", "output", "parallel", "parallel_norms"],
    residual_scale=[None, 0.5],
    kind=["Attention", "Differential", "Latent", "LinearAttention", "Delta", "Average"],
    position=[
        Rope(),
        None,
        PARTIAL,
        Rope(theta=100.0, scaling=Yarn(4.0, 16)),
        Rope(scaling=DynamicNtk(2.0, 6)),
        *BIASES,
    ],
    code=[None, Learned(), Learned(offset=2), Sinusoidal(theta=50.0), Sinusoidal(50.0, endpoint=True, offset=2)],
    masks=[(Causal(),), (Window(W),), (Chunk(W),), (Window(W), Causal()), (Prefix(),)],
    kv_heads=[4, 2, 1],
    value_width=[None, 6],
    mlp=[Mlp(12, "gelu"), Mlp(12, "relu2", bias=True), GatedMlp(12, "silu"), Mlp(12, "xielu"), None],
    qk_norm=[
        {},
        {"qk_norm": RmsNorm()},
        {"qk_norm": LayerNorm(eps=0.1), "qk_norm_over": "width"},
        {"qk_norm": RmsNorm(eps=0.1, unit_offset=True), "qk_norm_over": "heads", "qk_norm_last": True},
    ],
    score=[{}, {"scale": 0.7, "softcap": 2.0}, {"temperature": LogTemperature(0.3, 2)}, {"temperature": Ssmax()}],
    normalizer=["softmax", "softmax_plus_one", "sinks", "sigmoid"],
    convolution=[(None, None), (3, None), (None, 2)],  # on the sublayers' inputs; on queries, keys and values
    bias=[(), PROJECTIONS, ("output",), ("query", "value")],
    clip=[None, 0.8],
    gate=[None, ElementwiseGate(), HeadwiseGate()],
    forget_gate=[False, True],
    values=[
        Projected(),
        Projected(residual=ValueResidual(0.4)),
        Projected(embedding=ValueEmbedding()),
        FromKey(),
        Shared(),
    ],
    head=[Head(), Head(tied=False, bias=True, scale=0.3), Head(bias=True, softcap=2.0)],
    embedding=[Embedding(), Embedding(norm=RmsNorm()), Embedding(scale=1.7)],
    final_norm=[RmsNorm(), None],
    scan=[False, True],
    remat=[None, "full", "dots"],
    dtype=["float32", "bfloat16"],
)


def is_legal(c: dict[str, Any]) -> bool:
    """Whether the configuration's classes accept these choices together."""

    def has(name: str, *choices: Any) -> bool:
        return name in c and c[name] in choices

    def switched(name: str) -> dict[str, Any]:
        return c[name] if name in c else {}

    bias, projected = c["bias"] if "bias" in c else (), "convolution" in c and c["convolution"][1] is not None
    values = c["values"] if "values" in c else Projected()
    # What multi-head latent attention lacks.
    beyond_latent = (
        has("position", *BIASES, PARTIAL)
        or has("kv_heads", 2, 1)
        or has("gate", ElementwiseGate(), HeadwiseGate())
        or has("forget_gate", True)
        or has("clip", 0.8)
        or bool(values != Projected() or switched("qk_norm") or projected)
        or bias not in ((), PROJECTIONS)
    )
    # What mixers with a recurrent state lack.
    beyond_state = (
        bool(values != Projected() or switched("qk_norm") or switched("score"))
        or has("kv_heads", 2, 1)
        or has("gate", ElementwiseGate(), HeadwiseGate())
        or has("forget_gate", True)
        or has("clip", 0.8)
        or has("normalizer", "softmax_plus_one", "sinks", "sigmoid")
        or ("masks" in c and c["masks"] != (Causal(),))
        or has("position", *BIASES)
    )
    return not (
        (has("kind", "LinearAttention", "Delta", "Average") and beyond_state)
        or (has("kind", "Delta", "Average") and "position" in c and c["position"] is not None)
        or (has("kind", "Average") and (bias or projected or has("value_width", 6)))
        or (has("mlp", None) and has("residual", "parallel", "parallel_norms"))
        or (has("kind", "Differential") and has("kv_heads", 1))
        or (has("kind", "Latent") and beyond_latent)
        or (has("forget_gate", True) and "key" not in values.made)
        or any(name in bias and name not in values.made for name in ("key", "value"))
        or (has("value_width", 6) and isinstance(values, FromKey))
    )


def with_state(case: dict[str, Any], is_second: bool) -> Any:
    given = {"value_width": case["value_width"], "bias": case["bias"], "convolution": case["convolution"][1]}
    norm = RmsNorm(eps=0.1)
    if case["kind"] == "Average":
        return Average(6 + is_second)
    if case["kind"] == "Delta":
        rest = {"key_heads": 2, "decay": "fixed", "negative": True, "gate": None} if is_second else {}
        return Delta(4, head_width=4, output_norm=norm, **given, **rest)
    if not is_second:
        return LinearAttention(4, 4, position=case["position"], **given)
    rest = {"feature_map": None, "normalize": False, "decay": "gated", "output_norm": norm, "gate": "silu"}
    return LinearAttention(4, 4, position=case["position"], **given, **rest)


def build(case: dict[str, Any]) -> ModelConfig:
    score = Score(**case["qk_norm"], **case["score"], normalizer=case["normalizer"])
    (outer, inner), masks, shares = case["convolution"], case["masks"], isinstance(case["values"], Shared)

    def wide(values: Any) -> Any:
        return values if isinstance(values, FromKey) else dataclasses.replace(values, width=case["value_width"])

    def attention(mask: Any, is_second: bool) -> Any:
        if case["kind"] == "Latent":
            rank, bias = 5 if is_second else None, bool(case["bias"])
            return Latent(4, 6, 4, 4, rank, case["value_width"], mask, case["position"], score, bias=bias)
        if case["kind"] in ("LinearAttention", "Delta", "Average"):
            return with_state(case, is_second)
        # Of two maps that agree the difference is little but rounding, as for a row's first token: hence the large eps.
        make = {"Attention": Attention, "Differential": partial(Differential, norm=RmsNorm(1e-2, scale=False))}
        return make[case["kind"]](
            4,
            case["kv_heads"],
            4,
            mask,
            case["position"],
            score,
            wide(Projected() if shares and not is_second else case["values"]),
            case["bias"],
            case["clip"],
            convolution=inner,
            gate=case["gate"],
            forget_gate=case["forget_gate"],
        )

    def block(mask: Any, is_second: bool) -> BlockConfig:
        rest = {"convolution": outer, "residual_scale": case["residual_scale"]}
        return BlockConfig(attention(mask, is_second), case["mlp"], case["norm"], case["residual"], **rest)

    # A layer that shares keys has the mask of the one that makes them.
    second = masks[0] if shares else masks[-1]
    letters = {"A": block(masks[0], False), "B": block(second, True)}
    return tiny(
        # A scanned stack repeats its period. Two looped layers tell what a window reaches through them; four see all.
        blocks=pattern("AA" if letters["A"] == letters["B"] else "AB" * (1 + case["scan"]), **letters),
        embedding=dataclasses.replace(case["embedding"], position=case["code"]),
        final_norm=case["final_norm"],
        head=case["head"],
        scan=case["scan"],
        remat=case["remat"],
        dtype=case["dtype"],
    )


def covering(choices: OrderedDict[str, list[Any]]) -> list[dict[str, Any]]:
    """Cases in which each valid pair of choices occurs: {name of the choice: value}."""

    indices = {name: list(range(len(options))) for name, options in choices.items()}
    rules = []
    for a, b in itertools.combinations(choices, 2):
        legal = {(i, j) for i in indices[a] for j in indices[b] if is_legal({a: choices[a][i], b: choices[b][j]})}
        if len(legal) < len(choices[a]) * len(choices[b]):
            is_pair_legal = lambda row, a=a, b=b, legal=legal: (row[a], row[b]) in legal  # noqa: E731
            rules.append({"operator": "fn", "requires": [a, b], "evaluate": is_pair_legal})
    rows = covertable.make(indices, constraints=rules)
    return [{name: choices[name][row[name]] for name in choices if name in row} for row in rows]


CASES = covering(CHOICES)
TOKENS = jnp.asarray(np.random.default_rng(0).permutation(VOCABULARY)[: 2 * T].reshape(2, T))  # no two alike
SEGMENTS = jnp.array([[0, 0, 0, 1, 1, 1, 1, 2], [5] * T])
POSITIONS = jnp.array([[0, 1, 2, 0, 1, 2, 3, 0], list(range(T))])
PREFIX = jnp.array([3, 0])


def canonical_params(params: Any) -> Any:
    return canonical(jax.tree.map(np.asarray, params["params"]))


def test_every_valid_pair_of_choices_occurs_in_a_valid_case() -> None:
    for case in CASES:
        assert is_legal(case)
    for a, b in itertools.combinations(CHOICES, 2):
        pairs = {(repr(case[a]), repr(case[b])) for case in CASES}
        legal = [(x, y) for x in CHOICES[a] for y in CHOICES[b] if is_legal({a: x, b: y})]
        assert pairs == {(repr(x), repr(y)) for x, y in legal}


@pytest.mark.parametrize("i", range(len(CASES)))
def test_logits_are_the_papers_and_no_gradient_comes_from_later_or_another_document(
    i: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits equal the papers' equations, and an output depends on the inputs that it may see and on no other.

    The equations are written in NumPy (`tests/reference.py`). Dependence is the gradient of each output's hidden vector
    with respect to the embedding of each input token: zero where the mask forbids, nonzero elsewhere. Two seeds are
    vmapped with their rows over two devices; the same model runs once more alone, in the dtype of the case.
    """
    monkeypatch.setattr("gpt_jax.model.mask.SHORTEST_SPAN", (3, 64)[i % 2])  # attention in several spans, and in one
    half = build(CASES[i])
    c = dataclasses.replace(half, dtype="float32")
    model = GPT(c)
    params = [random_params(model, seed=1), random_params(model)]
    given: dict[str, Any] = {"segments": SEGMENTS, "positions": POSITIONS}
    if any(getattr(block.attention, "mask", None) == Prefix() for block in c.blocks):
        given = {"prefix": PREFIX}  # of rows of one document

    together, paths = run_two_seeds(model, params, given)
    given = jax.tree.map(np.asarray, given)
    assert together.shape == (2, 2, T, VOCABULARY) and together.dtype == np.float32
    for logits, one in zip(together, params, strict=True):
        wanted = reference.logits(c, canonical_params(one), np.asarray(TOKENS), **given)
        np.testing.assert_allclose(logits, wanted, atol=1e-5 * max(1.0, np.abs(wanted).max()))
    expected = np.zeros((2 * T, 2 * T), bool)
    for b in range(2):
        place = {name: value[b] for name, value in given.items()}
        whole = {"segments": np.zeros(T, int), "positions": np.arange(T)} | place
        expected[b * T : (b + 1) * T, b * T : (b + 1) * T] = reference.reachable(c, **whole)
    # Sums of log f up to a query and up to a key differ by what lies between, and by a rounding of what lies before.
    has_gate = any(getattr(block.attention, "forget_gate", False) for block in c.blocks)
    noise = 1e-6 * np.max(paths) if has_gate else 0.0
    np.testing.assert_array_equal(paths > np.where(expected, 0.0, noise), expected)
    alone = np.asarray(jax.jit(GPT(half).apply)(params[1], TOKENS, **given))
    assert alone.dtype == np.float32
    if half.dtype == "float32":
        np.testing.assert_allclose(alone, together[1], atol=1e-5)
    else:
        assert np.isfinite(alone).all()
        assert 0 < np.abs(alone - together[1]).max() < 0.2 * np.abs(together[1]).max()


def run_two_seeds(model: GPT, params: list[Any], given: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Logits of both seeds, and how much each output of the second depends on each input: (output, input)."""

    def run_one(params: Any, tokens: Any) -> tuple[Any, Any]:
        def forward(table: Any) -> tuple[Any, Any]:
            inner = params["params"]
            changed = {"params": inner | {"embedding": inner["embedding"] | {"table": table}}}
            logits, taps = model.apply(changed, tokens, capture="hidden", **given)
            return taps["hidden"], logits

        hidden, pullback, logits = jax.vjp(forward, params["params"]["embedding"]["table"], has_aux=True)
        each = jnp.eye(2 * T).reshape(2 * T, 2, T, 1)
        direction = np.random.default_rng(1).normal(size=hidden.shape).astype(np.float32)
        (gradients,) = jax.vmap(lambda one: pullback(one * direction))(each)
        return logits, jnp.abs(gradients).sum(-1)[:, TOKENS.ravel()]

    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    stacked_params = jax.tree.map(lambda *leaves: np.stack(leaves), *params)
    seeds = jax.device_put(stacked_params, NamedSharding(mesh, PartitionSpec()))
    rows = jax.device_put(TOKENS, NamedSharding(mesh, PartitionSpec("data")))
    logits, paths = jax.jit(jax.vmap(run_one, (0, None)))(seeds, rows)
    assert len(logits.sharding.device_set) == 2
    return np.asarray(logits), np.asarray(paths)[1]


# Chunks of 10 tokens: prompts of 1, W − 1, W, W + 1 and more, then single steps and longer chunks. Each schedule has
# two sizes, since each size is a program of its own.
SCHEDULES = [(4, 1, 1, 4), (3, 1, 1, 3, 1, 1), (2, 1, 2, 1, 2, 1, 1), (1, 1, 1, 5, 1, 1), (7, 1, 1, 1)]


@lru_cache(maxsize=2)
def compiled(config: ModelConfig) -> tuple[Any, Any]:
    """The model and the maker of its cache, so that schedules of one model share their programs."""
    return jax.jit(GPT(config).apply), jax.jit(partial(init_cache, config), static_argnums=(0, 1))


def decode(
    config: ModelConfig,
    params: Any,
    tokens: np.ndarray,
    chunks: tuple[int, ...],
    padding: list[int],
    prefix: np.ndarray | None = None,
) -> np.ndarray:
    """Logits of all tokens, chunk by chunk through a cache."""
    step, make_cache = compiled(config)
    cache = make_cache(len(tokens), tokens.shape[1], np.array(padding))
    out, at = [], 0
    for chunk in chunks:
        first = {} if prefix is None or at > 0 else {"prefix": prefix}
        logits, cache = step(params, tokens[:, at : at + chunk], cache=cache, **first)
        out.append(np.asarray(logits))
        at += chunk
    assert at == tokens.shape[1] == int(cache.step)
    return np.concatenate(out, axis=1)


def check_cached(c: ModelConfig, chunks: tuple[int, ...]) -> None:
    """Requires the logits of the NumPy reference, of a full row and of one with two tokens of left padding."""
    params = random_params(GPT(c))
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (2, sum(chunks)), np.int32)
    total, prefix = sum(chunks), None
    if any(getattr(block.attention, "mask", None) == Prefix() for block in c.blocks):
        prefix = np.array([min(chunks[0], 3), max(0, min(chunks[0] - 2, 2))])  # whole in the first chunk
    logits = decode(c, params, tokens, chunks, [0, 2], prefix)
    assert np.isfinite(logits).all()
    for b, padding in enumerate([0, 2]):
        given = {} if prefix is None else {"prefix": prefix[b : b + 1]}
        row = tokens[b : b + 1, padding:]
        wanted = reference.logits(c, canonical_params(params), row, length=total, **given)
        np.testing.assert_allclose(logits[b : b + 1, padding:], wanted, atol=1e-5)


# Of what matters to a cache; the rest is fixed.
FIXED = {
    "norm": RmsNorm(),
    "residual_scale": None,
    "residual": "pre",
    "mlp": Mlp(12, "gelu"),
    "bias": (),
    "head": Head(),
    "embedding": Embedding(),
    "final_norm": RmsNorm(),
    "remat": "full",
    "dtype": "float32",
}
VARIED = OrderedDict((name, choices) for name, choices in CHOICES.items() if name not in FIXED)
VARIED["chunks"] = SCHEDULES
CACHED_CASES = [FIXED | case for case in covering(VARIED)]


@pytest.mark.parametrize("i", range(len(CACHED_CASES)))
def test_cached_decoding_equals_the_full_forward_at_every_position(i: int) -> None:
    """Logits of a row read in chunks through a cache equal those of the whole row, by the NumPy reference."""
    case = CACHED_CASES[i]
    check_cached(build(case), case["chunks"])


@pytest.mark.parametrize("i", range(0, len(CACHED_CASES), 4))
def test_cached_decoding_equals_the_full_forward_in_bfloat16(i: int) -> None:
    c = build(CACHED_CASES[i] | {"dtype": "bfloat16", "scan": False})
    if any(getattr(block.attention, "mask", None) == Prefix() for block in c.blocks):
        pytest.skip("the full forward pass declares another length than the cache's")
    model = GPT(c)
    params, chunks = random_params(model), CACHED_CASES[i]["chunks"]
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (2, sum(chunks)), np.int32)
    cached, full = decode(c, params, tokens, chunks, [0, 0]), np.asarray(compiled(c)[0](params, tokens))
    # A ring adds up in another order, and a sum that rounds to the next number moves all that follows.
    np.testing.assert_allclose(cached, full, atol=2e-2 * np.abs(full).max())


@pytest.mark.parametrize("chunks", [(1,) * 8, (2, 1, 1, 1, 1, 1, 1), (3, 1, 1, 1, 1, 1), (4, 1, 1, 1, 1), (5, 3)])
@pytest.mark.parametrize("position", [Rope(), Alibi()], ids=["rope", "alibi"])
def test_a_window_cache_of_w_slots_decodes_after_prompts_of_every_length(position: Any, chunks: tuple) -> None:
    """Prompts shorter than W, of W tokens and longer, so that a write wraps around before, at and after the prompt."""
    check_cached(tiny(Attention(4, 2, 4, Window(W), position)), chunks)


RESIDUAL = Projected(residual=ValueResidual(0.3))
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
    "handed on": tiny(
        blocks=pattern(
            "ABAB",
            A=BlockConfig(Attention(4, 2, 4, position=Rope(), dropout=0.2, value=RESIDUAL), Mlp(8, "xielu")),
            B=BlockConfig(
                Attention(4, 2, 4, Causal(), Rope(), Score(normalizer="sinks"), Shared(), gate=HeadwiseGate()),
                GatedMlp(12),
                residual="output",
            ),
        ),
    ),
    "of many kinds": tiny(
        blocks=pattern(
            "DLMX",
            D=BlockConfig(Delta(2, head_width=4), Mlp(8)),
            L=BlockConfig(LinearAttention(2, position=Rope()), None),
            M=BlockConfig(Latent(2, 6, 4, 4, dropout=0.1), Mlp(8)),
            X=BlockConfig(Differential(4, 2, 4, Window(W), T5Bias(4, 6), forget_gate=True), Mlp(8)),
        )
        * 2,
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


@pytest.mark.optimized
@pytest.mark.parametrize("name", FEATURES)
def test_scan_changes_no_initial_value(name: str) -> None:
    """Initial values are equal bit for bit, whether layers are looped or scanned."""
    loop = FEATURES[name]
    scan = dataclasses.replace(loop, scan=True)
    looped, scanned = (GPT(config).init(jax.random.key(3), TOKENS) for config in (loop, scan))
    assert_trees_equal(canonical(scanned), looped)
    assert_trees_equal(stacked(scan, looped), scanned)


@pytest.mark.parametrize("name", FEATURES)
def test_scan_and_remat_change_no_loss_and_no_gradient(name: str) -> None:
    """Logits and gradients are equal to 1e-5, under dropout: a layer's mask comes from its own key in any execution."""
    loop = FEATURES[name]
    key, results = jax.random.key(3), {}
    for scan, remat in [(False, None), (True, None), (False, "full"), (True, "dots")]:
        model = GPT(dataclasses.replace(loop, scan=scan, remat=remat))

        @jax.jit
        def run(params: Any, model: GPT = model) -> Any:
            def loss(params: Any) -> Any:
                logits = model.apply(params, TOKENS, train=True, rngs={"dropout": key})
                return jnp.square(jax.nn.log_softmax(logits)).mean(), logits

            return jax.grad(loss, has_aux=True)(params)

        gradients, logits = run(stacked(model.config, random_params(GPT(loop))))
        results[scan, remat] = canonical(gradients), logits
    gradients, logits = results[False, None]
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients)) > 0.01
    for other_gradients, other_logits in results.values():
        np.testing.assert_allclose(other_logits, logits, atol=1e-5)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), other_gradients, gradients)


def assert_trees_equal(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


@pytest.mark.optimized
@pytest.mark.parametrize("scan", [False, True])
def test_vmapped_seeds_equal_each_seed_alone(scan: bool) -> None:
    """`init` bit for bit, logits to 1e-5."""
    model = GPT(dataclasses.replace(FEATURES["period 2"], scan=scan))
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(model.init, (0, None)))(keys, TOKENS)
    assert_trees_equal(jax.tree.map(lambda x: x[1], together), model.init(keys[1], TOKENS))
    logits = jax.jit(jax.vmap(model.apply, (0, None)))(together, TOKENS)
    alone = model.apply(jax.tree.map(lambda x: x[1], together), TOKENS)
    np.testing.assert_allclose(logits[1], alone, atol=1e-5)


@pytest.mark.parametrize("name", ["period 2"])
@pytest.mark.parametrize("scan", [False, True])
def test_loss_and_gradients_on_two_devices_equal_those_of_one(name: str, scan: bool) -> None:
    """Rows are sharded over two devices, with parameters replicated and with the columns of kernels sharded too."""
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


def test_bfloat16_logits_and_gradients_are_finite_and_close_to_float32() -> None:
    """Softmax, statistics and logits stay float32, so that only products round."""
    full = FEATURES["period 2"]
    half = dataclasses.replace(full, dtype="bfloat16")
    params = random_params(GPT(full))
    logits, narrow = (jax.jit(GPT(c).apply)(params, TOKENS) for c in (full, half))
    assert narrow.dtype == jnp.float32
    assert 1e-4 < np.abs(logits - narrow).max() < 0.3
    cached = decode(half, params, np.asarray(TOKENS), (4, 4), [0, 0])
    np.testing.assert_allclose(cached, narrow, atol=0.3)
    gradients = jax.jit(jax.grad(lambda p: GPT(half).apply(p, TOKENS).std()))(params)
    assert all(g.dtype == jnp.float32 and np.isfinite(g).all() for g in jax.tree.leaves(gradients))
