"""GPT-2 small (Radford et al. 2019): 12 layers of width 768, context 1,024, 124 M parameters, on text of your own.

    python -m experiments.train --config=configs/gpt2_124m.py --workdir=runs/gpt2 \\
        --config.data.path='openwebtext/*.txt' --config.data.tokenizer.path=tokenizer.json

`tokenizer.json` is that of GPT-2, with 50,257 tokens. On OpenWebText, nanoGPT reports a validation loss of 2.85 nats
per token for this model, batch size (0.5 M tokens) and number of steps (600,000), after 4 days on 8 A100s; this
configuration has not been run that far. The batch fits 16 chips of 16 GB at once. With fewer or smaller devices, raise
`train.accumulate`, which splits it into micro-batches and changes results by rounding only;
`python -m experiments.plan --config=configs/gpt2_124m.py --topology=v5e:4x4` tells what fits.
"""

from ml_collections import ConfigDict

from gpt_jax.config import (
    PROJECTIONS,
    Adamw,
    Attention,
    BlockConfig,
    Checkpoint,
    Config,
    Embedding,
    Evaluation,
    LayerNorm,
    Learned,
    Mlp,
    ModelConfig,
    Text,
    TokenizerFile,
    Train,
    WarmupCosine,
)
from gpt_jax.config.conversion import to_config_dict


def get_config(arg: str = "") -> ConfigDict:
    block = BlockConfig(
        attention=Attention(heads=12, bias=PROJECTIONS), mlp=Mlp(width=3072, bias=True), norm=LayerNorm()
    )
    config = Config(
        model=ModelConfig(
            vocab_size=50_304,  # 50,257 rounded up to a multiple of 128
            context_length=1024,
            width=768,
            blocks=(block,) * 12,
            embedding=Embedding(position=Learned()),
            final_norm=LayerNorm(),
            dtype="bfloat16",
            remat="dots",
        ),
        data=Text(tokenizer=TokenizerFile("tokenizer.json"), validation_fraction=0.01, validation_tokens=4_194_304),
        optimizer=Adamw(learning_rate=6e-4, beta2=0.95),
        schedule=WarmupCosine(warmup=2000),
        train=Train(steps=600_000, batch_size=512, log_every=10),
        evaluation=Evaluation(every=1000, batch_size=64),
        checkpoint=Checkpoint(every=1000),
    )
    return to_config_dict(config)
