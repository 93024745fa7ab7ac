"""A bit that flips once in a step is found when the step is computed again, and the device is named."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from gpt_jax.config import Checkpoint, Config, Evaluation, Watchdog
from gpt_jax.data import Batch
from gpt_jax.runs import metrics
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.recompute import Corrupted, Recomputed, odd_copies, parts
from gpt_jax.runs.train import train
from gpt_jax.training.programs import Programs
from gpt_jax.training.sharding import make_mesh
from gpt_jax.training.state import TrainState
from tests.tiny import PROGRAMS, tiny_config


def flipped(array: jax.Array, device: jax.Device) -> jax.Array:
    """`array` with one bit of the part that a device holds flipped."""
    held = []
    for shard in array.addressable_shards:
        values = np.array(shard.data)
        if shard.device == device:
            values.view(np.uint8).reshape(-1)[2] ^= 16
        held.append(jax.device_put(values, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, held)


def config(every: int | None) -> Config:
    never = {"evaluation": Evaluation(every=100, batch_size=8), "checkpoint": Checkpoint(every=2)}
    return dataclasses.replace(tiny_config(steps=6, **never), recompute_every=every)


class Faulty(Programs):
    """Programs whose step flips a bit of a device in the second computation of step `step`, and never again."""

    def __init__(self, step: int, device: jax.Device) -> None:
        super().__init__()
        self._at, self._device, self._seen = step, device, 0

    def step(self, config: Config, mesh: Any) -> Any:
        right = PROGRAMS.step(config, mesh)

        def step(state: TrainState, batch: Any) -> Any:
            state, values = right(state, batch)
            if int(state.step) == self._at:
                self._seen += 1
                if self._seen == 2:
                    leaves, tree = jax.tree.flatten(state)
                    leaves[3] = flipped(leaves[3], self._device)
                    state = jax.tree.unflatten(tree, leaves)
            return state, values

        return step


def test_a_bit_that_flips_once_is_found_and_nothing_of_it_is_saved(tmp_path: Path) -> None:
    """The run then goes on from the checkpoint before, with the numbers of a run without the check."""
    quiet, device = Console(quiet=True), jax.devices()[2]
    with pytest.raises(Corrupted, match=rf"^step 4, computed twice .* on {device} \(in .*nothing was saved"):
        train(config(4), tmp_path / "run", console=quiet, programs=Faulty(4, device))
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["2"]
    train(config(4), tmp_path / "run", console=quiet, programs=PROGRAMS)
    train(config(None), tmp_path / "plain", console=Console(file=io.StringIO()), programs=PROGRAMS)
    ours, theirs = (metrics.read(RunFolder(tmp_path / name), "train") for name in ("run", "plain"))
    assert [record["loss"] for record in ours] == [record["loss"] for record in theirs]
    # A run that is under suspicion is looked at more closely.
    plain = metrics.read(RunFolder(tmp_path / "plain"))
    watched = dataclasses.replace(config(1), watchdog=Watchdog(abort=True))
    longer = dataclasses.replace(watched, train=dataclasses.replace(watched.train, steps=8))
    with pytest.raises(Corrupted, match="^step 7,"):
        train(longer, tmp_path / "plain", console=quiet, programs=Faulty(7, device))
    assert [r for r in metrics.read(RunFolder(tmp_path / "plain")) if r["step"] <= 6] == plain
    # Where it is not looked for, it is not found.
    train(config(5), tmp_path / "missed", console=quiet, programs=Faulty(4, device))


@pytest.mark.parametrize("axes", ["data=4", "data=2,fsdp=2"])
def test_copies_that_differ_name_the_odd_device(axes: str) -> None:
    """Of four copies the odd one; of two, both."""
    mesh = make_mesh(axes=axes)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp" if "fsdp" in axes else None))
    good = {"a": jax.device_put(jnp.arange(8.0), sharding), "b": jax.device_put(jnp.ones(4), sharding)}
    assert odd_copies(parts(good)) == ([], [])
    device = jax.devices()[1]
    arrays, devices = odd_copies(parts(good | {"a": flipped(good["a"], device)}))
    assert arrays == ["a"] and str(device) in devices and len(devices) == (1 if axes == "data=4" else 2)


def test_only_every_nth_step_is_computed_twice() -> None:
    calls: list[int] = []

    def step_fn(state: TrainState, batch: Any) -> Any:
        calls.append(int(state.step))
        return dataclasses.replace(state, step=state.step + 1), {"loss": jnp.zeros(())}

    step = Recomputed(step_fn, 3, start=4)
    state = TrainState(jnp.array(4), {}, {}, jnp.array(0), jnp.array(0))
    for _ in range(4):
        state, _ = step(state, Batch(None, None, None))
    assert calls == [4, 5, 5, 6, 7]
