"""Parameters divided over a mesh: the same gradients and losses as on one device, and really divided."""

import dataclasses
import re
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.config import (
    Adamw,
    Attention,
    Config,
    Copy,
    Delta,
    Differential,
    Head,
    Latent,
    LinearAttention,
    Lora,
    ModelConfig,
    Muon,
    Rope,
    Train,
)
from gpt_jax.config.errors import ConfigError
from gpt_jax.config.mesh import divides_parameters, fill_mesh, parse_mesh
from gpt_jax.data import Batch
from gpt_jax.model.paths import map_with_path
from gpt_jax.training.partition import shardings
from gpt_jax.training.programs import Programs
from gpt_jax.training.sharding import make_mesh, replicate, shape_structs, shard_batch, traced_under
from gpt_jax.training.state import init_params, state_shapes
from gpt_jax.training.step import _loss
from tests.tiny import VOCABULARY, random_params, shapes_of, tiny

MESHES = ("fsdp=4", "tensor=4", "fsdp=2,tensor=2", "data=2,tensor=2", "data=2,fsdp=2")  # of 4 devices
KINDS: dict[str, Any] = {
    "grouped": Attention(heads=4, kv_heads=2, position=Rope()),
    "latent": Latent(heads=4, rank=8, head_width=4, rotary_width=4),
    "linear": LinearAttention(heads=4),
    "delta": Delta(heads=4),
    "differential": Differential(heads=4),
}


def model_of(kind: str, **changes: Any) -> ModelConfig:
    return tiny(KINDS[kind], **{"width": 16, "head": Head(tied=False)} | changes)


def make_batch(rows: int = 8, positions: int = 8) -> Batch:
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, VOCABULARY, (2, rows, positions)).astype(np.int32)
    weights = rng.choice([0.0, 1.0], (rows, positions)).astype(np.float32)
    return Batch(tokens, targets, weights, np.ones_like(tokens), np.arange(positions, dtype=np.int32) + 0 * tokens)


@cache
def gradients(model: ModelConfig, axes: str, devices: int, parts: int = 1) -> Any:
    """Raw gradients, as NumPy arrays, and the bytes that each device holds of the parameters."""
    mesh = make_mesh(jax.devices()[:devices], axes)
    params = random_params(GPT(model), size=0.3)  # larger ones make a delta rule's states ill-conditioned
    placed = jax.device_put(params, shardings(model, mesh, params))
    train = Train(1, 8, accumulate=parts)

    def of(params: Any, batch: Batch) -> Any:
        loss = _loss(GPT(model), train, params, jnp.float32(1 / 32))
        return jax.grad(lambda p: loss(p, batch, jax.random.key(0))[0])(params)

    program = jax.jit(traced_under(mesh, of), out_shardings=shardings(model, mesh, params))
    found = program(placed, shard_batch(make_batch(), mesh, "jit"))
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(found))
    return jax.tree.map(np.asarray, found), held


def assert_close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """The norm of each array's difference, relative to the array's."""

    def check(path: str, a: Any, b: Any) -> None:
        assert np.linalg.norm(a - b) <= tolerance * max(float(np.linalg.norm(b)), 1e-3), path

    map_with_path(check, found, expected)


