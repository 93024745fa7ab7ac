"""The training step computes what it always did, and what the paper says.

Five steps from parameters and batches drawn by NumPy give stored losses and gradient norms, for two optimizers. And
AdamW, written here in NumPy and float64 from its paper, gives the same gradient norms and parameters step by step.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.config import Adamw, Config, Muon, Text, Train, WarmupCosine
from gpt_jax.data import Batch
from gpt_jax.training.loss import cross_entropy
from gpt_jax.training.optimizer import make_optimizer
from gpt_jax.training.state import init_state
from gpt_jax.training.step import make_train_step
from tests.tiny import VOCABULARY, random_params, tiny

pytestmark = pytest.mark.optimized

STEPS = 5
SCHEDULE = WarmupCosine(warmup=2, final=0.1, steps=8)


def run(optimizer):
    """Model, states and metrics of five steps. Changes of the model's own initial values do not reach these numbers."""
    config = Config(tiny(), Text(), optimizer, Train(8, 4, clip_norm=0.5, z_loss=1e-3), SCHEDULE)
    model = GPT(config.model)
    params = random_params(model)
    state = init_state(model, config).replace(params=params, optimizer=make_optimizer(optimizer).init(params))
    step = jax.jit(make_train_step(model, config))
    states, metrics = [state], []
    for batch in batches():
        state, values = step(state, batch)
        states.append(state)
        metrics.append(values)
    return model, states, metrics


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        ids = rng.integers(0, VOCABULARY, (4, 9)).astype(np.int32)
        weights = (rng.random((4, 8)) < 0.8).astype(np.float32)
        yield Batch(jnp.asarray(ids[:, :-1]), jnp.asarray(ids[:, 1:]), jnp.asarray(weights))


GOLDEN = [
    (
        Adamw(learning_rate=0.1),
        [7.044760, 7.048213, 6.255473, 4.884873, 4.336081],
        [13.42202, 5.826876, 4.850842, 3.560830, 2.675389],
    ),
    (
        Muon(learning_rate=0.1, weight_decay=0.1),
        [7.044760, 7.048213, 6.739512, 6.144522, 5.597816],
        [13.42202, 5.826876, 5.051039, 5.368304, 3.276600],
    ),
]


@pytest.mark.parametrize(("optimizer", "losses", "norms"), GOLDEN, ids=["Adamw", "Muon"])
def test_losses_and_gradient_norms_equal_stored_values(optimizer, losses, norms):
    _, _, metrics = run(optimizer)
    np.testing.assert_allclose([float(m["loss"]) for m in metrics], losses, rtol=2e-5)
    np.testing.assert_allclose([float(m["grad_norm"]) for m in metrics], norms, rtol=1e-4)


def test_adamw_equals_a_numpy_implementation_of_the_paper():
    c = Adamw(learning_rate=0.1, beta2=0.95, weight_decay=0.3)
    model, states, metrics = run(c)

    def objective(params, batch):
        nll, log_z, _ = cross_entropy(model.apply(params, batch.tokens), batch.targets)
        return jnp.sum(batch.weights * (nll + 1e-3 * log_z**2)) / jnp.sum(batch.weights)

    gradient = jax.jit(jax.grad(objective))
    paths = ["/".join(k.key for k in keys) for keys, _ in jax.tree.leaves_with_path(states[0].params)]
    params = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(states[0].params)]
    m = [np.zeros_like(p) for p in params]
    v = [np.zeros_like(p) for p in params]
    factors = [0.0, 0.5, *(0.1 + 0.45 * (1 + np.cos(np.pi * (t - 2) / 6)) for t in (2, 3, 4))]
    for t, batch in enumerate(batches()):
        tree = jax.tree.unflatten(jax.tree.structure(states[0].params), [p.astype(np.float32) for p in params])
        g = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(gradient(tree, batch))]
        norm = np.sqrt(sum((x**2).sum() for x in g))
        np.testing.assert_allclose(metrics[t]["grad_norm"], norm, rtol=1e-4)
        for i, path in enumerate(paths):
            x = g[i] * min(1.0, 0.5 / norm)
            m[i] = c.beta1 * m[i] + (1 - c.beta1) * x
            v[i] = c.beta2 * v[i] + (1 - c.beta2) * x**2
            change = m[i] / (1 - c.beta1 ** (t + 1)) / (np.sqrt(v[i] / (1 - c.beta2 ** (t + 1))) + c.eps)
            decay = c.weight_decay if path.endswith("/kernel") else 0.0
            params[i] = params[i] - 0.1 * factors[t] * (change + decay * params[i])
        for path, ours, expected in zip(paths, jax.tree.leaves(states[t + 1].params), params, strict=True):
            np.testing.assert_allclose(ours, expected, atol=2e-4, err_msg=f"{path} after step {t}")
