"""What a family of published models is: its settings as a ModelConfig and back, and which of its tensors is which of
our parameters.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.config import Init, ModelConfig
from gpt_jax.conversion import ConfigError
from gpt_jax.interop.settings import Settings
from gpt_jax.model.gpt import GPT
from gpt_jax.paths import path_of


@dataclass(frozen=True)
class Row:
    """One tensor of theirs and our parameters that it holds: `read` makes ours of it, in the order of `ours`, and
    `write` reverses that.
    """

    theirs: str
    ours: tuple[str, ...]
    read: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    write: Callable[..., np.ndarray]


@dataclass(frozen=True)
class Family:
    """A family of models, by the `model_type` of its config.json.

    `defaults` are the keys that a config.json of the family may have, each with what `transformers` takes where it is
    missing. `read` makes a ModelConfig of them, `write` reverses that. `rows` names every parameter of a model once.
    `ignored` are globs of tensors that carry nothing, such as masks; `copies` those that a tied head may have beside
    the table, which they must equal. `prefix` begins the name of every tensor but the head's; files of a model that was
    saved without a head lack it.
    """

    model_type: str
    architecture: str
    defaults: Mapping[str, Any]
    read: Callable[[Settings], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    rows: Callable[[ModelConfig], tuple[Row, ...]]
    prefix: str = "model."
    ignored: tuple[str, ...] = ("*.rotary_emb.inv_freq",)
    copies: tuple[str, ...] = ("lm_head.weight",)

    def settings(self, values: Mapping[str, Any], ignore: Iterable[str] = ()) -> Settings:
        """`values` as this family reads them."""
        return Settings(values, self.defaults, self.model_type, tuple(ignore))


def same(theirs: str, *ours: str) -> Row:
    """As it is."""
    return Row(theirs, ours, lambda x: (x,), lambda x: x)


def transposed(theirs: str, *ours: str) -> Row:
    """PyTorch's linear layers keep (outputs, inputs), ours (inputs, outputs)."""
    return Row(theirs, ours, lambda x: (x.T,), lambda x: x.T)


def joined(theirs: str, ours: tuple[str, ...], widths: tuple[int, ...], *, axis: int = 0) -> Row:
    """Several of ours side by side along their outputs: `axis` of theirs is transposed to our last.

    `widths` are those of the parts. For kernels theirs is (outputs, inputs) with `axis` 0, and (inputs, outputs), as
    in GPT-2, with `axis` 1; biases have one axis.
    """
    cuts = np.cumsum(widths)[:-1].tolist()

    def read(x: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(part.T if axis == 0 else part for part in np.split(x, cuts, axis=axis))

    def write(*parts: np.ndarray) -> np.ndarray:
        return np.concatenate([part.T if axis == 0 else part for part in parts], axis=axis)

    return Row(theirs, ours, read, write)


def by_name(
    model: ModelConfig, names: Mapping[str, str], special: Iterable[Row] = (), *, linear: bool = True
) -> tuple[Row, ...]:
    """A row for each parameter of `model`, by a table of modules: ours → theirs, `{}` the layer.

    Kernels, scales and tables are their `weight`, a bias their `bias`. Kernels are transposed; with `linear` False, as
    in GPT-2, they are not. Parameters of the `special` rows are theirs.
    """
    special = tuple(special)
    taken = {path for row in special for path in row.ours}
    rows = []
    for path in parameter_shapes(plain(model)):
        if path in taken:
            continue
        module, leaf = path.rsplit("/", 1)
        place = re.search(r"(?<=/)\d+(?=/)", module)
        general = module if place is None else re.sub(r"(?<=/)\d+(?=/)", "{}", module, count=1)
        if general not in names:
            raise ConfigError(f"this family has no place for the parameter {path}")
        theirs = names[general].format(place.group() if place else "")
        if leaf == "bias":
            rows.append(same(f"{theirs}.bias", path))
        elif leaf == "kernel" and linear:
            rows.append(transposed(f"{theirs}.weight", path))
        elif leaf == "vector":
            rows.append(same(theirs, path))
        else:
            rows.append(same(f"{theirs}.weight", path))
    return (*rows, *special)


def plain(model: ModelConfig) -> ModelConfig:
    """The model without the choices of how it begins and runs, which no published file holds."""
    return dataclasses.replace(
        model,
        init=Init(),
        dtype="float32",
        param_dtype="float32",
        scan=False,
        remat=None,
        kernel=None,
    )


@functools.lru_cache(maxsize=8)
def parameter_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path → shape of every parameter, layer by layer."""
    tree = jax.eval_shape(GPT(model).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    return {path_of(keys): leaf.shape for keys, leaf in jax.tree.leaves_with_path(tree)}
