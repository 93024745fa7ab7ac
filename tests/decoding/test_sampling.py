"""Samplers against plain NumPy, and against what temperature and softmax are known to do."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import Greedy, Sampler

V = 11
probabilities_of = jax.jit(lambda sampler, logits: sampler.probabilities(logits))
LOGITS = np.random.default_rng(0).normal(size=(5, V)).astype(np.float32) * 2


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(np.float64(x) - x.max())
    return e / e.sum()


def brute_force(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None):
    """One row's probabilities by sorting token by token."""
    alive = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    probabilities = softmax(logits / temperature)
    if top_k is not None:
        alive = alive[:top_k]
    if top_p is not None:
        total, kept, reached = probabilities[alive].sum(), [], 0.0
        for i in alive:
            if reached >= top_p * total:
                break
            kept.append(i)
            reached += probabilities[i]
        alive = kept
    if min_p is not None:
        alive = [i for i in alive if probabilities[i] >= min_p * probabilities.max()]
    result = np.zeros(len(logits))
    result[alive] = probabilities[alive] / probabilities[alive].sum()
    return result


def entropy(probabilities: jax.Array) -> np.ndarray:
    p = np.float64(probabilities)
    return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(
    "filters",
    [
        (None, None, None),
        (1, None, None),
        (4, None, None),
        (V + 5, None, None),
        (None, 0.1, None),
        (None, 0.6, None),
        (None, 1.0, None),
        (None, None, 0.2),
        (None, None, 1.0),
        (None, None, 0.0),
        (6, 0.7, None),
        (6, 0.8, 0.15),
        (None, 0.9, 0.3),
    ],
)
def test_probabilities_equal_brute_force(temperature: float, filters: tuple) -> None:
    sampler = Sampler(temperature, *filters)
    expected = np.stack([brute_force(row, temperature, *filters) for row in LOGITS])
    np.testing.assert_allclose(sampler.probabilities(jnp.asarray(LOGITS)), expected, atol=1e-6)


@hypothesis.given(
    st.sampled_from([1, 2, 5, 9]).flatmap(lambda n: st.lists(st.integers(-3, 3), min_size=n, max_size=n)),
    st.sampled_from([None, 1, 3]),
    st.floats(0.05, 1.0),
)
@hypothesis.settings(max_examples=40)
def test_among_equals_the_lower_id_stays(levels: list[int], top_k: int | None, top_p: float) -> None:
    logits = np.float32(levels)
    expected = brute_force(logits, 1.0, top_k, top_p, None)
    top = softmax(logits)[np.argsort(-logits, kind="stable")[:top_k]]
    hypothesis.assume(np.abs(np.cumsum(top) / top.sum() - top_p).min() > 1e-5)  # rounding decides on the edge
    np.testing.assert_allclose(probabilities_of(Sampler(1.0, top_k, top_p), logits[None])[0], expected, atol=1e-6)


def test_top_p_halves_a_uniform_distribution_exactly() -> None:
    probabilities = Sampler(top_p=0.5).probabilities(jnp.zeros((1, 8)))
    np.testing.assert_array_equal(probabilities[0], [0.25] * 4 + [0] * 4)


def test_top_p_1_keeps_what_float32_rounds_away_from_the_sum() -> None:
    assert (Sampler(top_p=1.0).probabilities(jnp.array([[30.0, 0.0, 1.0]])) > 0).all()
    assert (Sampler(top_p=1.0).probabilities(jax.random.normal(jax.random.key(0), (1, 50_000)) * 3) > 0).all()


def test_draws_follow_the_probabilities() -> None:
    n = 20_000
    for sampler in (Sampler(0.7), Sampler(1.3, top_k=5), Sampler(1.0, top_p=0.8, min_p=0.05)):
        logits = jnp.broadcast_to(LOGITS[0], (n, V))
        ids = sampler(jax.random.split(jax.random.key(1), n), logits)
        expected = np.float64(sampler.probabilities(logits[:1])[0])
        observed = np.bincount(np.asarray(ids), minlength=V) / n
        assert (observed[expected == 0] == 0).all()
        sigma = np.sqrt(expected * (1 - expected) / n)
        assert (np.abs(observed - expected) <= 4.5 * sigma + 1e-9).all()


def test_temperature_1_is_the_identity() -> None:
    np.testing.assert_array_equal(Sampler().probabilities(jnp.asarray(LOGITS)), jax.nn.softmax(LOGITS, axis=-1))


