"""Each kind of attention compiles for a slice of TPUs on each mesh, with what it divides really divided."""

from typing import Any

import pytest

from gpt_jax.analysis.cost import count_parameters
from gpt_jax.analysis.plan import plan_train_step
from gpt_jax.config import (
    Adamw,
    Attention,
    BlockConfig,
    Config,
    Delta,
    Differential,
    GatedMlp,
    Latent,
    LinearAttention,
    ModelConfig,
    Rope,
    Text,
    Train,
    Window,
    pattern,
)

MESHES = ("data=4", "fsdp=4", "fsdp=2,tensor=2", "fsdp=2,sequence=2")
KINDS: dict[str, Any] = {
    "grouped": Attention(heads=4, kv_heads=2, position=Rope()),
    "window": Attention(heads=4, mask=Window(64), position=Rope()),
    "latent": Latent(heads=4, rank=32, head_width=32, rotary_width=32),
    "linear": LinearAttention(heads=4),
    "delta": Delta(heads=4),
    "differential": Differential(heads=4),
}


def config_of(kind: str, axes: str) -> Config:
    blocks = pattern("LL", L=BlockConfig(KINDS[kind], GatedMlp(512)))
    model = ModelConfig(512, 256, 256, blocks, dtype="bfloat16", scan=True, remat="dots")
    return Config(model, Text(), Adamw(1e-3), Train(1, 8), mesh=axes)


@pytest.mark.plan
@pytest.mark.parametrize("axes", MESHES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_compiles_on_every_mesh(kind: str, axes: str) -> None:
    plan = plan_train_step(config_of(kind, axes), "v5e:2x2")
    assert plan.fits and plan.seconds is not None
    held = plan.memory["parameters"] + plan.memory["optimizer"]
    assert axes == "data=4" or held < 0.7 * _held(config_of(kind, axes))


def _held(config: Config) -> int:
    """Bytes of parameters and AdamW's moments where each chip has all of them."""
    return 12 * count_parameters(config.model)[0]
