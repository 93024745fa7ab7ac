"""Models small enough that a test compiles in a second, and the smallest run that is one."""

import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import GPT, ModelConfig
from gpt_jax.config import (
    Adamw,
    Attention,
    BlockConfig,
    Checkpoint,
    Config,
    Copy,
    Evaluation,
    GatedMlp,
    Mlp,
    Rope,
    Train,
)
from gpt_jax.model.paths import map_with_path
from gpt_jax.model.shapes import parameter_shapes
from gpt_jax.training.programs import Programs

VOCABULARY = 32
PROGRAMS = Programs()  # what the small runs of all tests of a process compile alike
STDS = {"kernel": 0.5, "table": 1.0, "bias": 0.3, "scale": 0.3, "taps": 0.3}


def tiny(
    attention: Any = None, mlp: Any = "gated", layers: int = 2, block: dict | None = None, **model: Any
) -> ModelConfig:
    """C = 8, V = 32, context 16, `layers` like blocks; what is given otherwise is replaced."""
    attention = Attention(heads=4, head_width=4) if attention is None else attention
    mlp = GatedMlp(width=12) if mlp == "gated" else mlp
    blocks = (BlockConfig(attention, mlp, **(block or {})),) * layers
    return ModelConfig(**{"vocab_size": VOCABULARY, "context_length": 16, "width": 8, "blocks": blocks} | model)


@cache
def shapes_of(config: ModelConfig) -> Any:
    """Shapes and dtypes of the parameters; tracing `init` costs more than drawing many seeds."""
    return parameter_shapes(config)


def random_params(model: GPT, seed: int = 0, size: float = 1.0) -> Any:
    """Parameters of no special value: norms' scales off 1, biases off 0, kernels big enough that every path counts."""
    shapes = shapes_of(model.config)
    rng = np.random.default_rng(seed)

    def draw(path: str, leaf: Any) -> jax.Array:
        name = path.split("/")[-1]
        value = rng.normal(size=leaf.shape) * (STDS[name] if name in STDS else 0.3) * size + (name == "scale")
        return jnp.asarray(value, leaf.dtype)

    return map_with_path(draw, shapes)


# One program for each model and shape, where an eager call compiles one for each operation. Not for tests that patch
# the model's code: they would get the program from before.
apply = jax.jit(GPT.apply, static_argnums=0, static_argnames=("capture", "method", "train"))


def tiny_config(steps: int = 6, model: dict[str, Any] | None = None, **changes: Any) -> Config:
    """Two layers of width 16 that learn to copy; `changes` replace fields of the run, `model` those of the model."""
    block = BlockConfig(Attention(heads=2, position=Rope()), Mlp(32))
    config = Config(
        model=ModelConfig(vocab_size=None, context_length=16, width=16, blocks=(block,) * 2),
        data=Copy(symbols=8, length=4, validation_rows=10),
        optimizer=Adamw(learning_rate=1e-2),
        train=Train(steps=steps, batch_size=8),
        evaluation=Evaluation(every=4, batch_size=8),
        checkpoint=Checkpoint(every=2),
    )
    config = dataclasses.replace(config, **changes)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **(model or {})))