@pytest.mark.parametrize("axes", MESHES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_one_device(kind: str, axes: str) -> None:
    model = model_of(kind)
    assert_close(gradients(model, axes, 4)[0], gradients(model, "data=1", 1)[0])


@pytest.mark.parametrize("changes", [{"scan": True}, {"remat": "full"}, {"head": Head(block=12)}, {"head": Head()}])
def test_so_are_those_of_scanned_recomputed_and_blockwise_models(changes: dict[str, Any]) -> None:
    model, axes = model_of("grouped", **changes), "fsdp=2,tensor=2"
    assert_close(gradients(model, axes, 4)[0], gradients(model, "data=1", 1)[0])


@pytest.mark.parametrize("axes", ["fsdp=4", "fsdp=2,tensor=2"])
def test_so_are_those_of_adapters(axes: str) -> None:
    block = dataclasses.replace(model_of("grouped").blocks[0], adapter=Lora(rank=2))
    model = dataclasses.replace(model_of("grouped"), blocks=(block,) * 2)
    assert_close(gradients(model, axes, 4)[0], gradients(model, "data=1", 1)[0])


def test_a_vocabulary_stays_divided_in_the_loss_by_blocks() -> None:
    """Devices along `tensor` send one another sums and vectors of tokens, never kernels of the head."""
    model, mesh = model_of("grouped", vocab_size=128, head=Head(block=12)), make_mesh(jax.devices()[:4], "tensor=4")
    params = random_params(GPT(model))
    placed = jax.device_put(params, shardings(model, mesh, params))
    assert placed["params"]["embedding"]["table"].addressable_shards[0].data.shape == (32, 16)
    loss = lambda p, batch: _loss(GPT(model), Train(1, 8), p, jnp.float32(1))(p, batch, jax.random.key(0))[0]  # noqa: E731
    program = jax.jit(traced_under(mesh, jax.grad(loss)), out_shardings=shardings(model, mesh, params))
    text = program.lower(placed, shard_batch(make_batch(), mesh, "jit")).compile().as_text()
    assert not re.findall(r"= f32\[(?:1,)?(?:128,16|16,128)\]\S* all-(?:gather|reduce)", text)


def test_parameters_are_really_divided() -> None:
    model = model_of("grouped")
    whole, divided = gradients(model, "data=1", 1)[1], gradients(model, "fsdp=2,tensor=2", 4)[1]
    assert divided < 0.4 * whole


def test_heads_that_tensor_does_not_divide_stay_whole() -> None:
    model, mesh = model_of("grouped"), make_mesh(jax.devices()[:4], "tensor=4")
    specs = {}
    map_with_path(lambda path, place: specs.setdefault(path, place.spec), shardings(model, mesh, shapes_of(model)))
    assert specs["blocks/0/attention/query/kernel"] == jax.P(None, "tensor")
    assert specs["blocks/0/attention/key/kernel"] == jax.P(None, None)
    assert specs["blocks/0/attention/output/kernel"] == jax.P("tensor", None)
    assert specs["final_norm/scale"] == jax.P()


def run_of(axes: str, optimizer: Any, **train: Any) -> Config:
    model = dataclasses.replace(model_of("grouped"), vocab_size=10)
    return Config(model, Copy(symbols=8, length=4), optimizer, Train(20, 8, **train), mesh=axes)


@pytest.mark.parametrize("optimizer", [Adamw(1e-2), Muon(1e-2)], ids=["adamw", "muon"])
def test_training_has_the_losses_of_one_device(optimizer: Any) -> None:
    """Twenty steps, with accumulation; state and moments are made divided and stay so."""
    losses, held = {}, {}
    for axes, devices in (("data=1", 1), ("fsdp=2,tensor=2", 4)):
        config = run_of(axes, optimizer, accumulate=2)
        mesh, programs = make_mesh(jax.devices()[:devices], axes), Programs()
        state, step, found = programs.init(config, mesh), programs.step(config, mesh), []
        places = programs.placement(config, mesh)
        for seed in range(20):
            rng = np.random.default_rng(seed)
            rows = make_batch()._replace(tokens=rng.integers(0, 10, (8, 8)).astype(np.int32))
            batch = rows._replace(targets=np.roll(rows.tokens, -1, 1))
            state, metrics = step(state, shard_batch(batch, mesh, "jit", 2))
            found.append(float(metrics["loss"]))
        losses[devices] = found
        held[devices] = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
        if devices == 4:
            wanted = jax.tree.map(lambda x, place: x.sharding.is_equivalent_to(place, x.ndim), state, places)
            assert all(jax.tree.leaves(wanted))
    np.testing.assert_allclose(losses[4], losses[1], rtol=2e-4)
    assert held[4] < 0.5 * held[1]


def wide(axes: str) -> Config:
    """A run whose parameters are most of what a device needs."""
    config = run_of(axes, Adamw(1e-2))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, width=256))


