import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from gpt_jax.config import Adafactor, Adamw, Lion, Muon, OptimizerConfig, Sgd
from gpt_jax.model.stack import canonical
from gpt_jax.training.optimizer import MAKERS, make_optimizer, orthogonalize

SHAPES = {
    "params/embedding/table": (11, 6),
    "params/blocks/0/attention/query/kernel": (6, 8),
    "params/blocks/0/attention/query/bias": (8,),
    "params/blocks/0/attention_norm/scale": (6,),
    "params/blocks/0/mlp/up/kernel": (6, 24),
    "params/blocks/0/mlp/down/kernel": (24, 6),
    "params/blocks/1/mlp/up/kernel": (6, 24),
    "params/final_norm/scale": (6,),
    "params/head/kernel": (6, 11),
}
ALL = [Adamw(), Lion(), Muon(weight_decay=0.1), Sgd(momentum=0.9, weight_decay=0.1), Adafactor(weight_decay=0.1)]


def tree(shapes=SHAPES, seed=0):
    rng = np.random.default_rng(seed)
    flat = {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in shapes.items()}
    nested = {}
    for path, leaf in flat.items():
        node = nested
        *names, last = path.split("/")
        for name in names:
            node = node.setdefault(name, {})
        node[last] = leaf
    return nested


def flat(nested):
    return {"/".join(k.key for k in keys): np.asarray(leaf) for keys, leaf in jax.tree.leaves_with_path(nested)}


def changes(config, params, gradients):
    """The last change after some gradients, as a flat dict."""
    optimizer = make_optimizer(config)
    state = optimizer.init(params)
    for gradient in gradients:
        change, state = optimizer.update(gradient, state, params)
    return flat(change)


def decayed(config):
    """Which parameters weight decay acts on, and by how much of themselves."""
    params = tree()
    zeros = [jax.tree.map(jnp.zeros_like, params)]
    result = changes(config, params, zeros)
    return {path: float(-(result[path] / p).mean()) for path, p in flat(params).items() if result[path].any()}


def test_every_optimizer_is_tested():
    assert {type(c) for c in ALL} == set(MAKERS) == set(OptimizerConfig.choices.values())


@pytest.mark.parametrize("config", ALL, ids=lambda c: type(c).__name__)
def test_weight_decay_acts_on_kernels_alone_unless_asked(config):
    kernels = {path for path in SHAPES if path.endswith("kernel")}
    assert set(decayed(config)) == kernels
    everything = dataclasses.replace(config, decay=("**",))
    assert set(decayed(everything)) == set(SHAPES)
    assert decayed(dataclasses.replace(config, weight_decay=0.0)) == {}


def test_decay_rules_are_globs_over_paths():
    one_name = Sgd(weight_decay=0.5, decay=("blocks/*/mlp/*/kernel", "embedding/**"))
    assert decayed(one_name) == pytest.approx({
        "params/blocks/0/mlp/up/kernel": 0.5,
        "params/blocks/0/mlp/down/kernel": 0.5,
        "params/blocks/1/mlp/up/kernel": 0.5,
        "params/embedding/table": 0.5,
    })  # fmt: skip
    assert set(decayed(Sgd(weight_decay=0.5, decay=("blocks/1/**",)))) == {"params/blocks/1/mlp/up/kernel"}
    assert set(decayed(Sgd(weight_decay=0.5, decay=("head/*",)))) == {"params/head/kernel"}


@pytest.mark.parametrize("rule", ["kernel", "blocks/2/**", "heads/kernel"])
def test_a_decay_rule_that_names_nothing_is_refused(rule):
    with pytest.raises(ValueError, match="names no parameter"):
        make_optimizer(Adamw(decay=(rule,))).init(tree())


def test_muon_is_for_the_blocks_matrices_and_adam_for_the_rest():
    config = Muon(weight_decay=0.0)
    params, gradients = tree(), [tree(seed=1), tree(seed=2)]
    result = changes(config, params, gradients)
    adam = changes(Adamw(beta1=config.beta1, beta2=config.beta2, eps=config.eps, weight_decay=0.0), params, gradients)
    for path in SHAPES:
        if "blocks" in path and path.endswith("kernel"):
            rows, columns = result[path].shape
            values = np.linalg.svd(result[path], compute_uv=False) / max(1, columns / rows) ** 0.5
            assert 0.6 < values.min() and values.max() < 1.3, path
        else:
            np.testing.assert_allclose(result[path], config.adam_ratio * adam[path], rtol=1e-5, err_msg=path)


def test_muon_decays_each_group_at_its_own_rate():
    rates = decayed(Muon(weight_decay=0.5, adam_ratio=0.1))
    assert rates["params/blocks/0/mlp/up/kernel"] == pytest.approx(0.5)
    assert rates["params/head/kernel"] == pytest.approx(0.05)


