import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gpt_jax import GPT
from gpt_jax.config import Adamw, Config, LinearDecay, Muon, Sgd, Text, Train
from gpt_jax.data import Batch
from gpt_jax.training.state import init_state
from gpt_jax.training.step import make_train_step
from tests.tiny import VOCABULARY, tiny

METRICS = {"loss", "accuracy", "tokens", "grad_norm", "learning_rate", "skipped", "skipped_in_row"}


def make(optimizer=None, schedule=None, block=None, model=None, **train):
    train = {"steps": 100, "batch_size": 4, "clip_norm": None} | train
    optional = {} if schedule is None else {"schedule": schedule}
    optimizer = Sgd(learning_rate=1.0) if optimizer is None else optimizer
    return Config(tiny(layers=1, block=block, **(model or {})), Text(), optimizer, Train(**train), **optional)


def setup(config):
    model = GPT(config.model)
    # As numpy: comparing trees of arrays on the device compiles a program for each shape.
    compiled = jax.jit(make_train_step(model, config))
    return lambda *args: jax.device_get(compiled(*args)), jax.device_get(init_state(model, config))


def make_batch(rows=4, length=8, seed=0, weights=None):
    """Rows of two documents each; unless given, weights differ much between rows."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VOCABULARY, (rows, length + 1)).astype(np.int32)
    half = np.arange(length) >= length // 2
    if weights is None:
        weights = (rng.random((rows, length)) < np.linspace(0.1, 1.0, rows)[:, None]).astype(np.float32)
    segments = np.broadcast_to(1 + half, (rows, length)).astype(np.int32)
    positions = np.broadcast_to(np.arange(length) - half * (length // 2), (rows, length)).astype(np.int32)
    batch = Batch(ids[:, :-1], ids[:, 1:], weights, segments, positions)
    return jax.tree.map(jnp.asarray, batch)


def close(a, b, rtol=1e-5):
    """Relative to the largest number of each array."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=rtol * np.abs(y).max(), rtol=0), a, b)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def plain():
    return setup(make())


def test_it_is_pure_and_reports_every_metric(plain):
    step, state = plain
    first, metrics = step(state, make_batch())
    again, metrics_again = step(state, make_batch())
    equal((first, metrics), (again, metrics_again))
    assert set(metrics) == METRICS
    assert all(value.shape == () for value in metrics.values())
    assert int(first.step) == 1
    assert metrics["tokens"] == make_batch().weights.sum()


def test_the_loss_is_a_mean_over_the_targets_that_count(plain):
    step, state = plain
    batch = make_batch()
    logits = jax.jit(GPT(make().model).apply)(
        state.params, batch.tokens, segments=batch.segments, positions=batch.positions
    )
    nll = -np.take_along_axis(jax.nn.log_softmax(logits), batch.targets[..., None], -1)[..., 0]
    hits = np.argmax(logits, -1) == batch.targets
    _, metrics = step(state, batch)
    np.testing.assert_allclose(metrics["loss"], (nll * batch.weights).sum() / batch.weights.sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (hits * batch.weights).sum() / batch.weights.sum())


def test_training_on_one_batch_learns_it():
    step, state = setup(make(Adamw(learning_rate=3e-2), model={"width": 16}))
    batch = make_batch(weights=np.ones((4, 8), np.float32))
    losses = []
    for _ in range(150):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(np.log(VOCABULARY), abs=0.1)
    assert losses[-1] < 1.0
    assert metrics["accuracy"] > 0.7


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_weighs_by_real_token_counts(plain, parts):
    step, state = plain
    whole, whole_metrics = step(state, make_batch())
    cut, cut_metrics = setup(make(accumulate=parts))[0](state, make_batch())
    close(cut.params, whole.params)
    for name in METRICS:
        np.testing.assert_allclose(cut_metrics[name], whole_metrics[name], rtol=1e-5, err_msg=name)


def test_rows_that_accumulate_does_not_divide_are_refused():
    step, state = setup(make(accumulate=4))
    with pytest.raises(ValueError, match="train.accumulate"):
        step(state, make_batch(rows=6))


def test_the_gradient_norm_is_clipped_and_reported_as_it_was(plain):
    step, state = plain
    batch = make_batch()
    free, metrics = step(state, batch)
    bound = float(metrics["grad_norm"]) / 10
    clipped, clipped_metrics = setup(make(clip_norm=bound))[0](state, batch)
    np.testing.assert_allclose(clipped_metrics["grad_norm"], metrics["grad_norm"], rtol=1e-6)
    change = jax.tree.map(np.subtract, clipped.params, state.params)
    np.testing.assert_allclose(np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(change))), bound, rtol=1e-4)
    loose, _ = setup(make(clip_norm=bound * 11))[0](state, batch)
    equal(loose.params, free.params)


def test_z_loss_changes_the_gradient_and_not_the_reported_loss(plain):
    step, state = plain
    without, metrics = step(state, make_batch())
    with_z, z_metrics = setup(make(z_loss=0.1))[0](state, make_batch())
    np.testing.assert_allclose(z_metrics["loss"], metrics["loss"], rtol=1e-6)
    assert abs(float(z_metrics["grad_norm"] - metrics["grad_norm"])) > 1e-3

    # It pulls log Z towards 0: on the same batch it is smaller afterwards.
    def squared_log_z(params):
        return jnp.mean(jax.nn.logsumexp(jax.jit(GPT(make().model).apply)(params, make_batch().tokens), -1) ** 2)

    assert squared_log_z(with_z.params) < squared_log_z(without.params)


