"""RoPE as a product of complex numbers, and its scalings against published factors and limits."""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT, init_cache
from gpt_jax.config import (
    Attention,
    DynamicNtk,
    LinearScaling,
    Llama3Scaling,
    LongRope,
    Rope,
    RopeScaling,
    Yarn,
    rope_width,
)
from gpt_jax.config.conversion import from_dict, to_dict
from gpt_jax.config.errors import ConfigError
from gpt_jax.model import rope as module
from gpt_jax.model.rope import rope_frequencies, rotate
from tests import reference_positions as reference
from tests.tiny import apply, random_params, tiny

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 5, 3, 8)), jnp.float32)  # B T N D
POSITIONS = jnp.array([[0, 1, 2, 3, 4], [7, 0, 1, 100, 2]])
SHORT, LONG = (1.0, 1.1, 1.5, 2.0), (1.5, 3.0, 9.0, 30.0)
SCALINGS = [
    LinearScaling(4.0),
    DynamicNtk(2.0, 16),
    Yarn(4.0, 64, beta_fast=4.0),
    Yarn(4.0, 64, beta_fast=4.0, truncate=False, mscale=1.0, mscale_all_dim=0.5),
    Yarn(8.0, 2048, attention_factor=1.2),
    Llama3Scaling(8.0, 1.0, 4.0, 64),
    LongRope(SHORT, LONG, 16, factor=8.0),
    LongRope(SHORT, LONG, 16, attention_factor=0.9),
]
UNSCALED = [Rope(), Rope(interleaved=True), Rope(theta=50.0, fraction=0.5), Rope(fraction=0.3, interleaved=True)]
ROPES = UNSCALED + [Rope(theta=500.0, scaling=scaling) for scaling in SCALINGS]
ROPES += [Rope(theta=500.0, fraction=0.5, interleaved=True, scaling=DynamicNtk(2.0, 16))]


@pytest.mark.parametrize("length", [16, 101])
@pytest.mark.parametrize("rope", ROPES, ids=repr)
def test_rope_is_a_multiplication_by_a_complex_number(rope: Rope, length: int) -> None:
    out = np.asarray(rotate(X, POSITIONS, rope, length))
    for b, t, n in np.ndindex(2, 5, 3):
        wanted = reference.rope(rope, np.asarray(X[b, t, n], np.float64), int(POSITIONS[b, t]), length)
        np.testing.assert_allclose(out[b, t, n], wanted, atol=2e-5)


@pytest.mark.parametrize("rope", ROPES, ids=repr)
def test_rope_multiplies_lengths_and_position_0_by_its_factor_and_leaves_the_rest_of_the_head(rope: Rope) -> None:
    out, width, factor = rotate(X, POSITIONS, rope, 101), rope_width(rope, 8), reference.attention_factor(rope)
    turned, plain = out[..., :width], X[..., :width]
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), factor * jnp.linalg.norm(plain, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(turned[0, 0], factor * plain[0, 0], rtol=1e-6)
    np.testing.assert_array_equal(out[..., width:], X[..., width:])
    assert not np.allclose(out[0, 1, :, :width], plain[0, 1])


@pytest.mark.parametrize("rope", ROPES, ids=repr)
def test_scores_under_rope_depend_on_the_distance_alone(rope: Rope) -> None:
    q, k = X[:, :1], X[:, 1:2]

    def score(m: int, n: int) -> np.ndarray:
        turned = rotate(q, jnp.array([[m]]), rope, 128) * rotate(k, jnp.array([[n]]), rope, 128)
        return np.asarray(turned.sum(-1))

    np.testing.assert_allclose(score(9, 4), score(105, 100), atol=1e-4)
    assert not np.allclose(score(9, 4), score(4, 9), atol=1e-2)  # the order counts


def test_rope_rotates_in_float32() -> None:
    far = jnp.full((1, 5), 3001)  # in bfloat16 it would be 3008, another angle
    wide = rotate(X[:1].astype(jnp.bfloat16).astype(jnp.float32), far, Rope(), 4096)
    narrow = rotate(X[:1].astype(jnp.bfloat16), far, Rope(), 4096)
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype(jnp.float32), wide, atol=0.02)


@pytest.mark.parametrize(
    "fraction, head_width, width", [(1.0, 8, 8), (0.5, 8, 4), (0.3, 8, 2), (0.25, 80, 20), (1.0, 7, 6)]
)
def test_rope_width_is_the_even_part_of_the_fraction(fraction: float, head_width: int, width: int) -> None:
    assert rope_width(Rope(fraction=fraction), head_width) == width


# ── scaling ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def frequencies(scaling: RopeScaling | None, length: int = 16, theta: float = 10_000.0, width: int = 64) -> np.ndarray:
    return rope_frequencies(Rope(theta, scaling=scaling), width, length)[0]


