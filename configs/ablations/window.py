"""How much of the context must a layer see? All of it, windows of 16 tokens, or one or two local layers for a global
one.

    python -m experiments.ablate --config=configs/ablations/window.py --workdir=runs/window

The loss at positions 16 and later decides, where a window hides something. Expected: it costs little, local:global
patterns less, and bytes of cache fall with it (Gemma 2 9B with windows of 4096, 2048 and 1024: perplexity 1.63, 1.63,
1.64). About 20 minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from configs.ablations.base import SMOKE, text_config, tuning
from gpt_jax.ablation.endpoint import PositionLoss
from gpt_jax.ablation.study import Arm, Study
from gpt_jax.config import Config, Window

__all__ = ["SMOKE", "get_config", "get_study"]


def get_config(arg: str = "") -> ConfigDict:
    return text_config()


def get_study(base: Config, arg: str = "") -> Study:
    local = {"B": {"attention": {"mask": Window(16)}}}
    return Study(
        question="What does a window of 16 tokens cost at the positions that have more before them?",
        base=base,
        arms=(
            Arm("full"),
            Arm("local", {"model.attention.mask": Window(16)}),
            Arm("1 local : 1 global", {"model.pattern": "BA", "model.letters": local}),
            Arm("2 local : 1 global", {"model.pattern": "BBA", "model.letters": local}),
        ),
        baseline="full",
        knobs=("model.attention.mask",),
        endpoint=PositionLoss(first=16),
        smallest_difference=0.01,
        extrapolation=(1, 2, 4),
        tuning=tuning(arg),
    )
