"""Compiling a run's programs for TPUs that aren't there: does it compile, does it fit, how long will a step take?

Needs libtpu (the extra `plan`), which compiles on any Linux x86-64 host.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import warnings
from collections import Counter
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from gpt_jax import config
from gpt_jax.config.errors import UserError
from gpt_jax.data import Batch
from gpt_jax.decoding.programs import advance, begin
from gpt_jax.decoding.sampling import Sampler
from gpt_jax.model.gpt import GPT
from gpt_jax.training.sharding import AXIS, compile_step, make_mesh
from gpt_jax.training.state import init_state
from gpt_jax.training.step import make_train_step


class Plan(NamedTuple):
    """What the compiler says of one program, for each chip.

    `arguments`: bytes of what goes in and stays (parameters, moments, caches); `temporary`: bytes needed on top while
    it runs. `flops` and `seconds` count the body of a loop (scanned layers, micro-batches, new tokens) once.
    `collectives`: how often each kind of communication stands in the program.
    """

    arguments: int
    temporary: int
    flops: float
    seconds: float
    collectives: dict[str, int]


def tpu_mesh(topology: str) -> Mesh:
    """The mesh of the TPU chips of a topology such as "v5e:2x2", to compile for and not to run on.

    Raises:
      ValueError: there is no libtpu, or it does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("planning for TPUs needs libtpu: pip install 'gpt_jax[plan]' (Linux x86-64 only)")
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # else libtpu asks a metadata server that only TPU machines have
    try:
        return make_mesh(topologies.get_topology_desc(topology, "tpu").devices)
    except Exception as error:
        raise UserError(f'libtpu has no topology "{topology}" (try "v5e:2x2"): {error}') from error


def plan_train_step(c: config.Config, mesh: Mesh) -> Plan:
    """Compiles the train step of a configuration, data parallel over the mesh, for rows of packed documents."""
    model = GPT(c.model)
    shape = (c.train.batch_size, c.model.context_length)
    ids = jax.ShapeDtypeStruct(shape, jnp.int32)
    batch = Batch._make((ids, ids, jax.ShapeDtypeStruct(shape, jnp.float32), ids, ids))
    state = jax.eval_shape(partial(init_state, model, c))
    step = compile_step(make_train_step(model, c), mesh, "jit")
    return _plan(step.lower(_placed(state, mesh), _placed(batch, mesh, AXIS)))  # type: ignore[attr-defined]


def plan_decode(model_config: config.ModelConfig, mesh: Mesh, rows: int, prompt: int, new: int) -> Plan:
    """Compiles what `generate` runs for `rows` prompts of `prompt` tokens: the prefill and the loop over `new` tokens.

    Every chip of the mesh gets the whole of it.
    """
    model = GPT(dataclasses.replace(model_config, scan=False, remat=None))  # as `generate` runs it
    params = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, prompt), jnp.int32))
    prompts, padding = jax.ShapeDtypeStruct((rows, prompt), jnp.int32), jax.ShapeDtypeStruct((rows,), jnp.int32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    stop = jax.ShapeDtypeStruct((1,), jnp.int32)
    length = prompt + new - 1

    @jax.jit
    def decode(params: Any, prompts: Array, padding: Array, *rest: Any) -> Any:
        first = begin(model, params, prompts, padding, *rest, max_new_tokens=new, length=length, chunk=None)
        return advance(model, params, *first, *rest, new)

    return _plan(decode.lower(*_placed((params, prompts, padding, keys, jax.eval_shape(Sampler), stop), mesh)))


def _placed(tree: Any, mesh: Mesh, *axes: str) -> Any:
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def _plan(lowered: jax.stages.Lowered) -> Plan:
    with warnings.catch_warnings():
        # The compilation cache keeps TPU programs and can't load them where there is no TPU: they are compiled again.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
        compiled = lowered.compile()
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    assert memory is not None and cost is not None and text is not None
    kinds = r"= \S+ (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    return Plan(
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        flops=cost["flops"],
        seconds=cost["optimal_seconds"],
        collectives=dict(Counter(re.findall(kinds, text))),
    )
