"""Averages against NumPy means of the weights after each step, which a run without an average shows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.config import AverageConfig, Config, Ema, Sgd, TailAverage, Text, Train
from gpt_jax.config.errors import ConfigError
from gpt_jax.data import open_data
from gpt_jax.training.average import SHARES, make_average, resolve_average
from gpt_jax.training.resolve import lengthened, resolve
from gpt_jax.training.state import REST, tree_shapes
from tests.tiny import tiny, tiny_config


def counted(average: AverageConfig, count: int) -> np.ndarray:
    """How much the weights of each of the first `count` steps count in the mean after them."""
    if isinstance(average, Ema):
        share = average.decay ** np.arange(count)[::-1]
    else:
        assert isinstance(average, TailAverage) and average.steps is not None
        share = np.arange(count) >= min(round(average.start * average.steps), count - 1)
    return share / share.sum()


CASES = [Ema(0.5), Ema(0.999), TailAverage(0.0, 9), TailAverage(0.25, 8), TailAverage(0.7, 10), TailAverage(0.999, 6)]


@pytest.mark.parametrize("average", CASES, ids=str)
def test_the_running_mean_is_the_mean(average: AverageConfig) -> None:
    weights = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    update, mean = jax.jit(make_average(average)), {"a": jnp.zeros(5)}
    for step in range(12):
        mean = update(mean, {"a": weights[step]}, jnp.int32(step))
        expected = counted(average, step + 1) @ weights[: step + 1].astype(np.float64)
        np.testing.assert_allclose(mean["a"], expected, atol=1e-6)


def test_every_average_is_tested() -> None:
    assert {type(average) for average in CASES} == set(SHARES) == set(AverageConfig.choices.values())


def test_a_mean_over_many_steps_keeps_its_precision() -> None:
    """Where a power of the decay in float32 would not."""
    update, mean = jax.jit(make_average(Ema(0.99999))), jnp.zeros(1)
    values = 1.0 + np.arange(300)
    for step, value in enumerate(values):
        mean = update(mean, jnp.float32([value]), jnp.int32(step))
    np.testing.assert_allclose(mean, counted(Ema(0.99999), 300) @ values, rtol=1e-6)


def test_the_length_is_filled_in_when_the_run_starts() -> None:
    assert resolve_average(TailAverage(0.5), 300) == TailAverage(0.5, 300)
    assert resolve_average(TailAverage(0.5, 200), 300) == TailAverage(0.5, 200)
    assert resolve_average(Ema(), 300) == Ema() and resolve_average(None, 300) is None
    config = tiny_config(train=Train(steps=6, batch_size=8, average=TailAverage(0.5)))
    resolved = resolve(config, open_data(config.data, 16, 0))
    assert lengthened(resolved, 60).train == dataclasses.replace(config.train, steps=60, average=TailAverage(0.5, 6))
    with pytest.raises(ValueError, match="resolve_average"):
        make_average(TailAverage())


def test_without_an_average_a_checkpoint_holds_what_it_always_held() -> None:
    config = Config(tiny(layers=1), Text(), Sgd(), Train(steps=1, batch_size=1))
    assert tree_shapes(config)[REST].keys() == {"step", "skipped", "skipped_in_row"}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Ema(1.0), r"train.average.decay must lie in \(0, 1\), not 1.0"),
        (lambda: Ema(0.0), "train.average.decay"),
        (lambda: TailAverage(1.0), r"train.average.start must lie in \[0, 1\), not 1.0"),
        (lambda: TailAverage(steps=0), "train.average.steps must be positive"),
        (
            lambda: tiny_config(train=Train(steps=1, batch_size=1, average=Ema()), model={"param_dtype": "bfloat16"}),
            'lost in bfloat16: set model.param_dtype to "float32"',
        ),
    ],
)
def test_an_impossible_average_is_refused(make, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make()
