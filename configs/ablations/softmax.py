"""What should turn scores into weights: softmax, one with sinks or plus one, a softcap, a sigmoid, or SSMax?

    python -m experiments.ablate --config=configs/ablations/softmax.py --workdir=runs/softmax

Expected: little between them at this size, sigmoid behind (a retest of 2026 found it 2.4% worse in loss, with recall
gone). The final loss decides; SSMax is made for rows longer than the training's, whose losses stand beside it. About 30
minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from configs.ablations.base import SMOKE, text_config, tuning
from gpt_jax.ablation.combine import chain, vary
from gpt_jax.ablation.endpoint import FinalLoss
from gpt_jax.ablation.study import Arm, Study
from gpt_jax.config import Config, Ssmax

__all__ = ["SMOKE", "get_config", "get_study"]


def get_config(arg: str = "") -> ConfigDict:
    return text_config()


def get_study(base: Config, arg: str = "") -> Study:
    score = "model.attention.score"
    plain = {"softmax": "softmax", "sinks": "sinks", "plus one": "softmax_plus_one", "sigmoid": "sigmoid"}
    return Study(
        question="Which way to turn scores into attention weights has the lowest loss at the training length?",
        base=base,
        arms=chain(
            vary(f"{score}.normalizer", plain),
            (Arm("softcap 30", {f"{score}.softcap": 30.0}), Arm("ssmax", {f"{score}.temperature": Ssmax()})),
        ),
        baseline="softmax",
        knobs=(f"{score}.normalizer", f"{score}.softcap", f"{score}.temperature"),
        endpoint=FinalLoss(),
        smallest_difference=0.01,
        extrapolation=(1, 2, 4),
        tuning=tuning(arg),
    )
