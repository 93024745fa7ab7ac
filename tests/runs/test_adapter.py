"""Where a model has an adapter, it alone trains: whatever the optimizer, the devices and the way of execution."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.analysis.cost import training_flops_per_token
from gpt_jax.config import Adafactor, Adamw, Config, Head, Lion, Lora, Muon, OptimizerConfig, Sgd
from gpt_jax.data import open_data
from gpt_jax.model.paths import layer_paths, map_with_path
from gpt_jax.model.stack import canonical
from gpt_jax.training.resolve import resolve
from gpt_jax.training.sharding import compile_step, make_mesh, replicate, shard_batch
from gpt_jax.training.state import init_state
from gpt_jax.training.step import make_train_step
from tests.tiny import tiny_config

OPTIMIZERS: dict[str, OptimizerConfig] = {
    "adamw": Adamw(0.05),
    "lion": Lion(0.01),
    "muon": Muon(0.05),
    "sgd": Sgd(0.5, momentum=0.9),
    "adafactor": Adafactor(0.05),
}


EVERY = Lora(rank=2, targets=("**",))


def adapted(adapter: Any = EVERY, **changes: Any) -> Config:
    model = changes.pop("model") if "model" in changes else {}
    config = tiny_config(init_from="a run", **changes)
    block = dataclasses.replace(config.model.blocks[0], adapter=adapter)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, blocks=(block,) * 2, **model))


def run(config: Config, steps: int = 3) -> tuple[Any, Any, list[float]]:
    """The states before and after some steps on all devices, and the losses."""
    data = open_data(config.data, config.model.context_length, 0)
    config = resolve(config, data)
    mesh, parallel = make_mesh(), config.train.parallel
    state = init_state(GPT(config.model), config)
    first = jax.device_get(state)
    step = compile_step(make_train_step(GPT(config.model), config), mesh, parallel)
    state, losses = replicate(state, mesh), []
    for number in range(steps):
        batch = shard_batch(data.batch(number, 8), mesh, parallel, config.train.accumulate)
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return first, jax.device_get(state), losses


def moved(before: Any, after: Any) -> set[str]:
    changed: set[str] = set()

    def note(path: str, a: Any, b: Any) -> None:
        if not np.array_equal(a, b):
            changed.update(layer_paths(path))

    map_with_path(note, before, after)
    return changed


# Muon and Adafactor look at each layer of a stack by itself.
@pytest.mark.parametrize("name, scan", [*((name, False) for name in OPTIMIZERS), ("muon", True), ("adafactor", True)])
def test_the_adapter_alone_moves(name: str, scan: bool) -> None:
    before, after, losses = run(adapted(optimizer=OPTIMIZERS[name], model={"scan": scan}))
    changed = moved(before.params, after.params)
    assert changed and all("adapter" in path for path in changed)
    assert len(changed) == 2 * 6 * 2  # layers · projections · (a, b)
    assert losses[-1] != losses[0]
    trains = sum(leaf.size for leaf in jax.tree.leaves(before.params)) / 4
    assert sum(np.size(leaf) for leaf in jax.tree.leaves(after.optimizer)) < 2 * trains + 10


def test_every_way_of_execution_gives_the_same_adapter() -> None:
    plain = run(adapted(optimizer=Sgd(0.5)))
    assert moved(plain[0].params, plain[1].params)
    ways = {
        "scan": adapted(optimizer=Sgd(0.5), model={"scan": True, "remat": "full"}),
        "accumulated": adapted(optimizer=Sgd(0.5), train=dataclasses.replace(tiny_config().train, accumulate=2)),
        "pmap": adapted(optimizer=Sgd(0.5), train=dataclasses.replace(tiny_config().train, parallel="pmap")),
    }
    for name, config in ways.items():
        other = run(config)
        np.testing.assert_allclose(other[2], plain[2], rtol=1e-5, err_msg=name)
        for a, b in zip(
            jax.tree.leaves(canonical(other[1].params)), jax.tree.leaves(canonical(plain[1].params)), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)


def test_its_gradient_is_that_of_the_whole_model() -> None:
    """And `clip_norm` and `grad_norm` are about it alone."""
    config = adapted(optimizer=Sgd(1.0), train=dataclasses.replace(tiny_config().train, clip_norm=None))
    before, after, _ = run(config, steps=1)
    data = open_data(config.data, 16, 0)
    model, batch = GPT(resolve(config, data).model), jax.tree.map(jnp.asarray, data.batch(0, 8))

    def loss(params: Any) -> Any:
        logits = model.apply(params, batch.tokens, segments=batch.segments, positions=batch.positions)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.targets[..., None], -1)[..., 0]
        return -(picked * batch.weights).sum() / batch.weights.sum()

    gradient = jax.grad(loss)(before.params)

    def check(path: str, old: Any, new: Any, g: Any) -> None:
        if "adapter" in path:
            np.testing.assert_allclose(new, old - g, atol=1e-5, err_msg=path)
        else:
            assert np.abs(g).max() > 0  # it would have moved

    map_with_path(check, before.params, after.params, gradient)


def test_what_a_step_costs() -> None:
    """A frozen product takes one product in the backward pass, a trained one two."""
    head = Head(tied=False)
    plain = tiny_config(model={"vocab_size": 9, "head": head}).model
    low = dataclasses.replace(plain, blocks=adapted(Lora(rank=2)).model.blocks)
    kernels, adapters = 2 * (4 * 16 * 16 + 2 * 16 * 32) + 9 * 16, 2 * 2 * (16 + 16) * 2
    difference = training_flops_per_token(plain, 16) - training_flops_per_token(low, 16)
    assert difference == 2 * kernels - 3 * 2 * adapters
