"""What a run does about faults while it trains: hangs, spikes of the loss, bits that flip."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_jax.config.checks import require, require_positive
from gpt_jax.config.variant import Variant


@dataclass(frozen=True)
class Watchdog:
    """Writes the stacks of all threads if no step ends for `factor` times the median step, and at least `floor_seconds`
    (`factor` None: off). `pause_seconds` is the bound for what is no step: start, compilation, an evaluation, a save.
    With `abort`, the process then ends with an exit code of its own.
    """

    factor: float | None = 20.0
    floor_seconds: float = 300.0
    pause_seconds: float = 3600.0
    abort: bool = False

    def __post_init__(self) -> None:
        require_positive(self.factor, "watchdog.factor")
        require_positive(self.floor_seconds, "watchdog.floor_seconds")
        require_positive(self.pause_seconds, "watchdog.pause_seconds")


class SpikesConfig(Variant):
    """What is done about a step whose loss exceeds the mean of the last `window` losses by more than `sigmas` standard
    deviations. Until there are that many losses, nothing is a spike.
    """

    window: int
    sigmas: float

    def __post_init__(self) -> None:
        require(self.window >= 2, f"train.spikes.window must be at least 2 losses, not {self.window}")
        require_positive(self.sigmas, "train.spikes.sigmas")


@dataclass(frozen=True)
class LogSpikes(SpikesConfig):
    """Records the step, its loss and the documents of its batch."""

    window: int = 100
    sigmas: float = 6.0


@dataclass(frozen=True)
class SkipSpikes(SpikesConfig):
    """As LogSpikes; and the update of such a step is not applied, as if its loss were not finite."""

    window: int = 100
    sigmas: float = 6.0


@dataclass(frozen=True)
class RewindSpikes(SpikesConfig):
    """As LogSpikes; and the run goes back to its newest checkpoint, and leaves out the batches from there up to that of
    the spike (PaLM: Chowdhery et al. 2022, arXiv:2204.02311, section 5.1). After `most` times the next spike ends it.
    """

    window: int = 100
    sigmas: float = 6.0
    most: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self.most, "train.spikes.most")
