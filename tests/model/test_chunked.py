"""Attention by blocks is attention: the same outputs and gradients as a softmax over the whole row, in O(T) memory."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.model.blocked import HIDDEN
from gpt_jax.model.chunked import block_size, chunked_attention
from gpt_jax.model.mask import Side

B, H, D = 2, 4, 8
SOFTCAP = 1.5


class Case(NamedTuple):
    """T queries against S keys (None: T); what the call says of them, and which of `adjust`'s terms are on."""

    T: int
    S: int | None = None
    K: int = H
    E: int = D
    offset: int | None = 0
    reach: int | None = None
    block: int = 4
    normalizer: str = "softmax"
    sinks: bool = False
    segments: bool = False
    padding: bool = False
    slopes: bool = False
    softcap: bool = False
    decay: bool = False
    order: str = "steps"  # of the keys: "steps" from 0 on, "cache": the last 3 not yet written, "ring"
    prefix: int = 0


CASES = {
    "causal": Case(16),
    "causal, odd length": Case(13),
    "one block longer than the row": Case(13, block=16),
    "blocks of 16": Case(41, block=16),
    "window": Case(21, reach=5),
    "window of one": Case(9, reach=1),
    "window longer than the row": Case(11, reach=50),
    "grouped queries, wide values": Case(13, K=2, E=11),
    "one key head, narrow values": Case(10, E=3, K=1),
    "segments": Case(19, segments=True),
    "segments in a window, padded left": Case(19, segments=True, padding=True, reach=6),
    "a bias with parameters": Case(15, slopes=True, K=2),
    "decay": Case(15, decay=True),
    "sinks": Case(15, sinks=True, K=2),
    "sinks, window, softcap, bias, decay": Case(22, sinks=True, reach=7, softcap=True, slopes=True, decay=True),
    "sigmoid, window, bias": Case(18, normalizer="sigmoid", reach=5, slopes=True, K=1),
    "cached": Case(5, S=24, offset=13, order="cache"),
    "cached, window": Case(5, S=24, offset=13, order="cache", reach=7, padding=True),
    "cached, one query": Case(1, S=24, offset=20, order="cache", decay=True),
    "ring": Case(5, S=12, offset=None, reach=12, order="ring"),
    "prefix": Case(14, offset=None, prefix=6),
}


def sides(case: Case) -> tuple[Side, Side]:
    S = case.T if case.S is None else case.S
    first = 21 if case.order == "ring" else case.offset or 0
    steps, key_steps = first + np.arange(case.T), np.arange(S)
    if case.order == "cache":
        key_steps = np.where(key_steps < S - 3, key_steps, -1)
    if case.order == "ring":  # the last S steps, each in the slot of its remainder
        key_steps = np.array([max(s for s in range(first + case.T) if s % S == slot) for slot in range(S)])

    def side(steps: np.ndarray, seed: int) -> Side:
        positions = np.stack([steps, 2 * steps])
        segments = np.arange(len(steps))[None] // np.array([[5], [7]]) if case.segments else None
        forgotten = np.random.default_rng(seed).uniform(size=(B, H, len(steps))).astype(np.float32)
        decay = np.cumsum(-forgotten, axis=-1) if case.decay else None
        return jax.tree.map(jnp.asarray, Side(steps, positions, segments, decay))

    return side(steps, 1), side(key_steps, 1 if S == case.T else 2)


def adjust(case: Case, params: dict[str, Any], scores: jax.Array, queries: Side, keys: Side) -> jax.Array:
    if case.softcap:
        scores = SOFTCAP * jnp.tanh(scores / SOFTCAP)
    if case.slopes:
        distance = queries.positions[:, None, :, None] - keys.positions[:, None, None, :]
        scores = scores - params["slopes"][:, None, None] * distance
    if queries.decay is not None:
        scores = scores + queries.decay[:, :, :, None] - keys.decay[:, :, None, :]
    distance = queries.steps[:, None] - keys.steps
    seen = ((distance >= 0) | (keys.steps < case.prefix)) & (keys.steps >= 0)
    if case.reach is not None:
        seen &= distance < case.reach
    seen = jnp.broadcast_to(seen, (B, *seen.shape))
    if case.padding:
        seen &= keys.steps >= params["padding"][:, None, None]
    if case.segments:
        seen &= queries.segments[:, :, None] == keys.segments[:, None, :]
    return jnp.where(seen[:, None], scores, HIDDEN)


