"""Plans of generation: reading prompts (prefill), and one token after the other with a cache."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gpt_jax import config
from gpt_jax.analysis.cost import forward_flops_per_token
from gpt_jax.analysis.forecast import Forecast
from gpt_jax.analysis.plan import ESTIMATED, Planned, make_forecast, resolved_without_text, visible_share
from gpt_jax.analysis.topology import shard_bytes, tpu_mesh
from gpt_jax.config.errors import ConfigError
from gpt_jax.decoding.programs import advance, begin
from gpt_jax.decoding.sampling import Sampler
from gpt_jax.decoding.stages import init_state
from gpt_jax.model.cache import init_cache
from gpt_jax.model.gpt import GPT
from gpt_jax.model.shapes import parameter_shapes
from gpt_jax.training.partition import row_parts, shardings
from gpt_jax.training.sharding import batch_sharding, replicated, shape_structs

ROWS = 16  # of each part of the mesh that divides rows, unless the number is given
UNROLLED = "Generation runs the layers unrolled, with the parameters in the type that they are stored in."


@dataclasses.dataclass(frozen=True)
class Text:
    """What is generated: `rows` prompts of `prompt` tokens, each continued by `new`."""

    rows: int
    prompt: int
    new: int


def plan_decode(
    c: config.Config,
    topology: str,
    price: float | None = None,
    rows: int | None = None,
    prompt: int | None = None,
    new: int | None = None,
) -> list[Forecast]:
    """Compiles the programs of `generate` for a configuration's model, and estimates them: the prefill, and the loop
    over new tokens. Prompts and new tokens share the context by halves unless they are given.

    Raises:
      UserError: as `tpu_mesh`.
      ConfigError: as `resolved_without_text`; or the context has no room.
    """
    c, _ = resolved_without_text(c)
    context = c.model.context_length
    prompt = context // 2 if prompt is None else prompt
    new = context - prompt if new is None else new
    if prompt + new > context or min(prompt, new) < 1:
        raise ConfigError(
            f"{prompt} tokens of prompt and {new} new ones don't fit a context of {context}: give at least one of"
            " each, and together at most the context"
        )
    mesh = tpu_mesh(topology, c.mesh)
    text = Text(ROWS * row_parts(mesh) if rows is None else rows, prompt, new)
    model = GPT(dataclasses.replace(c.model, scan=False, remat=None))  # as `generate` runs it
    said = f"{text.rows} rows, {prompt} tokens of prompt each, {new} new ones."
    common: dict[str, Any] = {
        "visible": visible_share(c.model, prompt),
        "total_tokens": None,
        "price": price,
        "notes": [ESTIMATED, UNROLLED, said],
    }
    read = forward_flops_per_token(c.model, prompt) * text.rows * prompt
    step = forward_flops_per_token(c.model, context) * text.rows
    return [
        make_forecast(
            c,
            topology,
            partial(_lower_prefill, model, text),
            target="prefill",
            flops=float(read),
            tokens=text.rows * prompt,
            **common,
        ),
        make_forecast(
            c,
            topology,
            partial(_lower_loop, model, text),
            target="decode",
            flops=float(step),
            tokens=text.rows,
            **common,
        ),
    ]


def _arguments(model: GPT, text: Text, mesh: Mesh) -> tuple[Any, Any, tuple[Any, ...]]:
    """Shapes and shardings: (parameters, prompts and padding, keys, sampler and stop ids)."""
    shapes = parameter_shapes(model.config)
    params = shape_structs(shapes, shardings(model.config, mesh, shapes))
    whole = replicated(mesh)
    prompts = jax.ShapeDtypeStruct((text.rows, text.prompt), jnp.int32)
    padding = jax.ShapeDtypeStruct((text.rows,), jnp.int32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), text.rows))
    rest = (keys, jax.eval_shape(Sampler), jax.ShapeDtypeStruct((1,), jnp.int32))
    return params, shape_structs((prompts, padding), whole), shape_structs(rest, whole)


def _lower_prefill(model: GPT, text: Text, mesh: Mesh) -> Planned:
    params, prompts, rest = _arguments(model, text, mesh)
    length = text.prompt + text.new - 1
    with jax.set_mesh(mesh):
        lowered = begin.lower(model, params, *prompts, *rest, max_new_tokens=text.new, length=length, chunk=None)
    return Planned(lowered, {"parameters": shard_bytes(params)}, params)


def _lower_loop(model: GPT, text: Text, mesh: Mesh) -> Planned:
    params, (prompts, padding), rest = _arguments(model, text, mesh)
    length = text.prompt + text.new - 1
    make = jax.jit(partial(init_cache, model.config, text.rows, length))
    with jax.set_mesh(mesh):
        lowered_cache = make.lower(padding)
        shapes = jax.eval_shape(make, padding)
        cache = shape_structs(shapes, lowered_cache.compile().output_shardings)  # as the prefill lays it out
        state = jax.eval_shape(partial(init_state, max_new_tokens=text.new), prompts)
        rows = batch_sharding(mesh) if text.rows % row_parts(mesh) == 0 else replicated(mesh)
        state = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows if leaf.ndim else replicated(mesh)),
            state,
        )
        lowered = advance.lower(model, params, state, cache, *rest, text.new)
    return Planned(lowered, {"parameters": shard_bytes(params), "cache": shard_bytes(cache)}, params)
