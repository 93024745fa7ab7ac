"""The training step of a plain GPT-2, compared to a straightforward Linen model of the same sizes and, if PyTorch is
installed, to a PyTorch model.

"Straightforward" means as in a tutorial: nn.Dense on (B, T, C), einsum attention on (B, T, H, D), nn.LayerNorm and
optax.adamw.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.benchmarks.timing import Arm, alternate
from gpt_jax import config as c
from gpt_jax.data import Batch
from gpt_jax.model.gpt import GPT
from gpt_jax.training.sharding import compile_step, make_mesh, replicate, shard_batch
from gpt_jax.training.state import init_state
from gpt_jax.training.step import make_train_step

SIZES = {
    "small": {"layers": 4, "width": 128, "heads": 4, "context": 64, "batch": 12, "vocab": 65, "calls": 10},
    "medium": {"layers": 6, "width": 384, "heads": 6, "context": 256, "batch": 8, "vocab": 65, "calls": 1},
}
OPTIMIZER = c.Adamw(learning_rate=1e-3, beta1=0.9, beta2=0.99, weight_decay=0.1)


def run(rounds: int) -> dict[str, Any]:
    """Seconds per step, tokens per second at the best, and the speed relative to the Linen model, for each size.

    On a CPU, each core is also used as a device: small steps gain more from data parallelism over the cores than from
    using all cores in each matrix product. A run does the same with JAX_NUM_CPU_DEVICES.
    """
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    results = {}
    for name, size in SIZES.items():
        config = gpt2_config(size)
        arms = {
            "gpt_jax": ours(config),
            "gpt_jax_data_parallel": ours(config, jax.device_count()),
            "linen": linen(size),
        }
        if importlib.util.find_spec("torch") is not None:
            arms["pytorch"] = pytorch(size)
        measured: dict[str, Any] = alternate(arms, rounds, calls=size["calls"])
        for arm in measured.values():
            arm["tokens_per_second"] = size["batch"] * size["context"] / arm["best_seconds"]
        best = min(measured[arm]["best_seconds"] for arm in ("gpt_jax", "gpt_jax_data_parallel"))
        results[name] = {"sizes": size, **measured, "speed_against_linen": measured["linen"]["best_seconds"] / best}
    return results


def gpt2_config(size: dict[str, int], scan: bool = False) -> c.Config:
    """A run of a plain GPT-2 of this size: learned positions, LayerNorm, gelu, biases, tied head."""
    attention = c.Attention(heads=size["heads"], bias=c.PROJECTIONS)
    mlp = c.Mlp(4 * size["width"], activation="gelu_tanh", bias=True)
    model = c.ModelConfig(
        vocab_size=size["vocab"],
        context_length=size["context"],
        width=size["width"],
        blocks=size["layers"] * (c.BlockConfig(attention, mlp, norm=c.LayerNorm()),),
        embedding=c.Embedding(position=c.Learned()),
        final_norm=c.LayerNorm(),
        scan=scan,
    )
    return c.Config(model, c.Text(), OPTIMIZER, c.Train(steps=1, batch_size=size["batch"]))


def tokens(size: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Random inputs and targets (B, T)."""
    ids = np.random.default_rng(0).integers(0, size["vocab"], (size["batch"], size["context"] + 1), dtype=np.int32)
    return ids[:, :-1], ids[:, 1:]


def ours(config: c.Config, devices: int = 1) -> Arm:
    """The step of `experiments.train`, data parallel over the first `devices` devices."""
    model, mesh = GPT(config.model), make_mesh(jax.devices()[:devices])
    state = replicate(jax.jit(lambda: init_state(model, config))(), mesh)
    sizes = {"vocab": config.model.vocab_size, "batch": config.train.batch_size, "context": config.model.context_length}
    inputs, targets = tokens(sizes)
    weights = np.ones(inputs.shape, np.float32)
    batch = shard_batch(Batch(inputs, targets, weights), mesh, "jit")
    step = compile_step(make_train_step(model, config), mesh, "jit")

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics["loss"]

    return call


