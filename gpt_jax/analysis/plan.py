"""Compiles a run's programs for TPUs that are not attached: whether they compile, whether they fit, how fast they are.

Needs libtpu (the extra `plan`), which compiles on any Linux x86-64 host. The programs and the shardings are those of a
run.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import warnings
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh
from jaxtyping import Array

from gpt_jax import config
from gpt_jax.config.errors import UserError
from gpt_jax.config.mesh import DATA
from gpt_jax.data import Batch
from gpt_jax.decoding.programs import advance, begin
from gpt_jax.decoding.sampling import Sampler
from gpt_jax.model.gpt import GPT
from gpt_jax.model.shapes import parameter_shapes
from gpt_jax.training.partition import shardings
from gpt_jax.training.sharding import batch_sharding, compile_step, make_mesh, replicated, shape_structs
from gpt_jax.training.state import state_shapes
from gpt_jax.training.step import make_train_step


class CompiledCost(NamedTuple):
    """What the compiler reports of one program, per chip.

    `arguments` are the bytes of inputs that stay in memory (parameters, moments, caches), `temporary` the bytes needed
    on top while the program runs. `flops` and `seconds` count the body of a loop (scanned layers, micro-batches, new
    tokens) once. `collectives` counts the operations of each kind of communication in the program.
    """

    arguments: int
    temporary: int
    flops: float
    seconds: float
    collectives: dict[str, int]


def tpu_mesh(topology: str, axes: str = DATA) -> Mesh:
    """The mesh of the TPU chips of a topology such as "v5e:2x2", to compile for but not to run on.

    Raises:
      UserError: libtpu is not installed, or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("planning for TPUs needs libtpu: pip install 'gpt_jax[plan]' (Linux x86-64 only)")
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # else libtpu queries a metadata server that only TPU machines have
    try:
        return make_mesh(topologies.get_topology_desc(topology, "tpu").devices, axes)
    except Exception as error:
        raise UserError(f'libtpu has no topology "{topology}" (try "v5e:2x2"): {error}') from error


def plan_train_step(c: config.Config, mesh: Mesh) -> CompiledCost:
    """Compiles the train step of a resolved configuration on the mesh, for rows of packed documents."""
    shape = (c.train.batch_size, c.model.context_length)
    ids = jax.ShapeDtypeStruct(shape, jnp.int32)
    batch = Batch(ids, ids, jax.ShapeDtypeStruct(shape, jnp.float32), ids, ids)
    shapes = state_shapes(c)
    places = shardings(c.model, mesh, shapes)
    step, state = compile_step(make_train_step(GPT(c.model), c), mesh, "jit", places), shape_structs(shapes, places)
    return _cost(step.lower(state, shape_structs(batch, batch_sharding(mesh))))  # type: ignore[attr-defined]


def plan_decode(model_config: config.ModelConfig, mesh: Mesh, rows: int, prompt: int, new: int) -> CompiledCost:
    """Compiles the programs of `generate` for `rows` prompts of `prompt` tokens: the prefill, and the loop over `new`
    tokens. Every chip of the mesh holds and computes everything.
    """
    model = GPT(dataclasses.replace(model_config, scan=False, remat=None))  # as `generate` runs it
    prompts, padding = jax.ShapeDtypeStruct((rows, prompt), jnp.int32), jax.ShapeDtypeStruct((rows,), jnp.int32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    stop = jax.ShapeDtypeStruct((1,), jnp.int32)
    length = prompt + new - 1

    @jax.jit
    def decode(params: Any, prompts: Array, padding: Array, *rest: Any) -> Any:
        first = begin(model, params, prompts, padding, *rest, max_new_tokens=new, length=length, chunk=None)
        return advance(model, params, *first, *rest, new)

    arguments = (parameter_shapes(model.config), prompts, padding, keys, jax.eval_shape(Sampler), stop)
    return _cost(decode.lower(*shape_structs(arguments, replicated(mesh))))


def _cost(lowered: jax.stages.Lowered) -> CompiledCost:
    with warnings.catch_warnings():
        # The compilation cache stores TPU programs but cannot load them without a TPU, so they are compiled again.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
        compiled = lowered.compile()
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    assert memory is not None and cost is not None and text is not None
    kinds = r"= \S+ (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    return CompiledCost(
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        flops=cost["flops"],
        seconds=cost["optimal_seconds"],
        collectives=dict(Counter(re.findall(kinds, text))),
    )
