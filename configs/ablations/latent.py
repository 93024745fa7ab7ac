"""At equal bytes of cache, which way to shrink keys and values loses least: fewer heads (GQA), narrower heads (MHA), or
a latent that all heads are made from (MLA)?

    python -m experiments.ablate --config=configs/ablations/latent.py --workdir=runs/latent

Expected: MLA at least level with GQA, and narrow heads behind (DeepSeek-V2 2024, arXiv:2405.04434: MLA better than MHA
on 3 of 4 hard tests with a seventh of its cache). The arms' parameters differ by what their projections need; the table
shows them. About 15 minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from configs.ablations.base import text_config, tuning
from gpt_jax.ablation.endpoint import FinalLoss
from gpt_jax.ablation.study import Arm, Study
from gpt_jax.config import Attention, Config, Latent, Rope

SMOKE = {"model.mlp.width": 64, "data.validation_tokens": 2048}


def get_config(arg: str = "") -> ConfigDict:
    return text_config(Attention(heads=4, kv_heads=2, head_width=24, position=Rope()))


def get_study(base: Config, arg: str = "") -> Study:
    return Study(
        question="Which way to halve the cache of keys and values has the lowest loss?",
        base=base,
        arms=(
            Arm("gqa"),
            Arm("mha, narrow heads", {"model.attention.kv_heads": 4, "model.attention.head_width": 12}),
            Arm("mla", {"model.attention": Latent(heads=4, rank=64, head_width=24, rotary_width=16)}),
        ),
        baseline="gqa",
        knobs=("model.attention",),
        endpoint=FinalLoss(),
        smallest_difference=0.01,
        match="kv_bytes",
        free={"mla": "model.attention.rank"},
        tuning=tuning(arg),
    )
