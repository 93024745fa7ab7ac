"""JAX's TPU kernel: interpreted here it agrees with a softmax over the whole row, and it compiles for a real TPU."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax.analysis.plan import tpu_mesh
from gpt_jax.config import Causal, Chunk, MaskConfig, Window
from gpt_jax.model.splash import splash_attention, why_not
from gpt_jax.training.sharding import make_mesh

B, H, T, D = 2, 2, 384, 16


def plain(
    query: Any, key: Any, value: Any, segments: Any, sinks: Any, *, window: int | None, softcap: float | None
) -> Any:
    key, value = (jnp.repeat(x, H // key.shape[1], axis=1) for x in (key, value))
    scores = jnp.einsum("bhtd,bhsd->bhts", query, key)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    distance = jnp.arange(T)[:, None] - jnp.arange(T)
    seen = (distance >= 0) & (distance < (T if window is None else window))
    seen = jnp.broadcast_to(seen, (B, T, T))
    if segments is not None:
        seen &= segments[:, :, None] == segments[:, None, :]
    scores = jnp.where(seen[:, None], scores, -jnp.inf)
    if sinks is not None:
        scores = jnp.concatenate([scores, jnp.broadcast_to(sinks[:, None, None], (B, H, T, 1))], axis=-1)
    return jnp.einsum("bhts,bhse->bhte", jax.nn.softmax(scores, axis=-1)[..., :T], value)


def operands(kv_heads: int, width: int, has_segments: bool, has_sinks: bool) -> tuple[Any, ...]:
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (B, H, T, D), (B, kv_heads, T, D), (B, kv_heads, T, width)
    tensors = [0.5 * jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=False)]
    segments = jnp.arange(T)[None] // jnp.array([[100], [250]]) if has_segments else None
    return *tensors, segments, jax.random.normal(keys[3], (H,)) if has_sinks else None


def kernel(query: Any, key: Any, value: Any, segments: Any, sinks: Any, **options: Any) -> jax.Array:
    return splash_attention(query, key, value, segments=segments, sinks=sinks, **options)


def run(attention: Any, args: tuple[Any, ...]) -> Any:
    def loss(args: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        out = attention(*args)
        return jnp.sum(jnp.sin(out)), out

    grads, out = jax.jit(jax.grad(loss, has_aux=True, allow_int=True))(args)
    return out, [g for g in jax.tree.leaves(grads) if g.dtype != jax.dtypes.float0]


def assert_same(got: Any, expected: Any) -> None:
    np.testing.assert_allclose(got[0], expected[0], atol=1e-5)
    assert len(got[1]) == len(expected[1])
    for x, y in zip(got[1], expected[1], strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kv_heads", "width", "has_segments", "has_sinks", "window", "softcap"),
    [(2, D, False, False, None, None), (1, D, True, True, None, None), (1, 24, True, False, 100, 2.0)],
)
def test_interpreted_it_agrees_with_the_whole_row(
    kv_heads: int, width: int, has_segments: bool, has_sinks: bool, window: int | None, softcap: float | None
) -> None:
    args = operands(kv_heads, width, has_segments, has_sinks)
    got, expected = (run(partial(f, window=window, softcap=softcap), args) for f in (kernel, plain))
    assert_same(got, expected)


@pytest.mark.slow
def test_divided_over_a_mesh_it_gives_the_same() -> None:
    args, mesh = operands(1, D, True, True), make_mesh(jax.devices()[:2])
    rows = (NamedSharding(mesh, PartitionSpec("data")),) * 4
    placed = jax.device_put(args, (*rows, NamedSharding(mesh, PartitionSpec())))
    options = {"window": None, "softcap": None}
    with jax.set_mesh(mesh):
        got = run(partial(kernel, **options), placed)
    assert_same(got, run(partial(plain, **options), args))


@pytest.mark.plan
# The compilation cache keeps TPU programs and can't load them where there is no TPU.
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache entry")
@pytest.mark.parametrize(
    ("kv_heads", "width", "dtype"), [(4, 128, "bfloat16"), (2, 64, "float32"), (1, 80, "bfloat16")]
)
def test_forward_and_backward_compile_for_tpus_without_moving_rows(kv_heads: int, width: int, dtype: str) -> None:
    mesh = tpu_mesh("v5e:2x2")

    def shape(spec: PartitionSpec, dtype: str, *sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype), sharding=NamedSharding(mesh, spec))

    def loss(query: Any, key: Any, value: Any, sinks: Any, segments: Any) -> jax.Array:
        out = kernel(query, key, value, segments, sinks, window=100, softcap=30.0)
        return jnp.sum(out.astype(jnp.float32))

    def on_mesh(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.grad(loss, argnums=(0, 1, 2, 3))(*args)

    rows = PartitionSpec("data")
    tensors = [shape(rows, dtype, 4, heads, 256, width) for heads in (4, kv_heads, kv_heads)]
    rest = shape(PartitionSpec(), "float32", 4), shape(rows, "int32", 4, 256)
    text = jax.jit(on_mesh).lower(*tensors, *rest).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 3  # forward, queries' gradient, keys' gradient
    assert "all-gather" not in text


@pytest.mark.parametrize(
    ("clause", "keys", "mask", "normalizer", "is_biased", "is_watched"),
    [
        (None, 256, Causal(), "softmax", False, False),
        (None, 256, Window(100), "softmax", False, False),
        ("reads no cache", 512, Causal(), "softmax", False, False),
        ("multiple of 128 tokens, not 200", 200, Causal(), "softmax", False, False),
        ("not Chunk", 256, Chunk(64), "softmax", False, False),
        ("not sigmoid", 256, Causal(), "sigmoid", False, False),
        ("cannot add a bias", 256, Causal(), "softmax", True, False),
        ("never stores the probabilities", 256, Causal(), "softmax", False, True),
    ],
)
def test_it_says_in_a_clause_what_it_cannot_do(
    clause: str | None, keys: int, mask: MaskConfig, normalizer: str, is_biased: bool, is_watched: bool
) -> None:
    tokens = keys if keys < 512 else 256
    why = why_not(tokens, keys, mask, normalizer, is_biased=is_biased, is_watched=is_watched)
    assert why is None if clause is None else clause in why