def test_linear_scaling_reads_p_times_factor_as_p() -> None:
    stretched = rotate(X, POSITIONS * 4, Rope(scaling=LinearScaling(4.0)), 16)
    np.testing.assert_array_equal(stretched, rotate(X, POSITIONS, Rope(), 16))


@pytest.mark.parametrize(
    "scaling",
    [LinearScaling(1.0), DynamicNtk(1.0, 999), Yarn(1.0, 64), Llama3Scaling(1.0, 1.0, 4.0, 64)]
    + [LongRope((1.0,) * 32, (2.0,) * 32, 16, factor=1.0)],
    ids=repr,
)
def test_a_stretch_of_1_changes_nothing(scaling: RopeScaling) -> None:
    scaled, factor = rope_frequencies(Rope(scaling=scaling), 64, 16)
    np.testing.assert_allclose(scaled, frequencies(None), rtol=1e-6)
    assert factor == 1.0 and scaled.dtype == np.float32


def test_dynamic_ntk_begins_beyond_the_original_length() -> None:
    for length in (1, 15, 16):
        np.testing.assert_array_equal(frequencies(DynamicNtk(4.0, 16), length), frequencies(None))
    longer = frequencies(DynamicNtk(1.0, 16), 48)
    assert longer[0] == 1.0  # the fastest pair is left
    np.testing.assert_allclose(longer[-1], frequencies(None)[-1] / 3, rtol=1e-6)  # the slowest is interpolated
    assert (frequencies(DynamicNtk(2.0, 16), 48)[1:] < longer[1:]).all()


@pytest.mark.parametrize("scaling", [Yarn(8.0, 4096), Llama3Scaling(8.0, 1.0, 32.0, 4096)], ids=repr)
def test_yarn_and_llama3_leave_the_fast_pairs_and_interpolate_the_slow_ones(scaling: RopeScaling) -> None:
    ratio = frequencies(None) / frequencies(scaling)
    turned = 4096 * frequencies(None) / (2 * math.pi)
    # Whole pairs begin and end YaRN's line, so it may reach one pair beyond.
    fast, slow = turned > 32 * 1.4, turned < 1 / 1.4
    assert fast.sum() > 5 and slow.sum() > 5
    np.testing.assert_allclose(ratio[fast], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[slow], 8, rtol=1e-6)
    between = ratio[~fast & ~slow]
    assert (np.diff(between) > 0).all() and len(between) > 5


def test_yarn_without_truncation_begins_between_pairs() -> None:
    whole, exact = (frequencies(Yarn(8.0, 4096, truncate=truncate)) for truncate in (True, False))
    turned = 4096 * frequencies(None) / (2 * math.pi)
    np.testing.assert_allclose(exact[turned > 32], frequencies(None)[turned > 32], rtol=1e-6)
    np.testing.assert_allclose(exact[turned < 1], frequencies(None)[turned < 1] / 8, rtol=1e-6)
    assert not np.array_equal(whole, exact)


def test_long_rope_is_short_up_to_the_original_length_and_long_beyond() -> None:
    scaling = LongRope(SHORT, LONG, 16, factor=2.0)
    for length, factors in ((1, SHORT), (16, SHORT), (17, LONG), (5000, LONG)):
        np.testing.assert_allclose(
            frequencies(None, width=8) / frequencies(scaling, length, width=8), factors, rtol=1e-6
        )


@pytest.mark.parametrize("scaling", [DynamicNtk(4.0, 6), LongRope(SHORT, LONG, 6, factor=4.0)], ids=repr)
def test_the_declared_length_is_the_caches_room_or_the_inputs(scaling: RopeScaling) -> None:
    """A row longer than the original is decoded from its first token on as a plain pass over all of it would have it;
    with a cache that is no longer than the original nothing is stretched.
    """
    model = GPT(tiny(Attention(2, 1, 8, position=Rope(theta=500.0, scaling=scaling))))
    params, tokens = random_params(model), jnp.asarray(RNG.integers(32, size=(2, 10)))
    cache, parts = init_cache(model.config, 2, 10), []
    for part in (tokens[:, :3], tokens[:, 3:9], tokens[:, 9:]):
        logits, cache = apply(model, params, part, cache=cache)
        parts.append(logits)
    full = np.asarray(apply(model, params, tokens))
    np.testing.assert_allclose(np.concatenate(parts, 1), full, atol=1e-5)
    short, _ = apply(model, params, tokens[:, :5], cache=init_cache(model.config, 2, 6))
    np.testing.assert_allclose(short, apply(model, params, tokens[:, :5]), atol=1e-5)
    assert not np.allclose(short, full[:, :5], atol=1e-2)


