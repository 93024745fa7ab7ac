"""A tiny Llama (Touvron et al. 2023, arXiv:2302.13971): RMSNorm, rotary positions, SwiGLU, grouped queries, an untied
head, no biases.

    python -m experiments.train --config=configs/llama_tiny.py --workdir=runs/llama_tiny

Trains on the source code of Python's standard library, with a byte-pair tokenizer of 4,096 tokens that is learned
first. Loss and time have not been measured yet.
"""

from ml_collections import ConfigDict

from gpt_jax.config import (
    Adamw,
    Attention,
    BlockConfig,
    Bpe,
    Checkpoint,
    Config,
    Evaluation,
    GatedMlp,
    Head,
    ModelConfig,
    RmsNorm,
    Rope,
    Text,
    Train,
    WarmupCosine,
)
from gpt_jax.config.conversion import to_config_dict


def get_config(arg: str = "") -> ConfigDict:
    norm = RmsNorm(eps=1e-5)
    attention = Attention(heads=8, kv_heads=4, position=Rope())
    block = BlockConfig(attention=attention, mlp=GatedMlp(width=768), norm=norm)
    config = Config(
        model=ModelConfig(
            vocab_size=None,
            context_length=256,
            width=256,
            blocks=(block,) * 6,
            final_norm=norm,
            head=Head(tied=False),
        ),
        data=Text(corpus="python", tokenizer=Bpe(vocab_size=4096), validation_tokens=65_536),
        optimizer=Adamw(learning_rate=1e-3, beta2=0.95),
        schedule=WarmupCosine(warmup=50),
        train=Train(steps=1000, batch_size=8),
        evaluation=Evaluation(every=250, batch_size=16),
        checkpoint=Checkpoint(every=250),
        prompt="def ",
    )
    return to_config_dict(config)