@pytest.mark.parametrize("shape", [(8, 8), (6, 24), (24, 6), (3, 6, 24)])
def test_orthogonalize_keeps_singular_vectors_and_levels_singular_values(shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    result = np.asarray(orthogonalize(jnp.asarray(matrix)))
    u, _, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    core = np.swapaxes(u, -1, -2) @ result @ np.swapaxes(vt, -1, -2)
    values = np.diagonal(core, axis1=-2, axis2=-1)
    off_diagonal = core - values[..., None] * np.eye(values.shape[-1])
    assert np.abs(off_diagonal).max() < 1e-4
    assert 0.6 < values.min() and values.max() < 1.3


def test_muon_is_optax_contribs_once_the_momentum_is_warm():
    gradients = [
        {"blocks": {"0": {"kernel": jnp.asarray(g, jnp.float32)}}}
        for g in np.random.default_rng(0).normal(size=(300, 6, 6))
    ]
    params = jax.tree.map(jnp.zeros_like, gradients[0])
    ours, theirs = (
        make_optimizer(Muon()),
        scale_by_muon(
            beta=0.95, weight_dimension_numbers=lambda tree: jax.tree.map(lambda _: MuonDimensionNumbers(), tree)
        ),
    )
    a, b = ours.init(params), theirs.init(params)
    steps = jax.jit(lambda g, a, b: (ours.update(g, a, params), theirs.update(g, b)))
    for gradient in gradients:
        (change, a), (reference, b) = steps(gradient, a, b)
    np.testing.assert_allclose(change["blocks"]["0"]["kernel"], -reference["blocks"]["0"]["kernel"], atol=2e-4)


def test_lion_is_the_sign_of_an_interpolated_momentum():
    c = Lion(weight_decay=0.0)
    g1, g2 = tree(seed=1), tree(seed=2)
    result = changes(c, tree(), [g1, g2])
    for path, first in flat(g1).items():
        momentum = (1 - c.beta2) * first
        expected = -np.sign(c.beta1 * momentum + (1 - c.beta1) * flat(g2)[path])
        np.testing.assert_array_equal(result[path], expected)


def test_sgd_has_nesterov_momentum():
    g1, g2 = tree(seed=1), tree(seed=2)
    plain = changes(Sgd(), tree(), [g1, g2])
    result = changes(Sgd(momentum=0.9), tree(), [g1, g2])
    for path, first in flat(g1).items():
        second = flat(g2)[path]
        np.testing.assert_array_equal(plain[path], -second)
        np.testing.assert_allclose(result[path], -(second + 0.9 * (second + 0.9 * first)), rtol=1e-5, atol=1e-6)


def test_adafactor_factors_large_matrices():
    params = {"head": {"kernel": jnp.ones((130, 140))}}
    state = make_optimizer(Adafactor()).init(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 300
    one = changes(
        Adafactor(decay_rate=0.5), params, [jax.tree.map(lambda p, i=i: p / (i + 1), params) for i in range(3)]
    )
    other = changes(
        Adafactor(decay_rate=0.9), params, [jax.tree.map(lambda p, i=i: p / (i + 1), params) for i in range(3)]
    )
    assert not np.allclose(one["head/kernel"], other["head/kernel"])


@pytest.mark.parametrize("config", ALL, ids=lambda c: type(c).__name__)
def test_a_stacked_layer_is_updated_as_if_it_stood_alone(config):
    config = dataclasses.replace(config, weight_decay=0.1, decay=("blocks/1/**", "head/kernel"))
    rng = np.random.default_rng(0)

    def stacked():
        # Layers of very different size, and matrices large enough that Adafactor factors them.
        sizes = jnp.array([1.0, 100.0, 0.01])
        kernel = jnp.asarray(rng.normal(size=(3, 128, 160)), jnp.float32) * sizes[:, None, None]
        scale = jnp.asarray(rng.normal(size=(3, 128)), jnp.float32) * sizes[:, None]
        blocks = {"0:3:1": {"mlp": {"up": {"kernel": kernel}}, "norm": {"scale": scale}}}
        return {"params": {"blocks": blocks, "head": {"kernel": jnp.asarray(rng.normal(size=(8, 9)), jnp.float32)}}}

    params, gradients = stacked(), [stacked(), stacked()]
    optimizer = make_optimizer(config)

    def run(params, gradients):
        state = optimizer.init(params)
        for gradient in gradients:
            change, state = optimizer.update(gradient, state, params)
        return change, state

    change, state = run(params, gradients)
    expected, expected_state = run(canonical(params), [canonical(g) for g in gradients])
    assert jax.tree.structure(canonical(state)) == jax.tree.structure(expected_state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), canonical(change), expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), canonical(state), expected_state)


def test_changes_can_be_scheduled_by_optax():
    optimizer = optax.chain(make_optimizer(Sgd()), optax.scale_by_schedule(optax.constant_schedule(0.25)))
    params, gradient = tree(), tree(seed=1)
    change, _ = optimizer.update(gradient, optimizer.init(params), params)
    jax.tree.map(lambda c, g: np.testing.assert_allclose(c, -0.25 * g), change, gradient)
