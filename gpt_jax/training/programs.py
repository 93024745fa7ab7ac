"""Compiled programs that the runs of a process share.

Runs whose configurations differ only in seeds, learning rate or data compute with the same programs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, Sharding

from gpt_jax.config import Config, has_adapter
from gpt_jax.data import Batch
from gpt_jax.model.adapter import grafted, pruned, trainable
from gpt_jax.model.gpt import GPT
from gpt_jax.model.stack import canonical, stacked
from gpt_jax.training.evaluate import Sums, compile_sums_by_row
from gpt_jax.training.partition import shardings
from gpt_jax.training.sharding import (
    Step,
    compile_step,
    replicate,
    replicated,
    settled,
    shape_structs,
    shard_batch,
    spread,
)
from gpt_jax.training.state import TrainState, first_state, given_by, init_params, state_shapes, tree_shapes
from gpt_jax.training.step import make_train_step
from gpt_jax.training.together import StepTogether, compile_together


class Programs:
    """A cache of compiled programs: pass one object to every `gpt_jax.train` of a process.

    It keeps what it compiled, and the device memory of those programs, for as long as it lives.
    """

    def __init__(self) -> None:
        self._compiled: dict[Any, Any] = {}

    def step(self, config: Config, mesh: Mesh) -> Step:
        """The training step of a resolved configuration."""
        if config.train.parallel == "pmap":  # `pmap` takes no `Given`, so this step belongs to one run
            return compile_step(make_train_step(GPT(config.model), config), mesh, "pmap")
        compiled, given = self._step(config, mesh), replicate(given_by(config), mesh)
        return lambda state, batch: settled(compiled(state, batch, None, given), mesh)

    def step_together(self, config: Config, mesh: Mesh) -> StepTogether:
        """The training step of several runs at once, see `compile_together`."""
        return self._get(
            ("together", *_step_key(config, mesh)),
            lambda: compile_together(make_train_step(GPT(config.model), config), mesh),
        )

    def sums_by_row(self, config: Config, mesh: Mesh) -> Sums:
        """The compiled sums that `make_evaluate` takes."""
        return self._get(("sums", mesh, config.model), lambda: compile_sums_by_row(GPT(config.model), mesh))

    def init(self, config: Config, mesh: Mesh, base: Any = None) -> TrainState:
        """The state before the first step, made on the mesh in the sharding that the step takes.

        `base` holds parameters under canonical names that replace initial ones; those are not drawn. Only the
        parameters of adapters may be missing from it.

        Raises:
          UserError: a rule of `optimizer.decay` names no parameter.
        """
        place = self.placement(config, mesh)
        whole = isinstance(place, Sharding)
        of_params, rest = (place, place) if whole else (place.params, dataclasses.replace(place, params=None))
        if base is not None:
            of_params = replicated(mesh)
        drawn, name = (init_params, "params") if base is None else (_init_adapters, "adapters")
        draw = self._get(
            (name, *_state_key(config, mesh)),
            lambda: jax.jit(partial(drawn, GPT(config.model), config), out_shardings=of_params),
        )
        begin = self._get(
            ("moments", *_state_key(config, mesh)),
            lambda: jax.jit(partial(_state_without_params, config), out_shardings=rest),
        )
        params = settled(draw(jax.random.key(config.seed)), mesh)
        if base is not None:
            base = spread(base, shardings(config.model, mesh, base))
            params = stacked(config.model, grafted(base, params))
        return dataclasses.replace(settled(begin(params), mesh), params=params)

    def templates(self, config: Config, mesh: Mesh) -> dict[str, Any]:
        """Shapes, types and shardings of the items of the run's checkpoints."""

        def make() -> dict[str, Any]:
            shapes = tree_shapes(config)
            return shape_structs(shapes, shardings(config.model, mesh, shapes))

        return self._get(("templates", *_state_key(config, mesh)), make)

    def placement(self, config: Config, mesh: Mesh) -> Any:
        """The shardings of a state of the run, as a tree, or one for all of its arrays."""
        make = lambda: shardings(config.model, mesh, state_shapes(config))  # noqa: E731
        return self._get(("placement", *_state_key(config, mesh)), make)

    def peak_bytes(self, config: Config, mesh: Mesh, rows: Batch) -> int | None:
        """Bytes of memory of one device that a training step needs by the compiler's account: state, batch and
        temporaries.

        None under pmap, and where the backend keeps no account.
        """
        if config.train.parallel == "pmap":
            return None
        state = shape_structs(state_shapes(config), self.placement(config, mesh))
        batch = shard_batch(rows, mesh, "jit", config.train.accumulate)
        compiled = self._step(config, mesh).lower(state, batch, None, replicate(given_by(config), mesh)).compile()
        used = compiled.memory_analysis()
        if used is None:
            return None
        kept = used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
        return kept + used.temp_size_in_bytes

    def _step(self, config: Config, mesh: Mesh) -> Any:
        return self._get(
            ("step", *_step_key(config, mesh)),
            lambda: compile_step(make_train_step(GPT(config.model), config), mesh, "jit", self.placement(config, mesh)),
        )

    def _get(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._compiled:
            self._compiled[key] = make()
        return self._compiled[key]


def _state_key(config: Config, mesh: Mesh) -> tuple[Any, ...]:
    """What decides the programs that make a state; seeds and the learning rate do not."""
    optimizer = dataclasses.replace(config.optimizer, learning_rate=1.0)  # type: ignore[type-var]
    return (mesh, config.model, optimizer, config.train.average, config.train.spikes)


def _step_key(config: Config, mesh: Mesh) -> tuple[Any, ...]:
    """What decides the program of a step; seeds, the learning rate and the data do not."""
    return (*_state_key(config, mesh), config.train, config.schedule)


def _init_adapters(model: GPT, config: Config, key: jax.Array) -> Any:
    """The initial parameters of the model's adapters under canonical names; {} if it has none."""
    return pruned(canonical(trainable(init_params(model, config, key)))) if has_adapter(config.model) else {}


def _state_without_params(config: Config, params: Any) -> TrainState:
    """The rest of the first state. Passing parameters through a program would copy them."""
    return dataclasses.replace(first_state(config, params), params=None)
