"""What runs here must run there: the real programs, compiled for a TPU that isn't."""

import dataclasses
import importlib.util

import pytest

from gpt_jax.analysis.plan import plan_decode, plan_train_step, tpu_mesh
from gpt_jax.config import (
    Attention,
    BlockConfig,
    Config,
    GatedMlp,
    LinearDecay,
    ModelConfig,
    Muon,
    RmsNorm,
    Rope,
    Score,
    Text,
    Train,
    Window,
    pattern,
)

LOCAL = BlockConfig(
    Attention(4, kv_heads=2, mask=Window(32), position=Rope(), score=Score(qk_norm=RmsNorm())), GatedMlp(256)
)
FULL = dataclasses.replace(
    LOCAL, attention=dataclasses.replace(LOCAL.attention, mask=dataclasses.replace(Attention(1)).mask)
)
MODEL = ModelConfig(256, 128, 128, pattern("LGLG", L=LOCAL, G=FULL), dtype="bfloat16", scan=True, remat="dots")
PARAMETER_BYTES = 4 * (4 * (128 * 128 * 2 + 128 * 64 * 2 + 3 * 128 * 256) + 256 * 128)


@pytest.fixture(scope="module")
def mesh():
    return tpu_mesh("v5e:2x2")


@pytest.mark.plan
def test_the_train_step_compiles_for_a_tpu_slice(mesh):
    assert mesh.size == 4
    config = Config(MODEL, Text(), Muon(), Train(100, 16, accumulate=2, z_loss=1e-4), LinearDecay(steps=100))
    plan = plan_train_step(config, mesh)
    assert plan.collectives.keys() == {"all-reduce"}
    # Parameters and Muon's momentum, or Adam's two moments for the few others, on every chip.
    assert 2 * PARAMETER_BYTES < plan.arguments < 3 * PARAMETER_BYTES
    assert plan.flops > 0 and plan.seconds > 0


@pytest.mark.plan
def test_prefill_and_the_decode_loop_compile_for_a_tpu(mesh):
    plan = plan_decode(MODEL, mesh, rows=4, prompt=16, new=32)
    assert plan.collectives == {}
    assert PARAMETER_BYTES < plan.arguments < 1.5 * PARAMETER_BYTES


@pytest.mark.plan
def test_an_unknown_topology_is_refused(mesh):
    with pytest.raises(ValueError, match='no topology "v5e:2x3"'):
        tpu_mesh("v5e:2x3")


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"gpt_jax\[plan\]"):
        tpu_mesh("v5e:2x2")
