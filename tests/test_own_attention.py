"""An attention defined in a notebook cell trains, decodes and loads as the package's own do."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from rich.console import Console

from gpt_jax import GPT, Greedy, Mixer, generate, load_run, register_attention
from gpt_jax.analysis.capture import read
from gpt_jax.analysis.cost import forward_flops_per_token, kv_bytes_per_token
from gpt_jax.config import Attention, AttentionConfig, BlockConfig, Config, Mlp
from gpt_jax.config.conversion import from_config_dict, from_dict, to_config_dict, to_dict
from gpt_jax.config.errors import ConfigError
from gpt_jax.model.linear import Linear
from gpt_jax.model.registry import ATTENTIONS
from gpt_jax.runs.train import train
from tests.tiny import tiny_config


@pytest.fixture
def cell() -> Iterator[type]:
    """The attention that a user defines: each token adds a learned projection of the token before it."""

    @dataclass(frozen=True)
    class Previous(AttentionConfig):
        width: int = 8

    @register_attention(Previous)
    class PreviousToken(Mixer):
        @nn.compact
        def __call__(self, x: Any, row: Any, cache: Any, shared: Any, train: bool) -> Any:
            value = Linear(self.config.width, False, 0.5, self.model.param_dtype, name="value")(x)
            last = jnp.zeros_like(value[:, :1]) if cache is None else cache["last"]
            before = jnp.concatenate([last, value[:, :-1]], axis=1)
            if row.padding is not None:  # nothing stands before a row's first token
                before = jnp.where((row.steps > row.padding[:, None])[..., None], before, 0)
            y = Linear(x.shape[-1], False, 0.5, self.model.param_dtype, name="output")(before)
            return y, None if cache is None else {**cache, "last": value[:, -1:]}, shared

        @staticmethod
        def cache_shapes(config: Any, model: Any, length: int) -> Any:
            return {"last": jax.ShapeDtypeStruct((1, config.width), jnp.dtype(model.dtype))}

        @staticmethod
        def mixing_flops(config: Any, model: Any, context: int) -> int:
            return 0

    yield Previous
    forget(Previous)


def forget(kind: type) -> None:
    """Unregisters the type, as in a restarted notebook kernel."""
    AttentionConfig.choices.pop(kind.__name__, None)
    ATTENTIONS.pop(kind, None)


def config_of(kind: type) -> Config:
    blocks = (BlockConfig(kind(width=6), Mlp(32)), BlockConfig(Attention(2), Mlp(32)))
    return tiny_config(model={"blocks": blocks})


def test_a_registered_attention_converts_trains_decodes_and_loads(cell: type, tmp_path: Path) -> None:
    config = config_of(cell)
    assert from_dict(Config, to_dict(config)) == config
    assert from_config_dict(Config, to_config_dict(config)) == config
    assert train(config, tmp_path / "run", console=Console(quiet=True)).status == "finished"
    model, params, tokenizer = load_run(tmp_path / "run")
    assert type(model.config.blocks[0].attention) is cell
    prompts = [[1, 2, 3, 4, 5], [6, 7]]
    new = generate(model, params, prompts, key=jax.random.key(0), max_new_tokens=4, sampler=Greedy()).tokens
    for prompt, continuation in zip(prompts, new, strict=True):
        tokens = jnp.array([[*prompt, *map(int, continuation)]])
        greedy = model.apply(params, tokens).argmax(-1)[0, len(prompt) - 1 : -1]
        np.testing.assert_array_equal(greedy, continuation)
    assert kv_bytes_per_token(model.config, 16) == (6 * 4) / 16 + 2 * 16 * 4
    assert forward_flops_per_token(model.config, 16) > 0
    scanned = GPT(dataclasses.replace(config.model, vocab_size=9, blocks=config.model.blocks * 2, scan=True))
    assert scanned.init_with_output(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))[0].shape == (1, 4, 9)


def test_loading_a_run_requires_that_its_attention_is_registered(cell: type, tmp_path: Path) -> None:
    train(config_of(cell), tmp_path / "run", console=Console(quiet=True))
    forget(cell)
    with pytest.raises(ConfigError, match='"Previous", which is not known.*notebook or script must be defined again'):
        load_run(tmp_path / "run")


def test_a_configuration_without_an_implementation_is_refused(cell: type) -> None:
    ATTENTIONS.pop(cell)
    with pytest.raises(ConfigError, match="Previous has no implementation beside those of Attention"):
        GPT(dataclasses.replace(config_of(cell).model, vocab_size=9)).init(jax.random.key(0), jnp.zeros((1, 4), int))


def test_another_implementation_of_a_kind_takes_effect_at_once(cell: type) -> None:
    """Where a notebook's cell that registers it runs again: in calls, generation and what reads values."""
    config = config_of(cell).model
    model, ids = GPT(dataclasses.replace(config, vocab_size=16)), jnp.array([[1, 2, 3, 4]])
    params = model.init(jax.random.key(0), ids)

    def seen() -> list[Any]:
        told = generate(model, params, [[1, 2, 3]], key=jax.random.key(1), max_new_tokens=5, sampler=Greedy())
        return [read(model, params, ids, "logits")["logits"], told.logprobs]

    before = seen()

    class Louder(ATTENTIONS[cell]):  # type: ignore[misc]
        def __call__(self, *arguments: Any) -> Any:
            y, cache, shared = super().__call__(*arguments)
            return 7 * y, cache, shared

    register_attention(cell)(Louder)
    after = seen()
    assert not any(np.allclose(a, b) for a, b in zip(before, after, strict=True))
    np.testing.assert_allclose(after[0], model.apply(params, ids), atol=1e-5)
