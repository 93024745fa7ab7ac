"""A trained model goes on with other text, whole or by a low-rank adapter (LoRA, arXiv:2106.09685) that alone trains.

    python -m experiments.train --config=configs/finetune.py --workdir=runs/adapted \\
        --config.init_from=runs/shakespeare --config.data.path='texts/*.txt'

`init_from` is the folder of a run, of training or of `experiments.convert`. Its model and its tokenizer are taken over;
`--config.model.KEY=VALUE` changes what may differ, such as `context_length`. Two arms:

- `configs/finetune.py`: rank 8 on the queries and values of each layer. Checkpoints hold the adapter alone.
- `configs/finetune.py:full`: all parameters.
"""

from ml_collections import ConfigDict

from gpt_jax.config import Adamw, Checkpoint, Evaluation, Lora, Text, Train, WarmupCosine
from gpt_jax.config.errors import ConfigError
from gpt_jax.runs.init_from import to_partial_dict


def get_config(arg: str = "lora") -> ConfigDict:
    arms = {"lora": ({"adapter": Lora()}, 2e-3), "full": ({}, 1e-4)}
    if arg not in arms:
        raise ConfigError(f'configs/finetune.py has the arms {", ".join(arms)}, not "{arg}"')
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
