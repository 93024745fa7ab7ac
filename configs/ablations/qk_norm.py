"""Does a norm on queries and keys make the loss less sensitive to the learning rate?

    python -m experiments.ablate --config=configs/ablations/qk_norm.py --workdir=runs/qk_norm

The mean loss over five rates above that of the best one decides. Expected: equal at small rates; at large ones the norm
keeps logits small and the loss low, so that the sensitivity falls (Wortsman et al. 2023, arXiv:2309.14322; Henry et al.
2020, arXiv:2010.04245). Two arms × 5 rates × 3 seeds: about 30 minutes on two CPU cores.
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
        question="Does a norm on queries and keys lower the sensitivity to the learning rate?",
        base=base,
        arms=vary(knob, {"none": None, "qk-norm": RmsNorm()}),
        baseline="none",
        knobs=(knob,),
        endpoint=RateSensitivity(),
        smallest_difference=0.05,
        seeds=(0, 1, 2),
        learning_rates=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    )
