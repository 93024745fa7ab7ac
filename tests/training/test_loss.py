import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax, logsumexp

from gpt_jax.training.loss import cross_entropy, cross_entropy_sums


def some(shape=(2, 5), vocabulary=7, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(*shape, vocabulary)).astype(np.float32) * 3
    weights = rng.choice([0.0, 0.5, 1.0], shape).astype(np.float32)
    return jnp.asarray(logits), jnp.asarray(rng.integers(0, vocabulary, shape), jnp.int32), jnp.asarray(weights)


def test_is_the_log_likelihood_that_float64_gives():
    logits, targets, _ = some()
    nll, log_z, hit = cross_entropy(logits, targets)
    expected = -np.take_along_axis(log_softmax(np.asarray(logits, np.float64), -1), np.asarray(targets)[..., None], -1)[
        ..., 0
    ]
    np.testing.assert_allclose(nll, expected, rtol=1e-5)
    np.testing.assert_allclose(log_z, logsumexp(np.asarray(logits, np.float64), -1), rtol=1e-6)
    np.testing.assert_array_equal(hit, logits.argmax(-1) == targets)


def test_gradient_is_softmax_minus_one_hot():
    logits, targets, _ = some()
    gradient = jax.grad(lambda x: cross_entropy(x, targets)[0].sum())(logits)
    expected = np.exp(log_softmax(np.asarray(logits, np.float64), -1)) - np.eye(7)[np.asarray(targets)]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_runs_in_float32_whatever_the_logits_are_in():
    logits, targets, _ = some()
    low = jnp.asarray(logits, jnp.bfloat16)
    nll, _, _ = cross_entropy(low, targets)
    assert nll.dtype == jnp.float32
    np.testing.assert_array_equal(nll, cross_entropy(low.astype(jnp.float32), targets)[0])


def test_is_finite_for_huge_logits():
    logits = jnp.array([[1e4, -1e4, 0.0]])
    nll, log_z, _ = cross_entropy(logits, jnp.array([1]))
    np.testing.assert_allclose([nll[0], log_z[0]], [2e4, 1e4])


def test_a_tie_is_no_hit():
    _, _, hit = cross_entropy(jnp.array([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0]]), jnp.array([0, 0]))
    assert hit.tolist() == [False, True]


def test_each_target_counts_by_its_weight():
    logits, targets, weights = some()
    nll, log_z, hit = (np.asarray(x, np.float64) for x in cross_entropy(logits, targets))
    sums = cross_entropy_sums(logits, targets, weights)
    np.testing.assert_allclose(sums.loss, (weights * nll).sum(), rtol=1e-6)
    np.testing.assert_allclose(sums.z_loss, (weights * log_z**2).sum(), rtol=1e-6)
    np.testing.assert_allclose(sums.hits, (weights * hit).sum())
    np.testing.assert_allclose(sums.weight, weights.sum())
    assert sums.tokens == (weights > 0).sum()


def test_a_masked_target_changes_nothing():
    logits, targets, weights = some()
    before = cross_entropy_sums(logits, targets, weights)
    masked = weights == 0
    assert masked.any()
    after = cross_entropy_sums(
        jnp.where(masked[..., None], -5 * logits, logits), jnp.where(masked, 0, targets), weights
    )
    jax.tree.map(np.testing.assert_array_equal, before, after)