def test_entropy_does_not_fall_as_temperature_rises() -> None:
    temperatures = [0.0, 1e-3, 0.1, 0.3, 0.7, 1.0, 1.5, 3.0, 10.0, 1e4]
    entropies = np.stack([entropy(Sampler(t).probabilities(jnp.asarray(LOGITS))) for t in temperatures])
    assert (np.diff(entropies, axis=0) >= -1e-6).all()
    np.testing.assert_allclose(entropies[-1], np.log(V), atol=1e-3)


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1e-38, 1e-30, 1e-5])
def test_temperature_towards_0_is_argmax(temperature: float) -> None:
    keys = jax.random.split(jax.random.key(0), len(LOGITS))
    for scale in (1.0, 1e4):
        logits = jnp.asarray(LOGITS * scale)
        np.testing.assert_array_equal(Sampler(temperature)(keys, logits), LOGITS.argmax(-1))
        np.testing.assert_array_equal(Sampler(temperature).probabilities(logits), np.eye(V)[LOGITS.argmax(-1)])


def test_greedy_takes_the_first_of_equals() -> None:
    logits, keys = jnp.array([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]]), jax.random.split(jax.random.key(0), 2)
    assert Greedy()(keys, logits).tolist() == [1, 0]
    assert Sampler(0)(keys, logits).tolist() == [1, 0]
    assert Sampler(top_k=1)(keys, logits).tolist() == [1, 0]


@hypothesis.given(
    st.sampled_from([2, 5, 9]).flatmap(lambda n: st.lists(st.floats(-1e4, 1e4, width=32), min_size=n, max_size=n)),
    st.floats(-1e4, 1e4, width=32),
)
@hypothesis.settings(max_examples=40)
def test_softmax_sums_to_1_keeps_the_order_and_ignores_a_shift(values: list[float], shift: float) -> None:
    logits = np.float32([values])
    p = np.asarray(probabilities_of(Sampler(), logits))[0]
    assert np.isfinite(p).all() and (p >= 0).all() and (p <= 1).all()
    np.testing.assert_allclose(p.sum(), 1, atol=1e-5)
    assert (np.diff(p[np.argsort(logits[0], kind="stable")]) >= 0).all()
    shifted = np.asarray(probabilities_of(Sampler(), logits + np.float32(shift)))[0]
    # The shift itself rounds logits of 1e4 to multiples of 2⁻⁹.
    np.testing.assert_allclose(shifted, p, atol=2e-3)


def test_softmax_of_moderate_logits_lies_strictly_between_0_and_1() -> None:
    p = Sampler().probabilities(jnp.asarray(LOGITS))
    assert ((p > 0) & (p < 1)).all()


def test_a_row_draws_by_its_own_key_alone() -> None:
    keys, order = jax.random.split(jax.random.key(3), len(LOGITS)), np.array([3, 0, 4, 1, 2])
    for sampler in (Sampler(), Sampler(2.0, top_k=6, top_p=0.9, min_p=0.01)):
        together = sampler(keys, jnp.asarray(LOGITS))
        np.testing.assert_array_equal(sampler(keys[order], jnp.asarray(LOGITS)[order]), together[order])
        np.testing.assert_array_equal(sampler(keys[2:3], jnp.asarray(LOGITS)[2:3]), together[2:3])


def test_samplers_are_values() -> None:
    assert Sampler(0.8, top_k=4) == Sampler(0.8, top_k=4) and hash(Greedy()) == hash(Greedy())
    assert len({Sampler(0.8), Sampler(0.8), Sampler(0.9), Sampler(0.8, top_k=1)}) == 3
    static = jax.jit(lambda keys, logits, sampler: sampler(keys, logits), static_argnums=2)
    keys = jax.random.split(jax.random.key(0), len(LOGITS))
    for sampler in (Greedy(), Sampler(0), Sampler(0.5, 4, 0.9, 0.1)):
        np.testing.assert_array_equal(static(keys, LOGITS, sampler), sampler(keys, jnp.asarray(LOGITS)))


def test_another_number_needs_no_new_program() -> None:
    traces = []

    @jax.jit
    def draw(sampler: Sampler, keys: jax.Array, logits: jax.Array) -> jax.Array:
        traces.append(sampler)
        return sampler(keys, logits)

    keys = jax.random.split(jax.random.key(0), len(LOGITS))
    for sampler in (Sampler(0.5, 4, 0.9), Sampler(1.5, 4, 0.2), Sampler(3.0, 4, 1.0)):
        np.testing.assert_array_equal(draw(sampler, keys, LOGITS), sampler(keys, jnp.asarray(LOGITS)))
    assert len(traces) == 1
    draw(Sampler(0.5, 5, 0.9), keys, LOGITS)
    assert len(traces) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"temperature": float("inf")}, "temperature must be 0"),
        ({"top_k": 0}, "top_k must be a whole number of at least 1"),
        ({"top_k": -3}, "top_k must be a whole number of at least 1"),
        ({"top_p": 0.0}, "top_p must lie in"),
        ({"top_p": 1.1}, "top_p must lie in"),
        ({"min_p": -0.1}, "min_p must lie in"),
        ({"min_p": 1.5}, "min_p must lie in"),
    ],
)
def test_settings_out_of_range_are_refused_at_construction(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(**settings)
