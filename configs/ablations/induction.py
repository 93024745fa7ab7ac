"""Do induction heads need two layers? One and two attention-only layers on sequences that repeat themselves.

    python -m experiments.ablate --config=configs/ablations/induction.py --workdir=runs/induction

Expected: two layers solve it (loss below 0.1 nats within 300 steps), one does not (above 1.0), since a head can look up
what followed the last time only where the layer below has written into each key which token precedes it (Olsson et al.
2022, arXiv:2209.11895). The final loss decides. Seen: 0.001 and 2.48 (2.36 to 2.59 more). About a minute on two CPU
cores.
"""

from ml_collections import ConfigDict

from configs.ablations.base import tuning
from gpt_jax.ablation.combine import vary
from gpt_jax.ablation.endpoint import FinalLoss
from gpt_jax.ablation.study import Study
from gpt_jax.config import (
    Adamw,
    Attention,
    BlockConfig,
    Checkpoint,
    Config,
    Evaluation,
    Head,
    Induction,
    Init,
    ModelConfig,
    Rope,
    Train,
    WarmupCosine,
)
from gpt_jax.config.conversion import to_config_dict

SMOKE = {"data.validation_rows": 64}


def get_config(arg: str = "") -> ConfigDict:
    block = BlockConfig(Attention(heads=4, position=Rope()), mlp=None)
    return to_config_dict(
        Config(
            model=ModelConfig(
                vocab_size=None,
                context_length=48,
                width=64,
                blocks=(block,) * 2,
                head=Head(tied=False),
                init=Init(embedding_std=1.0, kernel_std=None, output="same"),
            ),
            data=Induction(symbols=32, length=48),
            optimizer=Adamw(learning_rate=1e-2),
            schedule=WarmupCosine(warmup=20),
            train=Train(steps=300, batch_size=32),
            evaluation=Evaluation(every=50, batch_size=128),
            checkpoint=Checkpoint(every=150),
        )
    )


def get_study(base: Config, arg: str = "") -> Study:
    return Study(
        question="Does induction need two attention-only layers, by the loss on repeated sequences?",
        base=base,
        arms=vary("model.layers", {"two layers": 2, "one layer": 1}),
        baseline="two layers",
        knobs=("model.layers",),
        endpoint=FinalLoss(),
        smallest_difference=0.1,
        seeds=(0, 1, 2),
        tuning=tuning(arg, rates=(3e-3, 1e-2, 3e-2)),
    )