def plain(case: Case, query: Any, key: Any, value: Any, queries: Side, keys: Side, params: Any, sinks: Any) -> Any:
    """The definition, over the whole row: a sink is one more key, whose value is zero."""
    key, value = (jnp.repeat(x, H // case.K, axis=1) for x in (key, value))
    logits = adjust(case, params, jnp.einsum("bhtd,bhsd->bhts", query, key), queries, keys)
    if case.normalizer == "sigmoid":
        p = jnp.where(logits == HIDDEN, 0, 1 / (1 + jnp.exp(-jnp.where(logits == HIDDEN, 0, logits))))
    else:
        if sinks is not None:
            sink = jnp.broadcast_to(sinks[:, None, None], (*logits.shape[:3], 1))
            logits = jnp.concatenate([logits, sink], axis=-1)
        exponents = jnp.where(logits == HIDDEN, 0, jnp.exp(jnp.where(logits == HIDDEN, 0, logits)))
        total = exponents.sum(axis=-1, keepdims=True)
        p = (exponents / jnp.where(total == 0, 1, total))[..., : value.shape[2]]
    return jnp.einsum("bhts,bhse->bhte", p, value)


def operands(case: Case) -> tuple[Any, ...]:
    S = case.T if case.S is None else case.S
    rng = np.random.default_rng(0)
    shapes = (B, H, case.T, D), (B, case.K, S, D), (B, case.K, S, case.E)
    query, key, value = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    params = {"slopes": jnp.asarray(rng.uniform(0.1, 1.1, H), jnp.float32), "padding": jnp.array([0, 3])}
    sinks = jnp.asarray(rng.normal(size=H), jnp.float32) if case.sinks else None
    return query, key, value, *sides(case), params, sinks


def chunked(case: Case, query: Any, key: Any, value: Any, queries: Side, keys: Side, params: Any, sinks: Any) -> Any:
    return chunked_attention(
        query,
        key,
        value,
        queries,
        keys,
        partial(adjust, case),
        params,
        sinks=sinks,
        normalizer=case.normalizer,
        offset=case.offset if case.offset is None else jnp.asarray(case.offset),
        reach=case.reach,
        block=case.block,
    )


def gradients(attention: Any, case: Case, args: tuple[Any, ...]) -> tuple[jax.Array, Any]:
    weights = np.random.default_rng(1).normal(size=(B, H, case.T, case.E)).astype(np.float32)

    def loss(args: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        out = attention(case, *args)
        return jnp.sum(out * weights), out

    grads, out = jax.jit(jax.grad(loss, has_aux=True, allow_int=True))(args)
    return out, grads


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_and_every_gradient_are_those_of_the_definition(case: Case) -> None:
    args = operands(case)
    (out, grads), (expected, expected_grads) = (gradients(f, case, args) for f in (chunked, plain))
    np.testing.assert_allclose(out, expected, atol=1e-5, rtol=1e-5)

    def compare(path: Any, x: Any, y: Any) -> None:
        if x.dtype != jax.dtypes.float0:
            np.testing.assert_allclose(x, y, atol=1e-4, rtol=1e-4, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(compare, grads, expected_grads)
    for name, on in (("slopes", case.slopes), ("padding", False)):
        assert (grads[5][name].dtype != jax.dtypes.float0 and bool(np.any(grads[5][name]))) == on


@pytest.mark.parametrize("case", [Case(150), Case(150, reach=40), Case(70, S=160, offset=80, reach=90)])
def test_a_short_call_at_once_leaves_out_what_is_hidden_and_nothing_else(case: Case) -> None:
    args = operands(case)

    def at_once(offset: Any) -> Any:
        return lambda case, *args: chunked_attention(
            *args[:5], partial(adjust, case), args[5], normalizer="softmax", offset=offset, reach=case.reach
        )

    expected, expected_grads = gradients(plain, case, args)
    for offset in (case.offset, jnp.asarray(case.offset)):
        out, grads = gradients(at_once(offset), case, args)
        np.testing.assert_allclose(out, expected, atol=1e-5)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), grads[:3], expected_grads[:3])


def test_keys_that_no_query_of_a_block_may_see_are_never_visited() -> None:
    case = Case(32, reach=5)
    query, key, value, *rest = operands(case)
    poisoned = np.array(value)
    poisoned[:, :, :8] = poisoned[:, :, 20:] = np.nan

    @jax.jit
    def run(key: jax.Array, poisoned: jax.Array) -> tuple[jax.Array, jax.Array]:
        def attend(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = chunked(case, query, key, poisoned, *rest)
            return jnp.sum(out[:, :, 12:20]), out

        back, out = jax.grad(attend, has_aux=True)(key)
        return out, back

    out, back = map(np.asarray, run(key, poisoned))
    finite = np.isfinite(out).all(axis=(0, 1, 3))
    # The blocks of queries 12–15 and 16–19 visit keys 8–15 and 12–19; all others come upon a poisoned block.
    assert np.flatnonzero(finite).tolist() == list(range(12, 20))
    assert np.isfinite(back[:, :, 12:16]).all()


def test_a_query_that_sees_nothing_gets_zeros_and_finite_gradients() -> None:
    for block in (4, 16):
        case = Case(12, padding=True, block=block)
        args = operands(case)
        out, grads = gradients(chunked, case, args)
        assert not np.any(out[1, :, :3])
        assert all(np.isfinite(g).all() for g in grads[:3])


def test_memory_grows_with_the_row_and_not_with_its_square() -> None:
    case = Case(0, reach=None)

    def temporary(T: int, keep: Any = None) -> int:
        def loss(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            side = Side(jnp.arange(T), jnp.broadcast_to(jnp.arange(T), (B, T)))
            attend = partial(chunked_attention, normalizer="softmax", offset=jnp.asarray(0), reach=None, block=64)
            attend = jax.checkpoint(attend, policy=keep, static_argnums=(5,)) if keep else attend
            return jnp.sum(attend(query, key, value, side, side, partial(adjust, case), {}))

        shape = jax.ShapeDtypeStruct((B, H, T, D), jnp.float32)
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(shape, shape, shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporary(1024), temporary(2048)
    assert large < 2.2 * small
    assert large < B * H * 2048**2 * 4 / 8
    # Rematerialised under a policy that keeps what matrix products give, the blocks' scores are not kept.
    assert temporary(2048, jax.checkpoint_policies.dots_saveable) < 2 * large


def test_the_program_is_no_longer_for_a_longer_row() -> None:
    def equations(T: int) -> int:
        args = operands(Case(T))
        return str(jax.make_jaxpr(lambda *args: gradients(chunked, Case(T), args))(*args)).count(" = ")

    assert equations(64) == equations(256)


def test_it_can_be_mapped_scanned_and_rematerialised() -> None:
    case = Case(13, slopes=True, sinks=True, K=2)
    query, *rest = operands(case)
    queries = jnp.stack([query, 2 * query, -query])

    def loss(query: jax.Array, rest: Any) -> jax.Array:
        return jnp.sum(jnp.sin(chunked(case, query, *rest)))

    grad = jax.jit(jax.grad(loss))
    expected = np.stack([grad(query, rest) for query in queries])
    mapped = jax.jit(jax.vmap(jax.grad(loss), in_axes=(0, None)))(queries, rest)
    np.testing.assert_allclose(mapped, expected, atol=1e-5)
    again = jax.jit(jax.vmap(jax.grad(jax.checkpoint(loss)), in_axes=(0, None)))(queries, rest)
    np.testing.assert_allclose(again, expected, atol=1e-5)

    def scanned(queries: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda total, query: (total + loss(query, rest), None), 0.0, queries)[0]

    np.testing.assert_allclose(jax.jit(jax.grad(scanned))(queries), expected, atol=1e-5)


def test_each_of_mapped_calls_has_its_own_offset() -> None:
    case = Case(5, S=24, order="cache")
    query, key, value, queries, keys, params, _ = operands(case)

    def at(offset: jax.Array, block: int) -> jax.Array:
        here = queries._replace(steps=queries.steps + offset)
        rest = {"normalizer": "softmax", "offset": offset, "reach": None, "block": block}
        return chunked_attention(query, key, value, here, keys, partial(adjust, case), params, **rest)

    offsets = jnp.array([3, 16])
    mapped, alone = jax.jit(jax.vmap(partial(at, block=4))), jax.jit(partial(at, block=24))
    np.testing.assert_allclose(mapped(offsets), np.stack([alone(offset) for offset in offsets]), atol=1e-5)


def test_bfloat16_comes_out_as_it_went_in_and_close() -> None:
    case = Case(40, block=16, K=2, sinks=True)
    query, key, value, queries, keys, params, sinks = operands(case)
    halves = [x.astype(jnp.bfloat16) for x in (query, key, value, sinks)]
    args = (*halves[:3], queries, keys, params, halves[3])
    (out, grads), (expected, expected_grads) = gradients(chunked, case, args), gradients(plain, case, operands(case))
    assert out.dtype == jnp.bfloat16 and all(grads[i].dtype == jnp.bfloat16 for i in (0, 1, 2, 6))
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=3e-2)
    for i in (0, 1, 2, 6):
        scale = float(jnp.abs(expected_grads[i]).max())
        np.testing.assert_allclose(grads[i].astype(jnp.float32) / scale, expected_grads[i] / scale, atol=3e-2)


def test_sigmoid_attention_has_no_sinks() -> None:
    case = Case(5, normalizer="sigmoid", sinks=True)
    with pytest.raises(ValueError, match="sinks"):
        chunked(case, *operands(case))


def test_blocks_are_smaller_for_more_rows_and_for_narrow_windows() -> None:
    assert [block_size(rows, None) for rows in (1, 4, 16, 64, 4096)] == [512, 512, 256, 128, 128]
    assert [block_size(4, reach) for reach in (16, 256, 1024, 8192)] == [64, 128, 512, 512]
