"""A small GPT on the source code of Python's standard library, on any device.

    python -m experiments.train --config=configs/quickstart.py --workdir=runs/quickstart

1.5 M parameters are trained on 1 M bytes in about 3 minutes on two CPU cores, including preparation and compilation.
Expected validation loss: 1.19 ± 0.06 nats per byte (1.71 bits), depending on the release of Python.
"""

from ml_collections import ConfigDict

from gpt_jax.config import (
    Attention,
    BlockConfig,
    Bytes,
    Checkpoint,
    Config,
    Evaluation,
    GatedMlp,
    ModelConfig,
    Muon,
    RmsNorm,
    Rope,
    Score,
    Text,
    Train,
    WarmupStableDecay,
)
from gpt_jax.config.conversion import to_config_dict


def get_config(arg: str = "") -> ConfigDict:
    attention = Attention(heads=4, position=Rope(), score=Score(qk_norm=RmsNorm()))
    block = BlockConfig(attention=attention, mlp=GatedMlp(width=384))
    config = Config(
        model=ModelConfig(vocab_size=None, context_length=256, width=192, blocks=(block,) * 4),
        data=Text(corpus="python", tokenizer=Bytes(), validation_tokens=65_536),
        optimizer=Muon(learning_rate=0.02),
        schedule=WarmupStableDecay(warmup=20, decay=200),
        train=Train(steps=500, batch_size=8),
        evaluation=Evaluation(every=250, batch_size=16),
        checkpoint=Checkpoint(every=250),
        prompt="def ",
    )
    return to_config_dict(config)