@pytest.mark.parametrize(
    "scaling, factor",
    [
        (Yarn(40.0, 4096), 1.3688879),
        (Yarn(40.0, 4096, mscale=0.707, mscale_all_dim=0.707), 1.0),
        (Yarn(40.0, 4096, mscale=1.0, mscale_all_dim=0.707), 1.0857263),
        (Yarn(40.0, 4096, attention_factor=1.5), 1.5),
        (LongRope((1.0,) * 32, (2.0,) * 32, 4096, factor=32.0), 1.1902381),  # Phi 3, 4k to 128k
        (LongRope((1.0,) * 32, (2.0,) * 32, 4096, attention_factor=1.25), 1.25),
        (LinearScaling(40.0), 1.0),
    ],
    ids=repr,
)
def test_attention_factors_are_known_models(scaling: RopeScaling, factor: float) -> None:
    for length in (16, 9999):
        np.testing.assert_allclose(rope_frequencies(Rope(scaling=scaling), 64, length)[1], factor, rtol=1e-6)


@pytest.mark.parametrize("scaling", SCALINGS, ids=repr)
def test_a_scaling_is_written_and_read(scaling: RopeScaling) -> None:
    rope = Rope(theta=500.0, scaling=scaling)
    assert from_dict(Rope, to_dict(rope)) == rope


@dataclass(frozen=True)
class Halved(RopeScaling):
    """What a notebook might add."""


RopeScaling.choices.pop("Halved")  # no other test is to find it


def test_a_registered_scaling_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="Halved has no implementation"):
        frequencies(Halved())
    monkeypatch.setitem(module.SCALINGS, Halved, lambda c, plain, theta, length: (plain / 2, 1.0))
    np.testing.assert_array_equal(frequencies(Halved()), frequencies(None) / 2)


REFUSED: dict[str, Any] = {
    "LinearScaling.factor must be at least 1, not 0.5": lambda: LinearScaling(0.5),
    "DynamicNtk.factor must be at least 1": lambda: DynamicNtk(0.0, 16),
    "DynamicNtk.original_length must be positive": lambda: DynamicNtk(2.0, 0),
    "Yarn.factor must be at least 1": lambda: Yarn(0.9, 16),
    r"Yarn.beta_slow \(32.0\) must be positive and less than Yarn.beta_fast \(32.0\)": lambda: Yarn(
        2.0, 16, beta_slow=32.0
    ),
    "Yarn.attention_factor must be positive": lambda: Yarn(2.0, 16, attention_factor=0.0),
    "set both or neither": lambda: Yarn(2.0, 16, mscale=1.0),
    "set them or Yarn.attention_factor": lambda: Yarn(2.0, 16, attention_factor=1.0, mscale=1.0, mscale_all_dim=1.0),
    "Rope.theta must be over 1 with Yarn": lambda: Rope(theta=1.0, scaling=Yarn(2.0, 16)),
    r"Llama3Scaling.low \(4.0\) must be positive and less than": lambda: Llama3Scaling(8.0, 4.0, 4.0, 16),
    "Llama3Scaling.original_length must be positive": lambda: Llama3Scaling(8.0, 1.0, 4.0, -1),
    "LongRope.original_length must be over 1": lambda: LongRope(SHORT, LONG, 1, factor=2.0),
    "LongRope.factor must be at least 1": lambda: LongRope(SHORT, LONG, 16, factor=0.5),
    "set it or LongRope.attention_factor": lambda: LongRope(SHORT, LONG, 16),
    "LongRope.factor determines the attention factor": lambda: LongRope(
        SHORT, LONG, 16, factor=2.0, attention_factor=1.0
    ),
    "a number for each rotated pair, not 3 and 4": lambda: LongRope(SHORT[:3], LONG, 16, factor=2.0),
    "LongRope.short and LongRope.long must be positive": lambda: LongRope((0.0,), (1.0,), 16, factor=2.0),
    "a number for each rotated pair, 8 with head width 16, not 4": lambda: Rope(
        scaling=LongRope(SHORT, LONG, 16, factor=2.0)
    ).check(16),
    "there is no other": lambda: Rope(scaling=DynamicNtk(2.0, 16)).check(2),
    "a fraction 0.1 of head width 8 holds none": lambda: Rope(fraction=0.1).check(8),
}


@pytest.mark.parametrize("message", REFUSED)
def test_invalid_settings_are_refused(message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        REFUSED[message]()


def test_a_head_that_a_scaling_does_not_fit_is_refused_by_the_rotation_itself() -> None:
    """One number would be broadcast to all pairs without a word."""
    with pytest.raises(ConfigError, match="a number for each rotated pair"):
        rotate(X, POSITIONS, Rope(scaling=LongRope((2.0,), (3.0,), 16, factor=2.0)), 16)
