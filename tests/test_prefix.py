"""A prefix-LM from training to text: the prompt attends in both directions, the answer only to what precedes it."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from gpt_jax import GPT, Greedy, generate, init_cache
from gpt_jax.config import Attention, BlockConfig, Config, Mlp, Prefix, Rope, Text
from gpt_jax.config.errors import ConfigError
from gpt_jax.data import Batch
from gpt_jax.runs.train import train
from gpt_jax.training.step import model_arguments
from tests.tiny import PROGRAMS, random_params, tiny, tiny_config

BLOCK = BlockConfig(Attention(2, position=Rope(), mask=Prefix()), Mlp(32))
CONFIG = tiny_config(model={"blocks": (BLOCK,) * 2})


def test_the_prefix_of_a_row_is_what_stands_before_its_first_target() -> None:
    weights = jnp.array([[0, 0, 1, 1.0], [1, 1, 1, 1], [0, 1, 0, 0]])
    zeros = jnp.zeros((3, 4), jnp.int32)
    batch = Batch(zeros, zeros, weights)
    np.testing.assert_array_equal(model_arguments(GPT(CONFIG.model), batch)["prefix"], [3, 1, 2])
    assert set(model_arguments(GPT(tiny()), batch)) == {"segments", "positions"}


def test_a_prefix_model_trains_on_a_task_and_refuses_text(tmp_path: Path) -> None:
    outcome = train(CONFIG, tmp_path / "run", console=Console(quiet=True), programs=PROGRAMS)
    assert outcome.status == "finished"
    with pytest.raises(ConfigError, match="which rows of Text do not: use a task such as Copy"):
        Config(CONFIG.model, Text(), CONFIG.optimizer, CONFIG.train)


def test_generate_uses_the_prompt_as_prefix() -> None:
    """Tokens equal those of full forward passes with the prefix given, for prompts of two lengths."""
    model = GPT(dataclasses.replace(CONFIG.model, vocab_size=32))
    params = random_params(model)
    prompts = [[3, 1, 4, 1, 5], [9, 2]]
    new = generate(model, params, prompts, key=jax.random.key(0), max_new_tokens=4, sampler=Greedy()).tokens
    for prompt, continuation in zip(prompts, new, strict=True):
        tokens, prefix = list(prompt), jnp.array([len(prompt)])
        causal = model.apply(params, jnp.array([tokens]))
        assert np.abs(causal - model.apply(params, jnp.array([tokens]), prefix=prefix)).max() > 0.01
        for token in continuation:
            logits = model.apply(params, jnp.array([tokens]), prefix=prefix)
            assert int(logits[0, -1].argmax()) == int(token)
            tokens.append(int(token))


def test_options_that_would_split_a_prefix_are_refused() -> None:
    model = GPT(dataclasses.replace(CONFIG.model, vocab_size=32))
    params = random_params(model)
    tokens, prefix = jnp.arange(6)[None], jnp.array([4])
    for options in ({"chunk": 2}, {"slide": True}):
        with pytest.raises(ValueError, match="must see its prompt at once: leave out slide and chunk"):
            generate(model, params, [[1, 2]], key=jax.random.key(0), max_new_tokens=2, **options)
    cache = init_cache(model.config, 1, 8)
    with pytest.raises(ValueError, match="attend to one another: pass all"):
        model.apply(params, tokens[:, :3], cache=cache, prefix=prefix)
    with pytest.raises(ValueError, match="prefix 7 is out of range"):
        model.apply(params, tokens, prefix=jnp.array([7]))
    with pytest.raises(ValueError, match="pass no segments with it"):
        model.apply(params, tokens, prefix=prefix, segments=jnp.zeros_like(tokens))
    with pytest.raises(ValueError, match="nothing reads the prefix"):
        GPT(tiny()).apply(random_params(GPT(tiny())), tokens, prefix=prefix)
