"""The configuration of a run."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_jax.config.checks import require, require_positive
from gpt_jax.config.data import DataConfig, Text
from gpt_jax.config.faults import Watchdog
from gpt_jax.config.mesh import ALL_DATA, SEQUENCE, check_positions, check_ring, parse_mesh
from gpt_jax.config.model import ModelConfig
from gpt_jax.config.questions import has_adapter, has_prefix
from gpt_jax.config.training import (
    Checkpoint,
    Constant,
    Diagnostics,
    Evaluation,
    OptimizerConfig,
    ScheduleConfig,
    Suites,
    Train,
)


@dataclass(frozen=True)
class Config:
    """The configuration of a run.

    `seed` determines everything random. `prompt` is the beginning of the sample printed after training. `wandb` names a
    Weights & Biases project (None: off). `init_from` is the folder of a run whose parameters are the initial ones of
    this run (None: initial parameters are random). `mesh` names the axes over which devices divide the work, and their
    sizes (`config/mesh.py`); -1 fills the devices. Every `recompute_every` steps, a step is computed twice and its bits
    are compared (None: never).
    """

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: Train
    schedule: ScheduleConfig = Constant()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    seed: int = 0
    prompt: str = "\n"
    wandb: str | None = None
    init_from: str | None = None
    mesh: str = ALL_DATA
    watchdog: Watchdog = Watchdog()
    recompute_every: int | None = None
    diagnostics: Diagnostics = Diagnostics()
    suites: Suites = Suites()

    def __post_init__(self) -> None:
        require(
            not (has_prefix(self.model) and isinstance(self.data, Text)),
            "the mask Prefix needs rows that begin with a prompt, which rows of Text do not: use a task such as Copy or"
            " Sort, or the mask Causal",
        )
        require_positive(self.recompute_every, "recompute_every")
        parse_mesh(self.mesh)
        require(
            self.train.parallel == "jit" or self.mesh == ALL_DATA,
            f'train.parallel="pmap" divides rows alone: set it to "jit" for the mesh "{self.mesh}"',
        )
        check_sequence(self)
        require(
            self.init_from is not None or not has_adapter(self.model),
            "model.adapter adapts a trained model: set init_from to the folder of its run, or train without an adapter",
        )
        require(
            self.train.average is None or self.model.param_dtype == "float32",
            f"train.average adds small changes, which are lost in {self.model.param_dtype}: set model.param_dtype to"
            ' "float32" (model.dtype may stay as it is), or train without an average',
        )

    @property
    def data_seed(self) -> int:
        """The seed of the order of the data: `data.seed`, or `seed` if that is None."""
        return self.seed if self.data.seed is None else self.data.seed


def check_sequence(config: Config) -> None:
    """Refuses rows that cannot be divided over the mesh's axis `sequence`.

    Raises:
      ConfigError: see `check_positions` and `check_ring`; or the run asks for diagnostics or suites.
    """
    sizes, model = parse_mesh(config.mesh), config.model
    if SEQUENCE not in sizes or sizes[SEQUENCE] == 1:
        return
    require(
        config.diagnostics.every is None,
        "scores of heads need whole rows on a device: leave diagnostics.every at None, or leave the axis sequence out"
        " of the mesh",
    )
    require(
        config.suites.names is None,
        "questions of suites need whole rows on a device: leave suites.names at None, or leave the axis sequence out of"
        " the mesh",
    )
    if sizes[SEQUENCE] > 0 and isinstance(config.data, Text):  # the others are checked when a batch is placed
        check_positions(model.context_length, sizes[SEQUENCE])
    check_ring(model.kernel, any(getattr(attention, "dropout", 0.0) > 0 for attention in model.attentions))
