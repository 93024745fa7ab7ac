"""One language of globs over parameter paths, against a second implementation."""

import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.config import Attention, Lora, Sgd
from gpt_jax.config.errors import UserError
from gpt_jax.model.adapter import projections
from gpt_jax.model.paths import layer_paths, matches, path_of
from gpt_jax.training.optimizer import make_optimizer
from tests.tiny import tiny

PATH = "blocks/3/attention/query/kernel"


@pytest.mark.parametrize(
    "glob", [PATH, "**", "**/kernel", "blocks/**", "blocks/*/attention/*/kernel", "blocks/?/**/que*/kernel"]
)
def test_matches(glob):
    assert matches(PATH, [glob])
    assert matches(PATH, ["nothing", glob])


@pytest.mark.parametrize(
    "glob", ["*", "*/kernel", "blocks/*/kernel", "kernel", "blocks/*", "blocks/13/**", "blocks.3/**", ""]
)
def test_does_not_match(glob):
    assert not matches(PATH, [glob])


def test_two_stars_cross_no_name_too():
    assert matches("kernel", ["**/kernel"])
    assert matches("blocks/kernel", ["blocks/**/kernel"])
    assert not matches("my_kernel", ["**/kernel"])


def test_a_stack_has_the_paths_of_its_layers():
    assert layer_paths("blocks/1:6:2/mlp/up/kernel") == [f"blocks/{layer}/mlp/up/kernel" for layer in (1, 3, 5)]
    assert layer_paths("head/kernel") == ["head/kernel"]


# ── one glob language ────────────────────────────────────────────────────────────────────────────────────────────────

GLOBS = ["*", "**", "*/*", "**/attention/*", "**/attention/**", "attention/*", "blocks/*/attention/q*", "blocks/?/**"]
MODEL = GPT(tiny(Attention(heads=4)))
TOKENS = jax.ShapeDtypeStruct((1, 4), jnp.int32)


def expected(names: Iterable[str], glob: str) -> set[str]:
    """An implementation of its own: name by name, with Python's `fnmatch` for what `*` and `?` mean within one."""

    def agree(path: list[str], parts: list[str]) -> bool:
        if not parts:
            return not path
        if parts[0] == "**":
            return agree(path, parts[1:]) or (path != [] and agree(path[1:], parts))
        return path != [] and fnmatchcase(path[0], parts[0]) and agree(path[1:], parts[1:])

    return {name for name in names if agree(name.split("/"), glob.split("/"))}


def captured(glob: str) -> set[str]:
    params = jax.eval_shape(MODEL.init, jax.random.key(0), TOKENS)
    return set(jax.eval_shape(partial(MODEL.apply, capture=glob), params, TOKENS)[1])


def decayed(glob: str) -> set[str]:
    """The parameters that weight decay changes."""
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), TOKENS)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
    optimizer = make_optimizer(Sgd(weight_decay=1.0, decay=(glob,)))
    updates = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)[0]
    return {path_of(keys) for keys, leaf in jax.tree.leaves_with_path(updates) if np.any(leaf)}


def adapted(glob: str) -> set[str]:
    """The projections of a layer that get an adapter."""
    model = GPT(tiny(Attention(heads=4), block={"adapter": Lora(targets=(glob,))}))
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    return set(projections(shapes["params"]["blocks"]["0"]))


@pytest.mark.parametrize("select", [captured, decayed, adapted], ids=lambda select: select.__name__)
def test_capture_weight_decay_and_adapters_read_a_glob_alike(select: Callable[[str], set[str]]) -> None:
    """`*` stops at "/" and `**` crosses it, whatever the glob chooses from; a glob that names nothing is refused."""
    names, empty = select("**"), 0
    for glob in GLOBS:
        wanted = expected(names, glob)
        if wanted:
            assert select(glob) == wanted, glob
            continue
        empty += 1
        with pytest.raises(UserError, match=re.escape(f'"{glob}"')):
            select(glob)
    assert empty >= 1


def test_tensors_to_ignore_are_globs_of_the_same_language() -> None:
    """A tensor's name has dots and no "/", so that `*` covers any of it; brackets stand for themselves."""
    assert matches("transformer.h.0.attn.bias", ["*.attn.bias"])
    assert not matches("transformer.h.0.attn.bias", ["*.attn.[ab]ias"])
