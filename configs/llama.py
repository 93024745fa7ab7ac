"""Llama (Touvron et al. 2023, arXiv:2302.13971, arXiv:2307.09288) at three sizes, each for a slice of TPUs: RMSNorm,
rotary positions, SwiGLU, grouped queries, an untied head, no biases, 32,000 tokens.

    python -m experiments.plan --config=configs/llama.py:1b --topology=v5e:4x4
    python -m experiments.train --config=configs/llama.py:1b --workdir=runs/llama \\
        --config.data.path='text/*.txt' --config.data.tokenizer.path=tokenizer.json

- `configs/llama.py:1b`: 1.1 B parameters (TinyLlama, with 16 heads of 128), rows of 2,048 tokens, for v5e:4x4: 8.2 s a
  step of 2.1 M tokens, 56% of the peak, 10.6 of 15.75 GiB a chip.
- `configs/llama.py:7b`: 6.7 B parameters, rows of 4,096 tokens, for v5p:4x4x4: 11.1 s a step of 4.2 M tokens, 55% of
  the peak, 54 of 95 GiB a chip.
- `configs/llama.py:70b`: 69 B parameters, rows of 4,096 tokens, for v5p:8x8x8: 13.5 s a step of 4.2 M tokens, 57% of
  the peak, 90 of 95 GiB a chip.

Without an argument it is the smallest. `tokenizer.json` is that of Llama 2. These are estimates by the plan; none of
them has been trained. Parameters and moments are divided over chips (`mesh`), and a divided kernel is gathered as a
whole where 128 of its rows or more are on a chip, else by sums that send twice as much. On another slice, start from
`python -m experiments.plan … --search`.
"""

from typing import Any

from ml_collections import ConfigDict

from gpt_jax.config import (
    Adamw,
    Attention,
    BlockConfig,
    Checkpoint,
    Config,
    Evaluation,
    GatedMlp,
    Head,
    ModelConfig,
    RmsNorm,
    Rope,
    Text,
    TokenizerFile,
    Train,
    WarmupCosine,
)
from gpt_jax.config.conversion import to_config_dict

SIZES: dict[str, dict[str, Any]] = {
    "1b": {
        "width": 2048,
        "layers": 22,
        "heads": 16,
        "kv_heads": 4,
        "mlp": 5632,
        "context": 2048,
        "accumulate": 16,
        "mesh": "fsdp=-1",
    },
    "7b": {
        "width": 4096,
        "layers": 32,
        "heads": 32,
        "kv_heads": 32,
        "mlp": 11008,
        "context": 4096,
        "accumulate": 4,
        "mesh": "fsdp=-1",
    },
    "70b": {
        "width": 8192,
        "layers": 80,
        "heads": 64,
        "kv_heads": 8,
        "mlp": 28672,
        "context": 4096,
        "accumulate": 2,
        "mesh": "data=8,fsdp=64",
    },
}


def get_config(arg: str = "1b") -> ConfigDict:
    size = SIZES[arg or "1b"]
    norm = RmsNorm(eps=1e-5)
    attention = Attention(heads=size["heads"], kv_heads=size["kv_heads"], position=Rope())
    config = Config(
        model=ModelConfig(
            vocab_size=32_000,
            context_length=size["context"],
            width=size["width"],
            blocks=(BlockConfig(attention=attention, mlp=GatedMlp(width=size["mlp"]), norm=norm),) * size["layers"],
            final_norm=norm,
            head=Head(tied=False),
            dtype="bfloat16",
            scan=True,
            remat="dots",
        ),
        data=Text(tokenizer=TokenizerFile("tokenizer.json"), validation_fraction=0.001, validation_tokens=4_194_304),
        optimizer=Adamw(learning_rate=3e-4, beta2=0.95),
        schedule=WarmupCosine(warmup=2000),
        train=Train(steps=500_000, batch_size=1024, accumulate=size["accumulate"], log_every=10),
        evaluation=Evaluation(every=1000, batch_size=1024),
        checkpoint=Checkpoint(every=1000),
        mesh=size["mesh"],
    )
    return to_config_dict(config)
