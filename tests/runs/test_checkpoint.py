"""Checkpoints come back bit for bit, or not at all."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax.runs.checkpoint import CheckpointError, Checkpoints
from gpt_jax.runs.fingerprint import fingerprints
from gpt_jax.runs.folder import RunFolder
from gpt_jax.training.sharding import make_mesh


def params(seed: int) -> dict[str, Any]:
    key = jax.random.key(seed)
    return {"blocks": {"0": {"kernel": jax.random.normal(key, (64, 33))}, "1": {"scale": jnp.ones(7, jnp.bfloat16)}}}


REST = {"step": jnp.int32(3), "optimizer/0/mu/blocks/0/kernel": jnp.arange(5.0)}


def template(tree: Any) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


TEMPLATES = {"params": template(jax.eval_shape(lambda: params(0))), "rest": template(REST)}


@contextmanager
def saved(path: Path, losses: list[float | None], keep: int = 1) -> Iterator[Checkpoints]:
    """A folder with checkpoints of steps 1, 2, …, their parameters made from the step."""
    with Checkpoints(RunFolder(path), keep) as checkpoints:
        for step, loss in enumerate(losses, 1):
            checkpoints.save(step, params(step), REST, {"note": step}, loss)
        checkpoints.wait()
        yield checkpoints


def assert_same_bits(left: Any, right: Any) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    with saved(tmp_path, [None]) as checkpoints:
        restored = checkpoints.restore_newest(TEMPLATES)
    assert restored is not None
    assert (restored.step, restored.record) == (1, {"note": 1})
    assert_same_bits(restored.trees, {"params": params(1), "rest": REST})


def test_parameters_can_be_read_alone(tmp_path: Path) -> None:
    with saved(tmp_path, [None]), Checkpoints(RunFolder(tmp_path), read_only=True) as reader:
        restored = reader.restore_newest({"params": TEMPLATES["params"]})
        assert restored is not None
        assert_same_bits(restored.trees, {"params": params(1)})


def test_training_on_while_a_checkpoint_is_written_does_not_change_it(tmp_path: Path) -> None:
    @partial(jax.jit, donate_argnums=0)
    def train_on(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf * 0 - 1, tree)

    state = jax.block_until_ready(params(5))
    with Checkpoints(RunFolder(tmp_path)) as checkpoints:
        checkpoints.save(1, state, REST, {}, None)
        for _ in range(20):
            state = train_on(state)
        jax.block_until_ready(state)
        checkpoints.wait()
        restored = checkpoints.restore_newest(TEMPLATES)
    assert restored is not None
    assert_same_bits(restored.trees["params"], params(5))


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    with saved(tmp_path, [3.0, 1.0, 2.0, None, float("nan"), None]) as checkpoints:
        assert checkpoints.steps() == [6, 2]


def test_the_newest_few_stay(tmp_path: Path) -> None:
    with saved(tmp_path, [1.0, 3.0, 2.0, 4.0], keep=2) as checkpoints:
        assert checkpoints.steps() == [4, 3, 1]


def test_an_empty_folder_has_none(tmp_path: Path) -> None:
    with Checkpoints(RunFolder(tmp_path)) as checkpoints:
        assert checkpoints.restore_newest(TEMPLATES) is None
    with pytest.raises(FileNotFoundError, match="no checkpoint yet"):
        Checkpoints(RunFolder(tmp_path / "none"), read_only=True)


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_a_bit(folder: Path) -> None:
    path = largest_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut_short(folder: Path) -> None:
    path = largest_file(folder)
    path.write_bytes(path.read_bytes()[:100])


def lose_a_file(folder: Path) -> None:
    largest_file(folder).unlink()


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, lose_a_file])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path: Path, damage: Any) -> None:
    with saved(tmp_path, [None, None], keep=2):
        damage(tmp_path / "checkpoints" / "2" / "params")
    with Checkpoints(RunFolder(tmp_path), keep=2) as checkpoints:
        with pytest.warns(UserWarning, match="checkpoints/2 .*going back"):
            restored = checkpoints.restore_newest(TEMPLATES, move_damaged=True)
        assert restored is not None and restored.step == 1
        assert_same_bits(restored.trees["params"], params(1))
        # Its step can be saved again, and the damaged one is still there to look at.
        checkpoints.save(2, params(22), REST, {}, None)
        checkpoints.wait()
        assert_same_bits(checkpoints.restore(2, TEMPLATES).trees["params"], params(22))
        assert [path.name[:2] for path in (tmp_path / "damaged").iterdir()] == ["2-"]


def test_reading_moves_nothing(tmp_path: Path) -> None:
    with saved(tmp_path, [None, None], keep=2):
        flip_a_bit(tmp_path / "checkpoints" / "2" / "params")
    with Checkpoints(RunFolder(tmp_path), read_only=True) as reader, pytest.warns(UserWarning):
        assert reader.restore_newest(TEMPLATES) is not None
    assert (tmp_path / "checkpoints" / "2").is_dir() and not (tmp_path / "damaged").exists()


def test_reading_warns_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with saved(tmp_path, [None]):
        pass
    logger = logging.getLogger("absl")
    logger.addHandler(caplog.handler)
    try:
        with Checkpoints(RunFolder(tmp_path), read_only=True) as checkpoints:
            assert checkpoints.restore_newest(TEMPLATES) is not None
    finally:
        logger.removeHandler(caplog.handler)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_damage_to_all_is_an_error(tmp_path: Path) -> None:
    with saved(tmp_path, [None]):
        flip_a_bit(tmp_path / "checkpoints" / "1" / "params")
    with Checkpoints(RunFolder(tmp_path)) as checkpoints, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(CheckpointError, match="no checkpoint in .* can be read"):
            checkpoints.restore_newest(TEMPLATES)


def test_a_step_that_has_none_is_said_so(tmp_path: Path) -> None:
    with (
        saved(tmp_path, [None]) as checkpoints,
        pytest.raises(CheckpointError, match="no checkpoint of step 5; there are: 1"),
    ):
        checkpoints.restore(5, TEMPLATES)


def test_a_half_written_checkpoint_does_not_count(tmp_path: Path) -> None:
    with saved(tmp_path, [None]):
        pass
    # What Orbax leaves of a write that a crash ended.
    (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp-0").mkdir()
    with Checkpoints(RunFolder(tmp_path)) as checkpoints:
        assert checkpoints.steps() == [1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_every_flipped_bit_changes_the_fingerprint(dtype: str) -> None:
    content = (np.arange(24) % 2 if dtype == "bool" else np.arange(24)).astype(jnp.dtype(dtype))
    seen = {fingerprints({"x": jnp.asarray(content)})["x"]}
    raw = np.frombuffer(content.tobytes(), np.uint8)
    bits = [0] if dtype == "bool" else range(8)
    flipped = [(byte, bit) for byte in range(len(raw)) for bit in bits]
    for byte, bit in flipped:
        changed = raw.copy()
        changed[byte] ^= 1 << bit
        seen.add(fingerprints({"x": jnp.asarray(changed.view(content.dtype))})["x"])
    assert len(seen) == len(flipped) + 1


def test_the_fingerprint_sees_order_and_sign() -> None:
    base = jnp.arange(1.0, 9.0)
    changed = [base[::-1], -base, base.at[0].multiply(-1).at[1].multiply(-1), jnp.roll(base, 1)]
    assert len({fingerprints([tree])["0"] for tree in (base, *changed)}) == 5


def test_the_fingerprint_does_not_depend_on_sharding() -> None:
    mesh, content = make_mesh(), jax.random.normal(jax.random.key(0), (8, 6))
    sharded = jax.device_put(content, NamedSharding(mesh, PartitionSpec("data")))
    assert len(sharded.sharding.device_set) == 4
    assert fingerprints({"x": sharded}) == fingerprints({"x": content})
