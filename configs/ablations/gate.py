"""Is a gate on attention's output, or a share of the first layer's values, worth its parameters? At equal numbers of
them: the MLP pays for the gate.

    python -m experiments.ablate --config=configs/ablations/gate.py --workdir=runs/gate

Expected: gains no larger than the noise here. (Qiu et al. 2025, arXiv:2505.06708: perplexity 7.363 → 7.101 at 1.7B;
ResFormer, Zhou et al. 2024, arXiv:2410.17897: equal loss with 16% fewer parameters; a retest of 2026 at equal compute
and several seeds found both inside the noise.) About 20 minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from configs.ablations.base import SMOKE, text_config, tuning
from gpt_jax.ablation.endpoint import FinalLoss
from gpt_jax.ablation.study import Arm, Study
from gpt_jax.config import Config, ElementwiseGate, HeadwiseGate, ValueResidual

__all__ = ["SMOKE", "get_config", "get_study"]


def get_config(arg: str = "") -> ConfigDict:
    return text_config()


def get_study(base: Config, arg: str = "") -> Study:
    gate, residual = "model.attention.gate", "model.attention.value.residual"
    return Study(
        question="Do output gates or value residuals lower the loss at equal numbers of parameters?",
        base=base,
        arms=(
            Arm("none"),
            Arm("headwise gate", {gate: HeadwiseGate()}),
            Arm("elementwise gate", {gate: ElementwiseGate()}),
            Arm("value residual", {residual: ValueResidual(0.5)}),
        ),
        baseline="none",
        knobs=(gate, residual),
        endpoint=FinalLoss(),
        smallest_difference=0.01,
        match="params",
        free="model.mlp.width",
        tuning=tuning(arg),
    )
