"""A whole run."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_jax.config.data import DataConfig
from gpt_jax.config.model import ModelConfig
from gpt_jax.config.training import Checkpoint, Constant, Evaluation, OptimizerConfig, ScheduleConfig, Train


@dataclass(frozen=True)
class Config:
    """A whole run. `seed` drives everything random. `wandb` names a Weights & Biases project (None: off); `prompt`
    starts the final sample.
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

    @property
    def data_seed(self) -> int:
        """The seed of the data's order: `data.seed`, or the run's."""
        return self.seed if self.data.seed is None else self.data.seed
