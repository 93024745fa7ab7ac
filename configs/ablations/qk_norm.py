"""Does a norm on queries and keys let the learning rate be higher?

    python -m experiments.ablate --config=configs/ablations/qk_norm.py --workdir=runs/qk_norm

Expected: equal at small rates; at large ones the norm keeps logits small and the loss low, so that the sensitivity to
the learning rate falls (Wortsman et al. 2023, arXiv:2309.14322; Henry et al. 2020, arXiv:2010.04245). Two arms × 5
rates × 3 seeds: about 30 minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from configs.ablations.base import SMOKE, text_config
from gpt_jax.ablation.combine import vary
from gpt_jax.ablation.endpoint import RateSensitivity
from gpt_jax.ablation.study import Study
from gpt_jax.config import Config, RmsNorm

__all__ = ["SMOKE", "get_config", "get_study"]


def get_config(arg: str = "") -> ConfigDict:
    return text_config()


def get_study(base: Config) -> Study:
    knob = "model.attention.score.qk_norm"
    return Study(
        question="Does a norm on queries and keys widen the range of good learning rates?",
        base=base,
        arms=vary(knob, {"none": None, "qk-norm": RmsNorm()}),
        baseline="none",
        knobs=(knob,),
        smallest_difference=0.01,
        endpoint=RateSensitivity(),
        seeds=(0, 1, 2),
        learning_rates=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    )