def test_a_batch_without_targets_teaches_nothing(plain):
    step, state = plain
    after, metrics = step(state, make_batch(weights=np.zeros((4, 8), np.float32)))
    equal(after.params, state.params)
    assert (metrics["loss"], metrics["tokens"], metrics["skipped"]) == (0, 0, 0)


# ── steps that are not finite ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("optimizer", [Adamw(), Muon(), Sgd(momentum=0.9)], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_changes_no_parameter_and_no_moment(optimizer, poison):
    step, state = setup(make(optimizer, clip_norm=1.0))
    good = make_batch()
    bad = good._replace(weights=good.weights.at[1, 2].set(poison))
    state, _ = step(state, good)
    for in_row in (1, 2, 3):
        after, metrics = step(state, bad)
        equal((after.params, after.optimizer), (state.params, state.optimizer))
        assert (int(metrics["skipped"]), int(metrics["skipped_in_row"])) == (in_row, in_row)
        assert int(after.step) == in_row + 1
        state = after
    state, metrics = step(state, good)
    assert (int(metrics["skipped"]), int(metrics["skipped_in_row"])) == (3, 0)
    assert int(state.skipped) == 3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert any((new != old).any() for new, old in zip(*map(jax.tree.leaves, (state.params, after.params)), strict=True))


class RootOfZero(nn.Module):
    """Finite logits whose gradient is not."""

    @nn.compact
    def __call__(self, tokens, **_):
        bias = self.param("kernel", nn.initializers.zeros, (VOCABULARY,))
        return jnp.broadcast_to(jnp.sqrt(bias), (*tokens.shape, VOCABULARY))


def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is_fine():
    config = make(Adamw())
    model = RootOfZero()
    state = init_state(model, config)
    after, metrics = jax.jit(make_train_step(model, config))(state, make_batch())
    assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"])
    assert metrics["skipped"] == 1
    equal((after.params, after.optimizer), (state.params, state.optimizer))


# ── learning rate, keys, types, memory ───────────────────────────────────────────────────────────────────────────────


def test_the_learning_rate_follows_the_step_even_past_skipped_ones():
    step, state = setup(make(Sgd(learning_rate=0.5), schedule=LinearDecay(warmup=2, final=0.0, steps=6)))
    bad = make_batch(weights=np.full((4, 8), np.nan, np.float32))
    rates, moved = [], []
    for i in range(7):
        before = state
        state, metrics = step(state, bad if i == 3 else make_batch())
        rates.append(float(metrics["learning_rate"]))
        change = jax.tree.map(np.subtract, state.params, before.params)
        moved.append(float(np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(change))) / metrics["grad_norm"]))
    np.testing.assert_allclose(rates, [0, 0.25, 0.5, 0.375, 0.25, 0.125, 0], atol=1e-7)
    np.testing.assert_allclose([*moved[:3], *moved[4:]], [*rates[:3], *rates[4:]], atol=1e-4)


def test_a_schedule_without_length_is_refused():
    config = make(schedule=LinearDecay())
    with pytest.raises(ValueError, match=r"schedule\.steps"):
        make_train_step(GPT(config.model), config)


def test_dropout_differs_between_steps_and_seeds_and_micro_batches_and_repeats_otherwise():
    config = make(block={"dropout": 0.5}, accumulate=2)
    step, state = setup(config)
    # Two equal rows, each a micro-batch of its own.
    batch = jax.tree.map(lambda x: np.repeat(x[3:], 2, 0), make_batch())
    loss = float(step(state, batch)[1]["loss"])
    assert loss == float(step(state, batch)[1]["loss"])
    assert loss != float(step(state.replace(step=state.step + 1), batch)[1]["loss"])
    other_seed = jax.jit(make_train_step(GPT(config.model), dataclasses.replace(config, seed=1)))
    assert loss != float(other_seed(state, batch)[1]["loss"])

    single, _ = setup(dataclasses.replace(config, train=Train(100, 2)))
    halves = [float(single(state, jax.tree.map(lambda x, i=i: x[i : i + 1], batch))[1]["loss"]) for i in (0, 1)]
    assert halves[0] == halves[1] != loss


def test_bfloat16_is_for_arithmetic_and_everything_kept_is_float32():
    config = make(Muon(), model={"dtype": "bfloat16"})
    step, state = setup(config)
    after, metrics = step(state, make_batch())
    floats = [leaf.dtype for leaf in jax.tree.leaves(after) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert set(floats) == {jnp.dtype("float32")}
    _, exact = setup(make(Muon()))[0](state, make_batch())
    assert metrics["loss"] != exact["loss"]
    np.testing.assert_allclose(metrics["loss"], exact["loss"], rtol=2e-2)


def test_the_state_can_be_donated():
    config = make(Adamw())
    model = GPT(config.model)
    state = init_state(model, config)
    after, _ = jax.jit(make_train_step(model, config), donate_argnums=0)(state, make_batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.optimizer)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))
