"""What do fewer key/value heads cost, and what do they save? MHA, GQA and MQA at equal numbers of parameters: the MLP
gets what the keys and values give up.

    python -m experiments.ablate --config=configs/ablations/kv_heads.py --workdir=runs/kv_heads --seeds=8 \\
        --config.data.path=tinyshakespeare.txt

Expected: bytes of cache fall by 2 and 4 (H = 4), and the loss hardly moves. (Shazeer 2019, arXiv:1911.02150: perplexity
29.9 with MHA, 30.2 with MQA. Ainslie et al. 2023, arXiv:2305.13245: GQA within 0.1 of MHA.) Seen on tinyshakespeare
with 8 seeds: MQA worse by 0.016 nats (0.007 to 0.025), GQA undecided (−0.007 to 0.023). About 20 minutes on two CPU
cores with 8 seeds and --jobs=2.

With --config=configs/ablations/kv_heads.py:tuned every arm finds its learning rate first, in 9 to 15 runs more.
"""

from ml_collections import ConfigDict

from configs.ablations.base import SMOKE, text_config, tuning
from gpt_jax.ablation.combine import vary
from gpt_jax.ablation.endpoint import FinalLoss
from gpt_jax.ablation.study import Study
from gpt_jax.config import Attention, Characters, Config, Rope

__all__ = ["SMOKE", "get_config", "get_study"]


def get_config(arg: str = "") -> ConfigDict:
    return text_config(Attention(heads=4, kv_heads=4, position=Rope()), Characters())


def get_study(base: Config, arg: str = "") -> Study:
    return Study(
        question="What do fewer key/value heads cost in loss, at equal numbers of parameters?",
        base=base,
        arms=vary("model.attention.kv_heads", mha=4, gqa=2, mqa=1),
        baseline="mha",
        knobs=("model.attention.kv_heads",),
        endpoint=FinalLoss(),
        smallest_difference=0.01,
        match="params",
        free="model.mlp.width",
        tuning=tuning(arg),
    )