def test_initial_values_are_those_of_one_device() -> None:
    config, alone = wide("fsdp=4"), wide("data=1")
    state = Programs().init(config, make_mesh(jax.devices()[:4], config.mesh))
    expected = Programs().init(alone, make_mesh(jax.devices()[:1], "data=1"))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), jax.device_get(expected.params))


def test_initial_values_are_made_in_place() -> None:
    """No device holds a divided parameter as a whole, not even while it is drawn: by the compiler's account, all that a
    device needs is less than the parameters.
    """
    config = wide("fsdp=4")
    mesh = make_mesh(jax.devices()[:4], config.mesh)
    draw = jax.jit(
        partial(init_params, GPT(config.model), config), out_shardings=Programs().placement(config, mesh).params
    )
    used = draw.lower(jax.random.key(0)).compile().memory_analysis()
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes_of(config.model)))
    assert used.output_size_in_bytes < 0.3 * whole
    assert used.output_size_in_bytes + used.temp_size_in_bytes < whole


@pytest.mark.parametrize("axes", ["fsdp=4", "fsdp=2,tensor=2"])
def test_only_products_bring_parameters_together(axes: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Every gathering belongs to the forward or the backward pass: none brings moments together. The partitioner never
    has to make a whole array of what it cannot move otherwise.
    """
    config = run_of(axes, Adamw(1e-2))
    mesh, programs = make_mesh(jax.devices()[:4], axes), Programs()
    state = shape_structs(state_shapes(config), programs.placement(config, mesh))
    lowered = programs._step(config, mesh).lower(state, shard_batch(make_batch(), mesh, "jit"))
    jax.config.update("jax_enable_compilation_cache", False)  # a program from the cache prints no warning
    try:
        text = lowered.compile().as_text()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    found = re.findall(r"= \S+ all-gather(?:-start)?\(.*", text)
    assert found and all("jvp(" in line for line in found)
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


# ── the setting ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sizes_fill_the_devices() -> None:
    assert parse_mesh("data=2, fsdp=4") == {"data": 2, "fsdp": 4}
    assert fill_mesh("data=-1,tensor=2", 8) == {"data": 4, "tensor": 2}
    assert not divides_parameters({"data": 8, "tensor": 1}) and divides_parameters({"data": 2, "fsdp": 4})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data", "must read like"),
        ("dta=2", 'no axis "dta"; did you mean "data"'),
        ("data=2,data=2", "twice"),
        ("fsdp=0", "positive"),
        ("data=-1,fsdp=-1", "more than one"),
    ],
)
def test_a_mistake_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_mesh(text)


def test_sizes_must_fit_the_devices() -> None:
    with pytest.raises(ConfigError, match="does not fit 8 devices"):
        fill_mesh("data=3,fsdp=2", 8)


def test_pmap_divides_rows_alone() -> None:
    with pytest.raises(ConfigError, match="divides rows alone"):
        run_of("fsdp=2", Adamw(1e-2), parallel="pmap")


def test_the_mesh_is_part_of_every_program() -> None:
    """One cache of programs serves runs on several meshes."""
    programs, config = Programs(), run_of("data=-1", Adamw(1e-2))
    first = programs.init(config, make_mesh(jax.devices()[:2]))
    second = programs.init(dataclasses.replace(config, mesh="fsdp=2"), make_mesh(jax.devices()[:2], "fsdp=2"))
    kernel = lambda state: state.params["params"]["blocks"]["0"]["mlp"]["up"]["kernel"]  # noqa: E731
    assert kernel(first).sharding.is_fully_replicated and not kernel(second).sharding.is_fully_replicated
    assert replicate(1, make_mesh(jax.devices()[:2])).sharding.is_fully_replicated
