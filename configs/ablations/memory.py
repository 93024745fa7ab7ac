"""Equal loss, other memory? Full attention, a window, linear attention and the delta rule on recall of 4 pairs. The
loss decides; harder recall is asked beside it: pairs among noise, keys that get another value, rows full of pairs, and
rows 4 times as long.

    python -m experiments.ablate --config=configs/ablations/memory.py --workdir=runs/memory

Expected: at equal loss the secondary endpoints tell mixers apart, in keys that get another value and on long rows
(Arora et al. 2023, arXiv:2312.04927; Yang et al. 2024, arXiv:2406.06484). Seen with :tuned: full attention 0.003 nats
and linear attention 0.001, no difference that matters, where linear attention recalls more: 1.00 against 0.95 on rows
of 128 tokens, and 0.74 against 0.68 where keys get another value. The window is worse by 2.74 nats, the delta rule, not
done learning at its rate, by 0.89. 20 minutes on two CPU cores that six others shared.
"""

from ml_collections import ConfigDict

from configs.ablations import recall
from configs.ablations.base import tuning
from configs.ablations.recall import SMOKE
from gpt_jax.ablation.endpoint import FinalLoss, Suite
from gpt_jax.ablation.study import Arm, Study
from gpt_jax.config import Config, Delta, LinearAttention, Window

__all__ = ["SMOKE", "get_config", "get_study"]


def get_config(arg: str = "") -> ConfigDict:
    return recall.get_config()


def get_study(base: Config, arg: str = "") -> Study:
    mixer, mask = "model.attention", "model.attention.mask"
    position, convolution = "model.attention.position", "model.attention.convolution"
    return Study(
        question="Which mixers differ in loss on recall, and what do they remember at equal loss?",
        base=base,
        arms=(
            Arm("full"),
            Arm("window", {mask: Window(4)}),
            Arm("linear", {mixer: LinearAttention(heads=2), position: None}),
            Arm("delta", {mixer: Delta(heads=2), convolution: 4}),
        ),
        baseline="full",
        knobs=(mixer,),
        endpoint=FinalLoss(),
        smallest_difference=0.1,
        most_seeds=5,
        rules_out_failures=0.5,
        match="params",
        free="model.mlp.width",
        secondary=(
            Suite("recall", kinds=("noisy", "forgetting", "full of pairs")),
            Suite("recall", kinds=("recall",), lengths=(128,)),
        ),
        fresh_seeds=0,
        tuning=tuning(arg, rates=(1.5e-3, 5e-3, 1.5e-2)),
    )
