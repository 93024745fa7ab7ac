"""Compiled programs that several runs of one process share: those of configurations that differ only in what is no
part of a program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt_jax.config import Config, has_adapter
from gpt_jax.data import Batch
from gpt_jax.model.adapter import grafted, pruned, trainable
from gpt_jax.model.gpt import GPT
from gpt_jax.model.stack import canonical, stacked
from gpt_jax.training.evaluate import SumsByRow, compile_sums
from gpt_jax.training.optimizer import make_optimizer
from gpt_jax.training.sharding import Step, compile_step, replicate, shard_batch
from gpt_jax.training.state import Given, TrainState, first_state, given_by, templates
from gpt_jax.training.step import make_train_step
from gpt_jax.training.together import compile_together


class Programs:
    """Pass one to each `gpt_jax.train` of a process, and runs whose seeds, learning rates or data alone differ compile
    once. It holds on to what it compiled, with the devices' memory for the programs.
    """

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}

    def step(self, config: Config, mesh: Mesh) -> Step:
        """The training step of a resolved configuration."""
        parallel = config.train.parallel
        if parallel == "pmap":  # its arguments are the state and the batch alone
            return compile_step(make_train_step(GPT(config.model), config), mesh, parallel)
        compiled, given = self._step(config, mesh), replicate(given_by(config), mesh)
        return lambda state, batch: compiled(state, batch, None, given)

    def _step(self, config: Config, mesh: Mesh) -> Any:
        return self._get(
            ("step", config.train, _without_rate(config), config.schedule, config.model),
            lambda: compile_step(make_train_step(GPT(config.model), config), mesh, "jit"),
        )

    def step_together(self, config: Config, mesh: Mesh) -> Callable[[TrainState, Batch, Given], Any]:
        """The step of several runs at once, see `compile_together`."""
        return self._get(
            ("together", config.train, _without_rate(config), config.schedule, config.model),
            lambda: compile_together(make_train_step(GPT(config.model), config), mesh),
        )

    def peak_bytes(self, config: Config, mesh: Mesh, rows: Batch) -> int | None:
        """Memory of a device that a training step takes, by the compiler's account: state, batch and all between.

        None under pmap, and where the backend keeps no account.
        """
        if config.train.parallel == "pmap":
            return None
        state = jax.eval_shape(lambda: self.init(config))
        sharding = NamedSharding(mesh, PartitionSpec())
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)
        batch = shard_batch(rows, mesh, "jit", config.train.accumulate)
        compiled = self._step(config, mesh).lower(state, batch, None, replicate(given_by(config), mesh)).compile()
        used = compiled.memory_analysis()
        if used is None:
            return None
        kept = used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
        return kept + used.temp_size_in_bytes

    def sums_by_row(self, config: Config, mesh: Mesh) -> SumsByRow:
        """What `make_evaluate` needs compiled."""
        return self._get(("sums", config.model), lambda: compile_sums(GPT(config.model), mesh))

    def init(self, config: Config, base: Any = None) -> TrainState:
        """As `init_state`, from compiled programs. What `base` has, under canonical names, is not drawn; beside it are
        adapters alone.
        """
        model = GPT(config.model)

        def init_adapter(key: Any, tokens: Any) -> Any:
            return pruned(canonical(trainable(model.init(key, tokens)))) if has_adapter(config.model) else {}

        init, init_optimizer = self._get(
            ("init", config.model, _without_rate(config), base is None),
            lambda: (
                jax.jit(model.init if base is None else init_adapter),
                jax.jit(make_optimizer(config.optimizer).init),
            ),
        )
        params = init(jax.random.key(config.seed), jnp.zeros((1, config.model.context_length), jnp.int32))
        if base is not None:
            params = stacked(config.model, grafted(base, params))
        return first_state(params, init_optimizer(trainable(params)))

    def templates(self, config: Config, mesh: Mesh) -> dict[str, Any]:
        """Shapes, types and places of what a checkpoint of the run holds."""
        return self._get(
            ("templates", config.model, _without_rate(config)),
            lambda: templates(config, NamedSharding(mesh, PartitionSpec())),
        )

    def _get(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _without_rate(config: Config) -> Any:
    return dataclasses.replace(config.optimizer, learning_rate=1.0)  # type: ignore[type-var]
