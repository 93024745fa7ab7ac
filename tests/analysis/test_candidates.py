"""What a search tries: ways that a run accepts, without those that cannot fit."""

import dataclasses

import pytest

from gpt_jax import config
from gpt_jax.analysis.candidates import MOMENTS, candidates, meshes
from gpt_jax.analysis.chips import CHIPS
from gpt_jax.analysis.cost import count_parameters
from gpt_jax.analysis.forecast import Forecast
from gpt_jax.analysis.search import Try, ranked
from gpt_jax.config import Attention, BlockConfig, Config, Lion, Mlp, ModelConfig, Text, Train
from gpt_jax.config.mesh import fill_mesh

V5E = next(chip for chip in CHIPS if chip.name == "v5e")
BLOCK = BlockConfig(Attention(heads=4), Mlp(1024))
CONFIG = Config(ModelConfig(512, 128, 256, (BLOCK,) * 2), Text(), config.Adamw(), Train(100, batch_size=8))


def test_meshes_divide_rows_and_heads():
    found = set(meshes(CONFIG, 16))
    assert all(8 % (axes.get("data", 1) * axes.get("fsdp", 1)) == 0 for axes in (fill_mesh(m, 16) for m in found))
    assert all(4 % fill_mesh(mesh, 16).get("tensor", 1) == 0 for mesh in found)
    assert {"data=8,tensor=2", "fsdp=4,tensor=4", "data=2,fsdp=4,tensor=2"} <= found


def test_each_way_is_the_configuration_with_its_flags():
    ways = candidates(CONFIG, 128, 4, V5E)
    assert len({way.flags for way in ways}) == len(ways) > 20
    for way in ways:
        said = dict(flag.removeprefix("--config.").split("=", 1) for flag in way.flags)
        c = way.config
        made = {"mesh": c.mesh, "train.accumulate": c.train.accumulate, "model.remat": c.model.remat}
        assert {name: str(value) for name, value in made.items() if name in said} == {
            name: value for name, value in said.items() if name != "model.kernel"
        }
        assert c.train.batch_size % c.train.accumulate == 0
    assert [way.seconds for way in ways] == sorted(way.seconds for way in ways)


def test_what_cannot_fit_is_not_tried():
    big = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, width=16_384, blocks=(BLOCK,)))
    parameters = count_parameters(big.model)[0]
    assert 16 * parameters > V5E.usable  # so a chip cannot hold it alone
    ways = candidates(big, 128, 4, V5E)
    assert ways and all("fsdp" in way.config.mesh or "tensor" in way.config.mesh for way in ways)
    assert not candidates(big, 128, 1, V5E)


def test_every_optimizer_has_its_moments():
    assert set(MOMENTS) == set(config.OptimizerConfig.__subclasses__())
    assert MOMENTS[Lion] == 1


def test_the_fastest_that_fits_is_first():
    def way(name, seconds, fits):
        return Try((name,), dataclasses.replace(FORECAST, seconds=seconds, fits=fits), "")

    tries = [Try(("failed",), None, "why"), way("large", None, False), way("slow", 2.0, True), way("fast", 1.0, True)]
    assert [found.flags[0] for found in ranked(tries)] == ["fast", "slow", "large", "failed"]


FORECAST = Forecast(
    target="train",
    topology="v5e:2x2",
    chip="v5e",
    chips=4,
    hosts=1,
    mesh={"data": 4},
    fits=True,
    memory={"parameters": 1},
    usable=16,
    buffers=[],
    seconds=1.0,
    cycles=1.0,
    work={},
    kernels={},
    flops=1.0,
    roofline=0.5,
    tokens=10,
    total_tokens=100,
    price=None,
    communication=[],
    compile_seconds=1.0,
    notes=[],
)


def test_cost_follows_from_price():
    assert FORECAST.cost is None
    assert dataclasses.replace(FORECAST, price=3.6).cost == pytest.approx(10 / 3600 * 4 * 3.6)
