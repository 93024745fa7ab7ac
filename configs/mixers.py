"""Which mixer remembers? Full attention, a window, linear attention and the delta rule, each trained on recall, on
needles in a haystack and on induction: 12 runs of two layers of width 64, evaluated at half to four times their length.

    python -m experiments.curves --workdir=runs/mixers

Each takes about half a minute on two CPU cores. One of them alone:

    python -m experiments.train --config=configs/mixers.py:delta_recall --workdir=runs/delta
"""

from ml_collections import ConfigDict

from gpt_jax.config import (
    Adamw,
    Attention,
    AttentionConfig,
    BlockConfig,
    Checkpoint,
    Config,
    DataConfig,
    Delta,
    Evaluation,
    GatedMlp,
    Head,
    Induction,
    Init,
    LinearAttention,
    ModelConfig,
    Needle,
    Recall,
    Rope,
    Train,
    WarmupCosine,
    Window,
)
from gpt_jax.config.conversion import to_config_dict
from gpt_jax.config.errors import ConfigError

MIXERS: dict[str, AttentionConfig] = {
    "attention": Attention(heads=2, position=Rope()),
    "window": Attention(heads=2, mask=Window(8), position=Rope()),
    "linear": LinearAttention(heads=2),
    "delta": Delta(heads=2),
}
# All have 62,500 parameters, up to 0.1%: the delta rule's gates and convolutions come out of its MLPs.
MLP_WIDTHS = {"attention": 64, "window": 64, "linear": 64, "delta": 37}
TASKS: dict[str, DataConfig] = {
    "recall": Recall(symbols=32, pairs=8, length=48),
    "needle": Needle(symbols=32, needles=4, length=48),
    "induction": Induction(symbols=32, length=48),
}


def get_config(arg: str = "") -> ConfigDict:
    mixer, _, task = (arg or "attention_recall").partition("_")
    if mixer not in MIXERS or task not in TASKS:
        raise ConfigError(f'there is no "{arg}" here: write MIXER_TASK of {", ".join(MIXERS)} and {", ".join(TASKS)}')
    block = BlockConfig(MIXERS[mixer], GatedMlp(width=MLP_WIDTHS[mixer]), convolution=3)
    model = ModelConfig(
        vocab_size=None,
        context_length=48,
        width=64,
        blocks=(block,) * 2,
        head=Head(tied=False),
        init=Init(embedding_std=1.0, kernel_std=None, output="same"),
    )
    return to_config_dict(
        Config(
            model=model,
            data=TASKS[task],
            optimizer=Adamw(learning_rate=5e-3),
            schedule=WarmupCosine(warmup=20),
            train=Train(steps=1000, batch_size=32),
            evaluation=Evaluation(every=500, batch_size=128),
            checkpoint=Checkpoint(every=500),
        )
    )
