"""Which way to encode positions holds beyond its training length? The loss on rows 4 times as long decides.

    python -m experiments.ablate --config=configs/ablations/positions.py --workdir=runs/positions

Expected: on rows of the training length the schemes are close, no scheme a little behind. On rows 2 and 4 times
as long ALiBi stays as it was (Press et al. 2021, arXiv:2108.12409), while learned and sinusoidal codes and RoPE rise;
the learned table has rows for 4 times the training length, most of them never trained. About 25 minutes on two CPU
cores.
"""

from ml_collections import ConfigDict

from configs.ablations.base import SMOKE, text_config, tuning
from gpt_jax.ablation.endpoint import LongLoss
from gpt_jax.ablation.study import Arm, Study
from gpt_jax.config import Alibi, Config, Learned, Sinusoidal

__all__ = ["SMOKE", "get_config", "get_study"]


def get_config(arg: str = "") -> ConfigDict:
    return text_config()


def get_study(base: Config, arg: str = "") -> Study:
    relative, absolute = "model.attention.position", "model.embedding.position"
    table = Learned(length=4 * base.model.context_length)
    return Study(
        question="Which position scheme has the lowest loss on rows 4 times as long as those of training?",
        base=base,
        arms=(
            Arm("rope"),
            Arm("learned", {relative: None, absolute: table}),
            Arm("sinusoidal", {relative: None, absolute: Sinusoidal()}),
            Arm("alibi", {relative: Alibi()}),
            Arm("none", {relative: None}),
        ),
        baseline="rope",
        knobs=(relative, absolute),
        endpoint=LongLoss(factor=4),
        smallest_difference=0.05,
        extrapolation=(1, 2, 4),
        tuning=tuning(arg),
    )
