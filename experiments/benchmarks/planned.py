"""The training step of GPT-2 124M on a TPU slice that is not attached, against a straightforward Linen model: both
compiled for it, and estimated in the same way.
"""

from __future__ import annotations

import runpy
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from experiments.benchmarks.step import PlainGpt
from gpt_jax import config as c
from gpt_jax.analysis.cost import training_flops_per_token
from gpt_jax.analysis.forecast import Forecast
from gpt_jax.analysis.plan import Planned, make_forecast, plan_train_step
from gpt_jax.analysis.topology import shard_bytes
from gpt_jax.config.conversion import from_config_dict
from gpt_jax.training.sharding import batch_sharding, replicated, shape_structs

CONFIG, TOPOLOGY = "configs/gpt2_124m.py", "v5e:4x4"
MICRO_BATCHES = (1, 2, 4, 8, 16)


def run(rounds: int) -> dict[str, Any]:
    """Estimated seconds and share of the peak of either, and how many times as fast ours is. Estimates repeat exactly,
    so that `rounds` is not read.

    The plain model is data parallel, in bfloat16, recomputes its blocks, and takes the fewest micro-batches that fit.
    """
    jax.config.update("jax_platforms", "cpu")  # a plan must not ask for an accelerator that something else uses
    config = from_config_dict(c.Config, runpy.run_path(CONFIG)["get_config"]())
    ours = plan_train_step(config, TOPOLOGY, is_explained=False)
    plain = next(found for found in (plan_plain(config, parts) for parts in MICRO_BATCHES) if found.fits)
    assert ours.seconds is not None and plain.seconds is not None
    return {
        "topology": TOPOLOGY,
        "gpt_jax": _summary(ours),
        "linen": _summary(plain),
        "speed_against_linen": plain.seconds / ours.seconds,
    }


def _summary(forecast: Forecast) -> dict[str, Any]:
    assert forecast.seconds is not None
    return {
        "seconds": forecast.seconds,
        "share_of_peak": forecast.roofline / forecast.seconds,
        "tokens_per_second": forecast.tokens / forecast.seconds,
        "memory": forecast.memory,
        "by_kind_of_work": forecast.work,
    }


def plan_plain(config: c.Config, parts: int) -> Forecast:
    """The plan of the plain model's step, of the sizes of `config`, in `parts` micro-batches."""
    tokens = config.train.batch_size * config.model.context_length
    return make_forecast(
        config,
        TOPOLOGY,
        partial(lower_plain, config, parts),
        visible=1.0,
        is_explained=False,
        target="train",
        flops=float(training_flops_per_token(config.model, config.model.context_length) * tokens),
        tokens=tokens,
        total_tokens=None,
        price=None,
        notes=[],
    )


def lower_plain(config: c.Config, parts: int, mesh: Mesh) -> Planned:
    """The plain model's step, lowered for the mesh: gradients of micro-batches are added in a loop."""
    model = config.model
    attention = model.blocks[0].attention
    assert isinstance(attention, c.Attention) and model.vocab_size is not None
    size = {"vocab": model.vocab_size, "width": model.width, "context": model.context_length, "layers": model.layers}
    gpt = PlainGpt(nn.FrozenDict(size | {"heads": attention.heads}), dtype=jnp.bfloat16, remat=True)
    adamw = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b2=0.95, weight_decay=0.1))

    def loss_of(params: Any, ids: Any) -> Any:
        logits: Any = gpt.apply(params, ids[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), ids[:, 1:]).mean()

    def step(params: Any, moments: Any, ids: Any) -> Any:
        def add(total: Any, part: Any) -> Any:
            return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_of)(params, part)), None

        cut = ids.reshape(-1, parts, ids.shape[1]).swapaxes(0, 1)
        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        loss, gradients = jax.value_and_grad(loss_of)(params, ids) if parts == 1 else jax.lax.scan(add, zeros, cut)[0]
        updates, moments = adamw.update(jax.tree.map(lambda g: g / parts, gradients), moments, params)
        return optax.apply_updates(params, updates), moments, loss / parts

    ids = jax.ShapeDtypeStruct((config.train.batch_size, model.context_length + 1), jnp.int32)
    params = jax.eval_shape(gpt.init, jax.random.key(0), jnp.zeros((1, model.context_length), jnp.int32))
    state = shape_structs((params, jax.eval_shape(adamw.init, params)), replicated(mesh))
    batch = shape_structs(ids, batch_sharding(mesh))
    held = {"parameters": shard_bytes(state[0]), "optimizer": shard_bytes(state[1]), "batch": shard_bytes(batch)}
    program = jax.jit(step, donate_argnums=(0, 1), out_shardings=replicated(mesh))
    return Planned(program.lower(*state, batch), held, state[0])
