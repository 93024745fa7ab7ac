"""Character-level Shakespeare at nanoGPT's CPU budget: 4 layers of width 128, 2,000 steps of 768 characters and at most
0.82 M parameters.

    python -m experiments.train --config=configs/shakespeare_char.py --workdir=runs/shakespeare \\
        --config.data.path=tinyshakespeare.txt

The file is nanoGPT's `input.txt` (1,115,394 characters): 90 % for training, then 10 % for validation. Two arms:

- `configs/shakespeare_char.py`: a modern architecture with 814,848 parameters, on 3 rows of 256 characters a
  step. Validation loss: 1.490 nats per character (1.492, 1.494 and 1.485 for the seeds 0, 1 and 2). With 12 rows of 64
  it was 1.521 (docs/gallery/shakespeare/README.md).
- `configs/shakespeare_char.py:gpt2`: the plain GPT-2 that nanoGPT trains, on 12 rows of 64. Validation loss: 1.90.

Each takes a few minutes on two CPU cores.
"""

import dataclasses

from ml_collections import ConfigDict

from gpt_jax.config import (
    Adamw,
    Attention,
    BlockConfig,
    Characters,
    Checkpoint,
    Config,
    Embedding,
    Evaluation,
    GatedMlp,
    Head,
    Init,
    LayerNorm,
    Learned,
    LinearDecay,
    Mlp,
    ModelConfig,
    Muon,
    RmsNorm,
    Rope,
    Score,
    Text,
    Train,
    WarmupCosine,
)
from gpt_jax.config.conversion import to_config_dict
from gpt_jax.config.errors import ConfigError


def get_config(arg: str = "modern") -> ConfigDict:
    arms = {"modern": modern, "gpt2": gpt2}
    if arg not in arms:
        raise ConfigError(f'configs/shakespeare_char.py has no arm "{arg}": choose {" or ".join(arms)}')
    return to_config_dict(arms[arg]())


def gpt2() -> Config:
    """nanoGPT's GPT-2."""
    norm = LayerNorm(bias=False)
    block = BlockConfig(Attention(heads=4), Mlp(width=512, activation="gelu"), norm)
    return Config(
        model=ModelConfig(
            vocab_size=None,
            context_length=64,
            width=128,
            blocks=(block,) * 4,
            embedding=Embedding(position=Learned()),
            final_norm=norm,
        ),
        data=Text(tokenizer=Characters()),
        optimizer=Adamw(learning_rate=1e-3),
        schedule=WarmupCosine(warmup=100),
        train=Train(steps=2000, batch_size=12),
        evaluation=Evaluation(every=500, batch_size=96),
        checkpoint=Checkpoint(every=500),
        prompt="ROMEO:",
    )


def modern() -> Config:
    """RMSNorm, RoPE, QK norm, gated MLP, short convolutions and Muon, on longer rows, at the same budget."""
    norm = RmsNorm(scale=False)
    attention = Attention(heads=4, position=Rope(), score=Score(qk_norm=norm), convolution=3)
    block = BlockConfig(attention, GatedMlp(width=344), norm, convolution=3)
    plain = gpt2()
    return dataclasses.replace(
        plain,
        model=dataclasses.replace(
            plain.model,
            context_length=256,
            blocks=(block,) * 4,
            embedding=Embedding(norm=norm),
            final_norm=norm,
            head=Head(tied=False),
            init=Init(embedding_std=1.0, kernel_std=None, head_std=0.0, output="zero"),
        ),
        optimizer=Muon(learning_rate=0.02, adam_ratio=0.5, beta2=0.95),
        schedule=LinearDecay(),
        train=dataclasses.replace(plain.train, batch_size=3, clip_norm=None),
        evaluation=dataclasses.replace(plain.evaluation, batch_size=24),
    )
