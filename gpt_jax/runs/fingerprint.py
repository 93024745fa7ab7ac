"""Fingerprints of arrays, which detect a flipped bit.

A fingerprint is computed on the devices, in one pass over the memory and without a copy to the host; it is a sum modulo
2³² of mixed words, which is exact in any order, so it does not depend on the sharding.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def paths(tree: Any) -> dict[str, Any]:
    """Path → leaf of a tree, as `blocks/0/attention/query/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def fingerprints(tree: Any) -> dict[str, str]:
    """Path → fingerprint of the array's content, 8 hexadecimal digits."""
    arrays = paths(tree)
    leaves = arrays.values()
    divided = any(isinstance(leaf, jax.Array) and not leaf.sharding.is_fully_replicated for leaf in leaves)
    # One after the other where devices must meet: on CPUs, independent programs that are in flight at once may take
    # one another's threads and wait for ever.
    sums = [int(_fingerprint(leaf)) for leaf in leaves] if divided else [_fingerprint(leaf) for leaf in leaves]
    return {path: f"{int(value):08x}" for path, value in zip(arrays, jax.device_get(sums), strict=True)}


@jax.jit
def _fingerprint(array: jax.Array) -> jax.Array:
    """One uint32 for an array: the sum of its words, each mixed with its position by the finalizer of murmur3."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    words = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(array, words).astype(jnp.uint32)
    position, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):  # not by a reshape, which would bring a divided array together
        position += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    x = bits ^ (position * jnp.uint32(0x9E3779B1))
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(x ^ (x >> 16), dtype=jnp.uint32)
