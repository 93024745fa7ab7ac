"""Fine-tune a trained model on other text, entirely or with a low-rank adapter (LoRA, arXiv:2106.09685).

    python -m experiments.train --config=configs/finetune.py --workdir=runs/adapted \\
        --config.init_from=runs/shakespeare --config.data.path='texts/*.txt'

`init_from` is the folder of a run, made by training or by `experiments.convert`. The new run has its model and its
tokenizer; `--config.model.KEY=VALUE` changes settings that do not affect parameters, such as `context_length`. Two
arms:

- `configs/finetune.py` trains an adapter of rank 8 on the queries and values of each layer. Checkpoints contain only
  the adapter.
- `configs/finetune.py:full` trains all parameters.
"""

from ml_collections import ConfigDict

from gpt_jax.config import Adamw, Checkpoint, Evaluation, Lora, Text, Train, WarmupCosine
from gpt_jax.config.errors import ConfigError
from gpt_jax.runs.init_from import to_partial_dict


def get_config(arg: str = "lora") -> ConfigDict:
    arms = {"lora": ({"adapter": Lora()}, 2e-3), "full": ({}, 1e-4)}
    if arg not in arms:
        raise ConfigError(f'configs/finetune.py has no arm "{arg}": choose {" or ".join(arms)}')
    changes, learning_rate = arms[arg]
    return to_partial_dict(
        changes,
        data=Text(corpus="python", validation_tokens=65_536),
        optimizer=Adamw(learning_rate=learning_rate, beta2=0.999, weight_decay=0.0),
        schedule=WarmupCosine(warmup=20),
        train=Train(steps=500, batch_size=8),
        evaluation=Evaluation(every=100, batch_size=16),
        checkpoint=Checkpoint(every=100),
    )
