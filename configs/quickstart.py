"""A small GPT on the source code of Python's own library, on whatever device is there.

python -m experiments.train --config=configs/quickstart.py --workdir=runs/quickstart
"""

from gpt_jax.config import (
    Adamw,
    Attention,
    BlockConfig,
    Bytes,
    Checkpoint,
    Config,
    Evaluation,
    GatedMlp,
    ModelConfig,
    Rope,
    Text,
    Train,
    WarmupCosine,
)
from gpt_jax.conversion import to_config_dict


def get_config(arg=""):
    block = BlockConfig(attention=Attention(heads=4, position=Rope()), mlp=GatedMlp(width=512))
    config = Config(
        model=ModelConfig(vocab_size=None, context_length=256, width=192, blocks=(block,) * 4),
        data=Text(corpus="python", tokenizer=Bytes(), validation_tokens=65_536),
        optimizer=Adamw(learning_rate=2e-3),
        schedule=WarmupCosine(warmup=40),
        train=Train(steps=300, batch_size=16),
        evaluation=Evaluation(every=100, batch_size=16),
        checkpoint=Checkpoint(every=100),
        prompt="def ",
    )
    return to_config_dict(config)
