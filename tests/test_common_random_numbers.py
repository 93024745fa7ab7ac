"""Rule 2 of the design: switching one thing leaves the initial value of every other parameter bit for bit as it was.

Two arms of an ablation then start from the same numbers, and their difference is the switch.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT, ModelConfig
from gpt_jax.config import (
    PROJECTIONS,
    Alibi,
    Attention,
    BlockConfig,
    Chunk,
    Delta,
    Differential,
    ElementwiseGate,
    Embedding,
    FromKey,
    GatedMlp,
    Head,
    Init,
    Latent,
    LayerNorm,
    Learned,
    LinearAttention,
    LinearScaling,
    LogTemperature,
    Lora,
    Mlp,
    Projected,
    RmsNorm,
    Rope,
    Score,
    Shared,
    Sinusoidal,
    Ssmax,
    T5Bias,
    ValueEmbedding,
    ValueResidual,
    Window,
)
from gpt_jax.model.paths import map_with_path, matches
from gpt_jax.model.stack import canonical
from tests.tiny import tiny

pytestmark = pytest.mark.optimized

ATTENTION = Attention(4, head_width=4)
BLOCK = BlockConfig(ATTENTION, GatedMlp(12))
BASE = tiny(blocks=(BLOCK, BLOCK))


def attention(**changes: Any) -> ModelConfig:
    return block(attention=dataclasses.replace(ATTENTION, **changes))


def block(**changes: Any) -> ModelConfig:
    return dataclasses.replace(BASE, blocks=(dataclasses.replace(BLOCK, **changes),) * 2)


def model(**changes: Any) -> ModelConfig:
    return dataclasses.replace(BASE, **changes)


# switch → the model with it, and the parameters that come, go or change their shape with it.
SWITCHES: dict[str, tuple[ModelConfig, list[str]]] = {
    "kv_heads": (attention(kv_heads=1), ["**/key/kernel", "**/value/kernel"]),
    "head_width": (attention(head_width=2), ["**/attention/*/kernel"]),
    "rope, a window and dropout": (attention(position=Rope(), mask=Window(3), dropout=0.1), []),
    "alibi and a softcap": (attention(position=Alibi(), score=Score(softcap=5.0)), []),
    "qk_norm": (attention(score=Score(qk_norm=RmsNorm())), ["**/query_norm/*", "**/key_norm/*"]),
    "partial and scaled rope": (attention(position=Rope(fraction=0.5, scaling=LinearScaling(2.0))), []),
    "a learned bias of distance": (attention(position=T5Bias(4, 6)), ["**/position/table"]),
    "chunks, a clip and a temperature": (
        attention(mask=Chunk(3), clip=1.0, score=Score(temperature=LogTemperature())),
        [],
    ),
    "scalable softmax": (attention(score=Score(temperature=Ssmax())), ["**/ssmax/s"]),
    "sinks": (attention(score=Score(normalizer="sinks")), ["**/sinks/logits"]),
    "sigmoid": (attention(score=Score(normalizer="sigmoid")), []),
    "a norm of each head's own": (
        attention(score=Score(qk_norm=RmsNorm(unit_offset=True), qk_norm_over="heads")),
        ["**/query_norm/*", "**/key_norm/*"],
    ),
    "value width": (attention(value=Projected(width=6)), ["**/value/kernel", "**/output/kernel"]),
    "a gate": (attention(gate=ElementwiseGate()), ["**/gate/kernel"]),
    "a forget gate": (attention(forget_gate=True), ["**/forget/*"]),
    "value residual": (attention(value=Projected(residual=ValueResidual(0.5))), ["**/value_residual/share"]),
    "value embedding": (attention(value=Projected(embedding=ValueEmbedding())), ["**/value_embedding/table"]),
    "values from keys": (attention(value=FromKey()), ["**/attention/value/kernel"]),
    "keys and values shared": (
        model(blocks=(BLOCK, dataclasses.replace(BLOCK, attention=dataclasses.replace(ATTENTION, value=Shared())))),
        ["blocks/1/attention/key/kernel", "blocks/1/attention/value/kernel"],
    ),
    "differential": (
        block(attention=Differential(4, head_width=4)),
        ["**/lambda_*/vector"],
    ),
    "latent": (
        block(attention=Latent(4, 6, 4, 4)),
        ["**/attention/*/kernel", "**/latent_norm/scale"],
    ),
    "linear": (block(attention=LinearAttention(4, 4)), []),
    "delta": (
        block(attention=Delta(4, head_width=4)),
        [
            "**/attention/*_convolution/taps",
            "**/attention/gate/kernel",
            "**/beta/**",
            "**/decay/**",
            "**/attention/output_norm/*",
        ],
    ),
    "biases": (attention(bias=PROJECTIONS), ["**/bias"]),
    "short convolutions": (block(convolution=2), ["**/*_convolution/taps"]),
    "convolutions inside attention": (attention(convolution=3), ["**/attention/*_convolution/taps"]),
    "a plain mlp": (block(mlp=Mlp(12)), ["**/gate/kernel"]),
    "mlp width": (block(mlp=GatedMlp(10)), ["**/mlp/*/kernel"]),
    "mlp biases": (block(mlp=GatedMlp(12, bias=True)), ["**/mlp/*/bias"]),
    "no mlp": (block(mlp=None), ["**/mlp/**", "**/mlp_norm/*"]),
    "layer norm": (block(norm=LayerNorm()), ["**/*norm/bias"]),
    "post": (block(residual="post", dropout=0.1), []),
    "a norm on outputs alone": (block(residual="output"), ["**/*_norm/*"]),
    "an adapter": (block(adapter=Lora(rank=2, dropout=0.1, targets=("**",))), ["**/adapter/**"]),
    "two norms in parallel": (block(residual="parallel_norms", residual_scale=0.5), []),
    "unit offset": (block(norm=RmsNorm(unit_offset=True)), ["blocks/*/*norm/scale"]),
    "xielu": (block(mlp=GatedMlp(12, "xielu")), ["**/xielu/*"]),
    "sandwich": (block(residual="sandwich"), ["**/*_output_norm/*"]),
    "parallel": (block(residual="parallel"), ["blocks/*/*norm/*"]),
    "learned positions": (model(embedding=Embedding(Learned(), dropout=0.1)), ["embedding/position/table"]),
    "sinusoidal": (model(embedding=Embedding(Sinusoidal(), RmsNorm())), ["embedding/norm/scale"]),
    "no final norm": (model(final_norm=None), ["final_norm/*"]),
    "a head of its own": (model(head=Head(tied=False, bias=True)), ["head/*"]),
    "scaled embedding and logits": (model(embedding=Embedding(scale=3.0), head=Head(scale=0.5)), []),
    "vocabulary": (model(vocab_size=40), ["embedding/table"]),
    "outputs at zero": (model(init=Init(output="zero")), ["**/attention/output/kernel", "**/mlp/down/kernel"]),
    "how it is executed": (model(scan=True, remat="full", kernel="chunked", dtype="bfloat16", context_length=8), []),
}


def initial(c: ModelConfig) -> dict[str, np.ndarray]:
    params = canonical(GPT(c).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))
    named: dict[str, np.ndarray] = {}
    map_with_path(lambda path, leaf: named.update({path: np.asarray(leaf)}), params)
    return named


@pytest.fixture(scope="module")
def base() -> dict[str, np.ndarray]:
    return initial(BASE)


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_leaves_every_other_initial_value(switch: str, base: dict[str, np.ndarray]) -> None:
    """Both models are initialised from one key. What is not listed is equal bit for bit; what is listed differs."""
    changed_model, own = SWITCHES[switch]
    changed = initial(changed_model)
    for path in sorted(base.keys() | changed.keys()):
        if not matches(path, own):
            assert path in base and path in changed, f"{path} came or went with {switch}"
            np.testing.assert_array_equal(changed[path], base[path], err_msg=path)
    assert len([path for path in base if not matches(path, own)]) >= 6  # something was compared
    for glob in own:  # and each exception is one
        touched = [path for path in base.keys() | changed.keys() if matches(path, [glob])]
        assert any(
            path not in base or path not in changed or not np.array_equal(base[path], changed[path]) for path in touched
        ), glob


def test_initial_values_of_a_layer_do_not_depend_on_the_number_of_layers() -> None:
    def layers(n: int, output: Any) -> dict[str, np.ndarray]:
        return initial(dataclasses.replace(BASE, blocks=(BLOCK,) * n, init=Init(output=output)))

    two, four = layers(2, "same"), layers(4, "same")
    assert set(two) < set(four)
    for path, value in two.items():
        np.testing.assert_array_equal(four[path], value, err_msg=path)
    deep = layers(4, "depth")  # whose very meaning is that these shrink with depth
    for path, value in four.items():
        shrinks = matches(path, ["**/attention/output/kernel", "**/mlp/down/kernel"])
        np.testing.assert_allclose(deep[path], value / 8**0.5 if shrinks else value, rtol=1e-6 if shrinks else 0)


def test_initial_values_of_a_layer_do_not_depend_on_the_kinds_of_other_layers() -> None:
    other = dataclasses.replace(BLOCK, mlp=Mlp(5), attention=Attention(2))
    mixed = initial(dataclasses.replace(BASE, blocks=(BLOCK, other, BLOCK, BLOCK)))
    alike = initial(dataclasses.replace(BASE, blocks=(BLOCK,) * 4))
    compared = [path for path in alike if not path.startswith("blocks/1/")]
    assert len(compared) > 20
    for path in compared:
        np.testing.assert_array_equal(mixed[path], alike[path], err_msg=path)


def test_no_two_parameters_are_drawn_from_the_same_numbers(base: dict[str, np.ndarray]) -> None:
    """No two have parallel first values, which a shared key would give them."""
    drawn = [value.ravel()[:6] for value in base.values() if value.std() > 0]
    assert len(drawn) == 1 + 2 * 7
    directions = np.array([x / np.linalg.norm(x) for x in drawn])
    assert np.abs(directions @ directions.T - np.eye(len(drawn))).max() < 0.999
