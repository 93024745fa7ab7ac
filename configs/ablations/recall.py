"""Who remembers? Full attention, a window, linear attention and hybrids on associative recall: key–value pairs, then
the keys again (MQAR: Arora et al. 2023, arXiv:2312.04927).

    python -m experiments.ablate --config=configs/ablations/recall.py --workdir=runs/recall

Expected: full attention recalls (accuracy near 1), a window shorter than the distance cannot see the pairs, linear
attention's state holds few of them, and one full layer in a hybrid restores recall. The mean accuracy over 1 to 8 pairs
decides, where training has 4. Seen, in nats at 4 pairs: full 0.003, window 2.73, a window below full attention 0.002.
About 4 minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from configs.ablations.base import tuning
from gpt_jax.ablation.endpoint import ProbeAccuracy
from gpt_jax.ablation.study import Arm, Probe, Study
from gpt_jax.config import (
    Adamw,
    Attention,
    BlockConfig,
    Checkpoint,
    Config,
    Evaluation,
    GatedMlp,
    Head,
    Init,
    LinearAttention,
    ModelConfig,
    Recall,
    Rope,
    Train,
    WarmupCosine,
    Window,
)
from gpt_jax.config.conversion import to_config_dict

SMOKE = {"data.validation_rows": 64}
PAIRS = (1, 2, 3, 4, 6, 8)


def get_config(arg: str = "") -> ConfigDict:
    block = BlockConfig(Attention(heads=2, position=Rope()), GatedMlp(width=64), convolution=3)
    return to_config_dict(
        Config(
            model=ModelConfig(
                vocab_size=None,
                context_length=32,
                width=64,
                blocks=(block,) * 2,
                head=Head(tied=False),
                init=Init(embedding_std=1.0, kernel_std=None, output="same"),
            ),
            data=Recall(symbols=32, pairs=4, length=32, validation_rows=512),
            optimizer=Adamw(learning_rate=5e-3),
            schedule=WarmupCosine(warmup=20),
            train=Train(steps=400, batch_size=32),
            evaluation=Evaluation(every=100, batch_size=128),
            checkpoint=Checkpoint(every=200),
        )
    )


def get_study(base: Config, arg: str = "") -> Study:
    no_position = "model.letters.B.attention.position"
    # Linear attention could rotate its keys too; here it has no positions.
    linear, local = LinearAttention(heads=2), {"mask": Window(4)}
    return Study(
        question="Which attention recalls most values by their keys, over 1 to 8 pairs?",
        base=base,
        arms=(
            Arm("full"),
            Arm("window", {"model.attention.mask": Window(4)}),
            Arm("linear", {"model.attention": linear, "model.attention.position": None}),
            Arm("window, full", {"model.pattern": "BA", "model.letters": {"B": {"attention": local}}}),
            Arm(
                "linear, full",
                {"model.pattern": "BA", "model.letters": {"B": {"attention": linear}}, no_position: None},
            ),
        ),
        baseline="full",
        knobs=("model.attention",),
        endpoint=ProbeAccuracy(),
        smallest_difference=0.05,
        seeds=(0, 1, 2),
        probe=Probe("number of pairs", {n: Recall(symbols=32, pairs=n, length=32) for n in PAIRS}),
        tuning=tuning(arg, rates=(1.5e-3, 5e-3, 1.5e-2)),
    )
