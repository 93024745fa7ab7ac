"""The base that the studies on text share: 3 layers of width 96 on characters or bytes, 1 M tokens, about 45 s a run on
two CPU cores; and the tuning that any study may have. Not a study itself.
"""

from ml_collections import ConfigDict

from gpt_jax.ablation.study import Tuning
from gpt_jax.config import (
    Adamw,
    Attention,
    AttentionConfig,
    BlockConfig,
    Bytes,
    Checkpoint,
    Config,
    Evaluation,
    GatedMlp,
    ModelConfig,
    Rope,
    Text,
    TokenizerConfig,
    Train,
    WarmupCosine,
)
from gpt_jax.config.conversion import to_config_dict
from gpt_jax.config.errors import ConfigError

SMOKE = {"model.width": 32, "model.mlp.width": 64, "data.validation_tokens": 2048}


def text_config(attention: AttentionConfig | None = None, tokenizer: TokenizerConfig | None = None) -> ConfigDict:
    """A run on the embedded corpus (`--config.data.path=FILE` reads another text)."""
    block = BlockConfig(attention or Attention(heads=4, position=Rope()), GatedMlp(width=256))
    config = Config(
        model=ModelConfig(vocab_size=None, context_length=64, width=96, blocks=(block,) * 3),
        data=Text(tokenizer=tokenizer or Bytes(), validation_tokens=65_536),
        optimizer=Adamw(learning_rate=3e-3),
        schedule=WarmupCosine(warmup=50),
        train=Train(steps=1000, batch_size=16),
        evaluation=Evaluation(every=250, batch_size=64),
        checkpoint=Checkpoint(every=500),
    )
    return to_config_dict(config)


def tuning(arg: str, rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)) -> Tuning | None:
    """What FILE.py:tuned asks for: every arm tries `rates` first. None without the argument.

    Raises:
      ConfigError: another argument.
    """
    if arg not in ("", "tuned"):
        raise ConfigError(f'there is no study "{arg}" here: choose :tuned, or none')
    return Tuning(rates) if arg == "tuned" else None
