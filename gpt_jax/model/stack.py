"""The stack of blocks, executed as a loop over layers, or as a scan over groups of layers that share one compiled body.

Either way, layer l gets its initial values from `fold_in(key, l)`. A looped stack stores its parameters per layer, as
`blocks/3/…`: the canonical form, used in checkpoints, optimizer rules and everywhere outside this file. A scanned stack
whose pattern of blocks has period p stores, for each i < p, the layers i, i + p, i + 2p … stacked along a leading axis,
under the name of that slice, `blocks/i:L:p/…`. `canonical` and `stacked` convert between the two.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gpt_jax import config as cfg
from gpt_jax.config.errors import ConfigError, nearest
from gpt_jax.model import splash, taps
from gpt_jax.model.adapter import projections
from gpt_jax.model.block import Block
from gpt_jax.model.mixer import Carry
from gpt_jax.model.paths import matches
from gpt_jax.model.row import Row
from gpt_jax.model.slots import LayerCache

Params = dict[str, Any]
POLICIES = jax.checkpoint_policies
# "dots" saves the products of projections, and of an attention kernel what it would have to run again for.
DOTS = POLICIES.save_from_both_policies(
    POLICIES.dots_with_no_batch_dims_saveable, POLICIES.save_only_these_names(splash.SAVED)
)
REMAT_POLICIES = {"full": None, "dots": DOTS}


class Blocks(nn.Module):
    """x (B, T, C) → x (B, T, C) through all L layers.

    Also returns the extended caches of all layers (None without caches).
    """

    config: cfg.ModelConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T C"], row: Row, caches: tuple[LayerCache, ...] | None, train: bool
    ) -> tuple[Float[Array, "B T C"], tuple[LayerCache, ...] | None]:
        model = self.config
        if self.is_initializing():
            for name, params in _init(model, self.make_rng("params"), x, row).items():
                self.put_variable("params", name, params)
        params = {name: self.get_variable("params", name) for name in storage_names(model)}
        is_scanned = caches is None and model.scan
        key = self.make_rng("dropout") if train and self.has_rng("dropout") else None

        def run(
            layers: tuple[int, ...], x: Array, shared: Carry, params: Params, cache: LayerCache | None, layer: Any
        ) -> tuple:
            """One of the like `layers`, which `layer` names. Returns also what it captures."""
            rngs = None if key is None else {"dropout": jax.random.fold_in(key, layer)}
            block, here = Block(model.blocks[layers[0]], model), row._replace(layer=layer)
            with taps.in_block(layers, layer) as taken:
                after: Any = block.apply({"params": params}, x, here, cache, shared, train, rngs=rngs)
            x, cache, shared = after
            return x, shared, cache, taken

        if model.remat is not None:
            # In a scan XLA can't undo it. Elsewhere barriers keep it from doing so, which cost copies.
            policy = REMAT_POLICIES[model.remat]
            run = jax.checkpoint(run, policy=policy, static_argnums=0, prevent_cse=not is_scanned)
        if is_scanned:
            return _scan(model, run, x, params, row)
        extended: list[Any] = []
        shared: Carry = {}
        for layer, own in enumerate(canonical_layers(model, params)):
            cache = None if caches is None else caches[layer]
            x, shared, cache, taken = run((layer,), x, shared, own, cache, layer)
            extended.append(cache)
            taps.add(layer, taken)
        return x, None if caches is None else tuple(extended)


def _init(model: cfg.ModelConfig, key: Array, x: Float[Array, "B T C"], row: Row) -> Params:
    """Initial parameters in the model's storage form, each layer's from its own key.

    Equal blocks share one compiled body, in a loop on the device (`vmap` would give the same bits, and take XLA three
    times as long to compile).
    """
    shared = _shared_zeros(model, x, row)
    _check_targets(model, x, row, shared)

    def init_layer(block: cfg.BlockConfig, layer: Array) -> Params:
        here = row._replace(layer=layer)
        return Block(block, model).init(jax.random.fold_in(key, layer), x, here, None, shared[block], False)["params"]

    if model.scan:
        return {
            name: jax.lax.map(partial(init_layer, model.blocks[layers[0]]), jnp.array(layers))
            for name, layers in _groups(model).items()
        }
    params: Params = {}
    for block in dict.fromkeys(model.blocks):
        layers = [layer for layer, other in enumerate(model.blocks) if other == block]
        together = jax.lax.map(partial(init_layer, block), jnp.array(layers))
        params |= {str(layer): jax.tree.map(lambda leaf, i=i: leaf[i], together) for i, layer in enumerate(layers)}
    return params


def _check_targets(model: cfg.ModelConfig, x: Float[Array, "B T C"], row: Row, shared: dict[Any, Carry]) -> None:
    """Refuses an adapter target that matches no projection in any of the layers that have it."""
    blocks = [block for block in dict.fromkeys(model.blocks) if block.adapter is not None]
    found: dict[str, set[str]] = {}  # target → projections of the layers that have it
    for block in blocks:
        assert block.adapter is not None
        every = dataclasses.replace(block, adapter=cfg.Lora(targets=("**",)))
        arguments = (x, row._replace(layer=model.blocks.index(block)), None, shared[block], False)
        params = jax.eval_shape(
            lambda every=every, arguments=arguments: Block(every, model).init(jax.random.key(0), *arguments)
        )
        for target in block.adapter.targets:
            found.setdefault(target, set()).update(projections(params))
    for target, names in found.items():
        if not any(matches(name, [target]) for name in names):
            raise ConfigError(f'adapter.targets has "{target}", which names no projection{nearest(target, names)}')


def _shared_zeros(model: cfg.ModelConfig, x: Float[Array, "B T C"], row: Row) -> dict[Any, Carry]:
    """Zeros of the shapes of what each kind of block gets from the layers below, and of what the last one leaves (by
    the key None).
    """
    blocks = list(dict.fromkeys(model.blocks))

    def each_shared() -> list[Carry]:
        found: list[Carry] = [{}]
        for block in blocks:
            arguments = (x, row._replace(layer=model.blocks.index(block)), None, found[-1], False)
            (_, _, shared), _ = Block(block, model).init_with_output(jax.random.key(0), *arguments)
            found.append(shared)
        return found

    with taps.without():
        shapes = jax.eval_shape(each_shared)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return dict(zip([*blocks, None], zeros, strict=True))


def _initial_carry(model: cfg.ModelConfig, x: Float[Array, "B T C"], row: Row) -> Carry:
    """What layers share, as zeros: the carry of a scan has one structure from the first step on.

    Raises:
      ConfigError: layers leave values of different shapes under one name.
    """
    shared = _shared_zeros(model, x, row)
    for carry in shared.values():
        for name in carry:
            if jax.tree.map(jnp.shape, carry[name]) != jax.tree.map(jnp.shape, shared[None][name]):
                raise ConfigError(
                    "layers share keys and values of different shapes, which a scan over layers cannot carry: set"
                    " model.scan to False"
                )
    return shared[None]


def _scan(model: cfg.ModelConfig, run: Any, x: Array, params: Params, row: Row) -> tuple[Array, None]:
    """The blocks as a scan over repetitions of the pattern; returns what `Blocks` returns without caches."""
    groups = {name: tuple(layers) for name, layers in _groups(model).items()}

    def body(carry: tuple[Array, Carry], xs: Any) -> tuple[tuple[Array, Carry], list[dict[str, Array]]]:
        x, shared = carry
        taken = []
        for layers, (block_params, layer) in zip(groups.values(), xs, strict=True):
            x, shared, _, captured = run(layers, x, shared, block_params, None, layer)
            taken.append(captured)
        return (x, shared), taken

    xs = [(params[name], jnp.array(layers)) for name, layers in groups.items()]
    (x, _), taken = jax.lax.scan(body, (x, _initial_carry(model, x, row)), xs)
    for layers, captured in zip(groups.values(), taken, strict=True):
        for i, layer in enumerate(layers):
            taps.add(layer, {path: value[i] for path, value in captured.items()})
    return x, None


def period(blocks: tuple[cfg.BlockConfig, ...]) -> int:
    """The smallest p that divides L such that layers l and l + p have equal blocks."""
    return next(p for p in range(1, len(blocks) + 1) if len(blocks) % p == 0 and blocks[:-p] == blocks[p:])


def _groups(model: cfg.ModelConfig) -> dict[str, list[int]]:
    """For a scanned stack: storage name → the layers stacked under it."""
    p, total = period(model.blocks), model.layers
    return {f"{i}:{total}:{p}": list(range(i, total, p)) for i in range(p)}


def storage_names(model: cfg.ModelConfig) -> list[str]:
    """The names below `blocks` under which the model stores its parameters."""
    return list(_groups(model)) if model.scan else [str(layer) for layer in range(model.layers)]


def canonical_layers(model: cfg.ModelConfig, params: Params) -> list[Params]:
    """The parameters of each layer, from either storage form."""
    if not model.scan:
        return [params[str(layer)] for layer in range(model.layers)]
    by_layer = {
        layer: jax.tree.map(lambda leaf, i=i: leaf[i], params[name])
        for name, layers in _groups(model).items()
        for i, layer in enumerate(layers)
    }
    return [by_layer[layer] for layer in range(model.layers)]


def canonical(tree: Any) -> Any:
    """The canonical form of a tree: every stack within it is split into layers. Takes parameters, and any tree that
    contains trees of their structure, such as gradients and optimizer states.
    """

    def unstack(node: Any) -> Any:
        if not _is_dict(node):
            return node
        result: Params = {}
        for name, child in node.items():
            if ":" in name:
                start, stop, step = map(int, name.split(":"))
                layers = range(start, stop, step)
                result |= {str(layer): jax.tree.map(lambda leaf, i=i: leaf[i], child) for i, layer in enumerate(layers)}
            else:
                result[name] = canonical(child)
        return dict(sorted(result.items(), key=lambda item: _layer_order(item[0])))

    return jax.tree.map(unstack, tree, is_leaf=_is_dict)


def stacked(model: cfg.ModelConfig, tree: Any) -> Any:
    """Inverse of `canonical` if `model` scans; otherwise returns the tree unchanged."""
    if not model.scan:
        return tree
    per_layer = {str(layer) for layer in range(model.layers)}

    def stack(node: Any) -> Any:
        if not _is_dict(node):
            return node
        if set(node) != per_layer:
            return {name: stacked(model, child) for name, child in node.items()}
        return {
            name: jax.tree.map(lambda *leaves: jnp.stack(leaves), *[node[str(layer)] for layer in layers])
            for name, layers in _groups(model).items()
        }

    return jax.tree.map(stack, tree, is_leaf=_is_dict)


def _is_dict(node: Any) -> bool:
    return isinstance(node, dict)


def _layer_order(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (-1, name)
