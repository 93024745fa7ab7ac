"""Every kernel, chosen by name or by length, gives the einsum's logits and gradients; what it lacks is refused."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT, init_cache
from gpt_jax.config import (
    Alibi,
    Attention,
    BlockConfig,
    Causal,
    Chunk,
    Differential,
    Latent,
    MaskConfig,
    Mlp,
    ModelConfig,
    Prefix,
    Projected,
    RmsNorm,
    Rope,
    Score,
    T5Bias,
    Window,
)
from gpt_jax.config.errors import ConfigError
from gpt_jax.model import attend as attend_module
from tests.tiny import apply, random_params

T = 300  # more than the 256² scores that the chunked kernel computes at once
TOKENS = jax.random.randint(jax.random.key(0), (2, T), 0, 17)
SEGMENTS = jnp.arange(T)[None] // jnp.array([[40], [170]])
POSITIONS = jnp.stack([jnp.arange(T) % 40, jnp.arange(T) % 170])
VARIANTS: dict[str, Any] = {
    "plain": Attention(2, 1, 8, position=Rope()),
    "window and alibi": Attention(2, mask=Window(70), position=Alibi()),
    "chunk, t5 and a softcap": Attention(2, mask=Chunk(50), position=T5Bias(), score=Score(softcap=3.0)),
    "sinks": Attention(2, 2, 8, score=Score(normalizer="sinks", qk_norm=RmsNorm())),
    "sigmoid": Attention(2, score=Score(normalizer="sigmoid")),
    "forgetting": Attention(2, mask=Window(100), forget_gate=True),
    "differential": Differential(2, 2, 8, position=Rope(), value=Projected(4)),
    "latent": Latent(2, 6, 8, 4),
}


def model_of(attention: Any, kernel: Any = None, layers: int = 1, **changes: Any) -> GPT:
    block = BlockConfig(attention, Mlp(16))
    return GPT(ModelConfig(17, T, 16, (block,) * layers, kernel=kernel, **changes))


def run(model: GPT, params: Any, **given: Any) -> Any:
    def loss(params: Any) -> Any:
        logits = model.apply(params, TOKENS, **given)
        return jnp.sin(logits).mean(), logits

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


@pytest.mark.parametrize("name", VARIANTS)
def test_chunked_attention_gives_the_einsums_logits_and_gradients(name: str) -> None:
    einsum, chunked = (model_of(VARIANTS[name], kernel) for kernel in ("einsum", "chunked"))
    params = random_params(einsum, size=0.5)
    given = {"segments": SEGMENTS, "positions": POSITIONS}
    ((_, wanted), gradients), ((_, logits), others) = run(einsum, params, **given), run(chunked, params, **given)
    np.testing.assert_allclose(logits, wanted, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), others, gradients)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients)) > 1e-3


def test_chunked_attention_sees_the_whole_prefix() -> None:
    einsum, chunked = (model_of(Attention(2, mask=Prefix()), kernel) for kernel in ("einsum", "chunked"))
    params = random_params(einsum, size=0.5)
    prefix = jnp.array([280, 5])
    (_, wanted), _ = run(einsum, params, prefix=prefix)
    (_, logits), _ = run(chunked, params, prefix=prefix)
    np.testing.assert_allclose(logits, wanted, atol=2e-5)
    assert np.abs(wanted - run(einsum, params)[0][1]).max() > 0.01


@pytest.mark.parametrize("mask", [Causal(), Window(70)], ids=repr)
def test_long_prompts_go_through_the_cache_in_chunks(mask: MaskConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long a row does in training, wherever it begins in the cache."""
    model = model_of(Attention(2, 1, 8, mask=mask, position=Rope()))
    params = random_params(model, size=0.5)
    wanted = apply(model, params, TOKENS)
    monkeypatch.setattr(attend_module, "LONG", 100)
    cache = init_cache(model.config, 2, T + 50, jnp.zeros(2, jnp.int32))
    parts, programs = [], []
    for part in (TOKENS[:, :10], TOKENS[:, 10:290], TOKENS[:, 290:]):
        programs.append(str(jax.make_jaxpr(lambda c, t: model.apply(params, t, cache=c))(cache, part)))
        logits, cache = jax.jit(model.apply)(params, part, cache=cache)
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), wanted, atol=2e-5)
    assert ["custom_vjp" in program for program in programs] == [False, True, False]


def test_without_a_named_kernel_the_length_chooses_it() -> None:
    def program(kernel: Any, length: int, attention: Any = VARIANTS["plain"]) -> str:  # noqa: B008
        model = model_of(attention, kernel)
        params = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
        tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
        return str(jax.make_jaxpr(lambda p, t: model.apply(p, t))(params, tokens))

    short, long = attend_module.LONG // 2, attend_module.LONG
    assert program(None, short) == program("einsum", short) != program("chunked", short)
    assert "platform_index" in program(None, long)  # splash on a TPU, chunked elsewhere
    biased = VARIANTS["window and alibi"]  # which splash can't do
    assert program(None, long, biased) == program("chunked", long, biased) != program("einsum", long, biased)


@pytest.mark.parametrize(
    "kernel, attention, reason",
    [
        ("splash", VARIANTS["window and alibi"], 'model.kernel is "splash", which cannot add a bias to the scores'),
        ("splash", VARIANTS["sigmoid"], "which supports softmax only, not sigmoid"),
        ("splash", Attention(2, mask=Chunk(3)), "which supports causal masks and windows only, not Chunk"),
        ("splash", Attention(2), "which needs rows of a multiple of 128 tokens, not 300"),
        ("chunked", Attention(2, dropout=0.1), 'set it to 0, or choose "einsum"'),
    ],
)
def test_a_kernel_that_cannot_do_a_variant_says_why(kernel: Any, attention: Any, reason: str) -> None:
    model = model_of(attention, kernel)
    rngs = {"dropout": jax.random.key(0)}
    with pytest.raises(ConfigError, match=reason):
        jax.eval_shape(lambda: model.init_with_output({"params": jax.random.key(0)} | rngs, TOKENS, train=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "sinks", "latent"])
def test_splash_attention_gives_the_einsums_logits_and_gradients(name: str) -> None:
    """Interpreted, as it is off TPUs."""
    tokens = TOKENS[:, :128]
    einsum, splash = (model_of(VARIANTS[name], kernel) for kernel in ("einsum", "splash"))
    params = random_params(einsum, size=0.5)
    (wanted, gradients), (logits, others) = (
        jax.value_and_grad(lambda p, m=m: jnp.sin(m.apply(p, tokens)).mean())(params) for m in (einsum, splash)
    )
    np.testing.assert_allclose(logits, wanted, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), others, gradients)


def test_a_training_step_on_a_long_row_needs_an_eighth_of_the_memory() -> None:
    def temporary(kernel: Any) -> int:
        model = model_of(Attention(4, position=Rope()), kernel, layers=2, scan=True)
        model = GPT(dataclasses.replace(model.config, context_length=2048))
        tokens = jax.ShapeDtypeStruct((1, 2048), jnp.int32)
        params = jax.eval_shape(model.init, jax.random.key(0), tokens)
        step = jax.jit(jax.grad(lambda p, t: jnp.sin(model.apply(p, t)).mean()))
        return step.lower(params, tokens).compile().memory_analysis().temp_size_in_bytes

    assert temporary("chunked") <= temporary("einsum") / 8