class PlainBlock(nn.Module):
    """A pre-norm block as in a tutorial."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        B, T, C = x.shape
        Dense, LayerNorm = partial(nn.Dense, dtype=self.dtype), partial(nn.LayerNorm, dtype=self.dtype)
        q, k, v = jnp.split(Dense(3 * C)(LayerNorm()(x)), 3, axis=-1)
        q, k, v = (y.reshape(B, T, self.heads, C // self.heads) for y in (q, k, v))
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / (C // self.heads) ** 0.5
        scores = jnp.where(jnp.tril(jnp.ones((T, T), bool)), scores, -1e30)
        y = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v).reshape(B, T, C)
        x = x + Dense(C)(y)
        return x + Dense(C)(nn.gelu(Dense(4 * C)(LayerNorm()(x))))


class PlainGpt(nn.Module):
    """ids (B, T) → logits (B, T, V)."""

    size: Any
    dtype: Any = jnp.float32
    remat: bool = False  # recomputes each block in the backward pass

    @nn.compact
    def __call__(self, ids: Any) -> Any:
        embed = nn.Embed(self.size["vocab"], self.size["width"], dtype=self.dtype)
        position = nn.Embed(self.size["context"], self.size["width"], dtype=self.dtype)
        x = embed(ids) + position(jnp.arange(ids.shape[1]))
        block = nn.remat(PlainBlock) if self.remat else PlainBlock
        for _ in range(self.size["layers"]):
            x = block(self.size["heads"], self.dtype)(x)
        return embed.attend(nn.LayerNorm(dtype=self.dtype)(x))


def linen(size: dict[str, int]) -> Arm:
    """The training step of `PlainGpt`, with clipping and AdamW."""
    model = PlainGpt(nn.FrozenDict(size))
    inputs, targets = tokens(size)
    params = jax.jit(model.init)(jax.random.key(0), inputs)
    adamw = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b2=0.99, weight_decay=0.1))
    moments = adamw.init(params)

    def loss_of(params: Any, inputs: Any, targets: Any) -> Any:
        logits = model.apply(params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    @jax.jit
    def step(params: Any, moments: Any, inputs: Any, targets: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(params, inputs, targets)
        updates, moments = adamw.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments, loss

    def call() -> Any:
        nonlocal params, moments
        params, moments, loss = step(params, moments, inputs, targets)
        return loss

    return call


def pytorch(size: dict[str, int]) -> Arm:
    """The training step of a model of the same sizes in eager PyTorch, with its fused attention and AdamW."""
    torch = importlib.import_module("torch")  # an optional dependency
    F = torch.nn.functional
    C, H = size["width"], size["heads"]

    class Block(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = torch.nn.LayerNorm(C), torch.nn.LayerNorm(C)
            self.qkv, self.out = torch.nn.Linear(C, 3 * C), torch.nn.Linear(C, C)
            self.up, self.down = torch.nn.Linear(C, 4 * C), torch.nn.Linear(4 * C, C)

        def forward(self, x: Any) -> Any:
            B, T, _ = x.shape
            q, k, v = (y.view(B, T, H, C // H).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(C, dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    class Gpt(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.token, self.position = torch.nn.Embedding(size["vocab"], C), torch.nn.Embedding(size["context"], C)
            self.blocks = torch.nn.Sequential(*(Block() for _ in range(size["layers"])))
            self.norm = torch.nn.LayerNorm(C)

        def forward(self, ids: Any) -> Any:
            x = self.token(ids) + self.position(torch.arange(ids.shape[1]))
            return self.norm(self.blocks(x)) @ self.token.weight.T

    model = Gpt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    inputs, targets = (torch.from_numpy(x.astype(np.int64)) for x in tokens(size))

    def call() -> Any:
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return call
