"""Low-rank adapters: the term that they add to a projection, and the parameters that train when a model has them.

A block's adapter (`BlockConfig.adapter`) applies to every `Linear` of the block whose path matches one of its targets,
so mixers and MLPs need no code for it. Its parameters live in a scope of their own, such as
`…/query/adapter/a/kernel`, and leave the names and initial values of all other parameters unchanged.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from gpt_jax import config as cfg
from gpt_jax.model.parameter import Parameter
from gpt_jax.model.paths import map_with_path, matches, path_of

SCOPE = "adapter"


class LowRank(nn.Module):
    """x (…, C) → scale · dropout(x) @ A @ B (…, F), which is zero at initialization because B is (Hu et al. 2021,
    arXiv:2106.09685).
    """

    config: cfg.Lora
    features: int
    param_dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch F"]:
        c, C = self.config, x.shape[-1]
        a = Parameter("kernel", nn.initializers.normal(C**-0.5), (C, c.rank), self.param_dtype, name="a")()
        b = Parameter("kernel", nn.initializers.zeros, (c.rank, self.features), self.param_dtype, name="b")()
        # The stack passes a dropout key in training only.
        x = nn.Dropout(c.dropout, name="dropout")(x, deterministic=not self.has_rng("dropout"))
        return c.scale * ((x @ a.astype(x.dtype)) @ b.astype(x.dtype))


ADAPTERS: dict[type[cfg.AdapterConfig], type[nn.Module]] = {cfg.Lora: LowRank}


def adapter_of(linear: nn.Module) -> cfg.AdapterConfig | None:
    """The adapter of the block that contains `linear` if one of its targets matches the path of `linear`, else None."""
    block = linear
    while isinstance(block.parent, nn.Module):
        block = block.parent
    config = getattr(block, "config", None)
    adapter = config.adapter if isinstance(config, cfg.BlockConfig) else None
    return adapter if adapter is not None and matches("/".join(linear.path), adapter.targets) else None


def without_adapter(model: cfg.ModelConfig) -> cfg.ModelConfig:
    """The configuration with every adapter removed."""
    blocks = tuple(dataclasses.replace(block, adapter=None) for block in model.blocks)
    return dataclasses.replace(model, blocks=blocks)


def is_adapter(path: str) -> bool:
    """Whether the parameter at `path` belongs to an adapter."""
    return SCOPE in path.split("/")


def trainable(params: Any) -> Any:
    """The trainable parameters: all of them or, if the model has adapters, those of the adapters, with None for the
    others.

    The tree keeps its structure, so names, layers and stacks are found in it as in `params`.
    """
    if not any(is_adapter(path_of(keys)) for keys, _ in jax.tree.leaves_with_path(params)):
        return params
    return map_with_path(lambda path, leaf: leaf if is_adapter(path) else None, params)


def replaced(params: Any, part: Any) -> Any:
    """`params` with each leaf replaced by that of `part` (same structure) where the latter is not None."""
    return jax.tree.map(lambda new, old: old if new is None else new, part, params, is_leaf=lambda leaf: leaf is None)


def pruned(tree: Any) -> Any:
    """Nested dicts without the leaves that are None and without the dicts that this leaves empty."""
    kept = {name: pruned(child) if isinstance(child, dict) else child for name, child in tree.items()}
    return {
        name: child
        for name, child in kept.items()
        if child is not None and not (isinstance(child, dict) and len(child) == 0)
    }


def grafted(base: Any, part: Any) -> Any:
    """`base` merged with `part`, nested dicts both; where a leaf is in both, that of `part` counts."""
    if not isinstance(part, dict):
        return part
    both = {name: grafted(base[name], part[name]) if name in base else part[name] for name in part}
    return {**base, **both}


def projections(block: Any) -> list[str]:
    """The paths of the projections that have an adapter, relative to the layer whose parameters are `block`."""
    paths = [path_of(keys) for keys, _ in jax.tree.leaves_with_path(block)]
    return [path.removesuffix(f"/{SCOPE}/a/kernel") for path in paths if path.endswith(f"/{SCOPE}/a/kernel")]
