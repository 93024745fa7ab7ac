"""A whole run."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_jax.config.checks import require
from gpt_jax.config.data import DataConfig, Text
from gpt_jax.config.model import ModelConfig, has_adapter, has_prefix
from gpt_jax.config.training import Checkpoint, Constant, Evaluation, OptimizerConfig, ScheduleConfig, Train


@dataclass(frozen=True)
class Config:
    """A whole run. `seed` drives everything random. `wandb` names a Weights & Biases project (None: off); `prompt`
    starts the final sample. `init_from` is the folder of the run whose parameters this one begins with (None: they are
    drawn).
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

    def __post_init__(self) -> None:
        require(
            not (has_prefix(self.model) and isinstance(self.data, Text)),
            "a mask of type Prefix needs rows that begin with a prompt, and those of Text have none: use a task such as"
            " Copy or Sort, or the mask Causal",
        )
        require(
            self.init_from is not None or not has_adapter(self.model),
            "model.adapter adapts a trained model: give init_from, the folder of its run, or train without an adapter",
        )

    @property
    def data_seed(self) -> int:
        """The seed of the data's order: `data.seed`, or the run's."""
        return self.seed if self.data.seed is None else self.data.seed
