"""Chunked attention against the einsum, forward and backward: memory, time, and the gain from a window.

Shapes are those of GPT-2: twelve heads of width 64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.timing import Arm, alternate
from gpt_jax import config as c
from gpt_jax.data import Batch
from gpt_jax.model.attend import Logits, attend
from gpt_jax.model.gpt import GPT
from gpt_jax.model.mask import Side
from gpt_jax.training.state import init_state
from gpt_jax.training.step import make_train_step

HEADS, WIDTH, WINDOW = 12, 64, 256
LONG, LENGTHS = 8192, {256: 4, 1024: 1, 2048: 1}  # tokens; tokens → rows


def gradient(kernel: str, mask: c.MaskConfig) -> Callable[..., Any]:
    """A compiled function: query, key, value (B, H, T, D) → their gradients."""

    def loss(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        steps = jnp.arange(query.shape[2])
        side, logits = Side(steps, steps[None]), Logits(None, None, None, mask, None, None, 0.0)
        out = attend(
            query,
            key,
            value,
            side,
            side,
            logits,
            normalizer="softmax",
            sinks=None,
            kernel=kernel,
            offset=0,
            drop=None,
            tap=None,
        )
        return jnp.sum(out**2)

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))


def run(rounds: int) -> dict[str, Any]:
    """All measurements of the suite. Ratios are of the best times.

    At 8,192 tokens: bytes of temporary memory, of attention alone and of a training step, and seconds of chunked
    attention with a window of 256 and with a causal mask. At 256, 1,024 and 2,048 tokens: seconds of chunked attention
    and of the einsum.
    """
    return {
        "memory": memory(),
        "training_step_memory": training_step_memory(),
        "window": window(rounds),
        "lengths": {str(length): compare(length, rows, rounds) for length, rows in LENGTHS.items()},
    }


def memory() -> dict[str, float]:
    """Bytes of temporary memory of attention alone on one row."""
    shapes = [jax.ShapeDtypeStruct((1, HEADS, LONG, WIDTH), jnp.float32)] * 3
    measured: dict[str, float] = {}
    for kernel in ("chunked", "einsum"):
        analysis = gradient(kernel, c.Causal()).lower(*shapes).compile().memory_analysis()  # type: ignore[attr-defined]
        measured[kernel] = analysis.temp_size_in_bytes
    return {**measured, "einsum_against_chunked": measured["einsum"] / measured["chunked"]}


def training_step_memory() -> dict[str, float]:
    """Bytes of temporary memory of a training step on one row: four layers of width 256, V = 257."""
    measured: dict[str, float] = {}
    for kernel in ("chunked", "einsum"):
        block = c.BlockConfig(c.Attention(heads=4, position=c.Rope()), c.GatedMlp(688))
        model = c.ModelConfig(257, LONG, 256, (block,) * 4, kernel=kernel)  # type: ignore[arg-type]
        config = c.Config(model, c.Text(), c.Adamw(), c.Train(steps=1, batch_size=1))
        state = jax.eval_shape(partial(init_state, GPT(model), config))
        ids = jax.ShapeDtypeStruct((1, LONG), jnp.int32)
        rows = Batch._make((ids, ids, jax.ShapeDtypeStruct((1, LONG), jnp.float32), None, None))
        step = jax.jit(make_train_step(GPT(model), config))
        compiled = step.lower(state, rows).compile()
        measured[kernel] = compiled.memory_analysis().temp_size_in_bytes  # type: ignore[union-attr]
    return {**measured, "einsum_against_chunked": measured["einsum"] / measured["chunked"]}


def window(rounds: int) -> dict[str, Any]:
    """Seconds of chunked attention with a causal mask and with a window."""
    tensors = inputs(LONG, 1)
    masks = {"causal": c.Causal(), "window": c.Window(WINDOW)}
    arms: dict[str, Arm] = {name: partial(gradient("chunked", mask), *tensors) for name, mask in masks.items()}
    measured = alternate(arms, rounds, calls=1)
    return {**measured, "causal_against_window": _ratio(measured, "causal", "window")}


def compare(length: int, rows: int, rounds: int) -> dict[str, Any]:
    """Seconds of chunked attention and of the einsum, for `rows` rows of `length` tokens."""
    tensors = inputs(length, rows)
    arms: dict[str, Arm] = {kernel: partial(gradient(kernel, c.Causal()), *tensors) for kernel in ("chunked", "einsum")}
    measured = alternate(arms, rounds, calls=max(1, 1024 // length))
    return {**measured, "chunked_against_einsum": _ratio(measured, "chunked", "einsum")}


def inputs(length: int, rows: int) -> list[jax.Array]:
    """Random query, key and value (B, H, T, D), scaled so that scores have variance 1."""
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (rows, HEADS, length, WIDTH)) / WIDTH**0.25 for key in keys]


def _ratio(measured: dict[str, dict[str, float]], over: str, under: str) -> float:
    return measured[over]["best_seconds"] / measured[under]["best_seconds"]
