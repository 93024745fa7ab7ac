"""Families of published models: how their settings map to a ModelConfig, and their tensors to parameters.

In these modules "theirs" is the family's name of a tensor or module, and "ours" the path of a parameter or module.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpt_jax.config import Init, ModelConfig
from gpt_jax.config.errors import ConfigError
from gpt_jax.config.foreign import shown
from gpt_jax.interop.settings import Settings
from gpt_jax.model.shapes import canonical_shapes


@dataclass(frozen=True)
class TensorRow:
    """One row of a family's table: a tensor, and the parameters that it holds.

    Attributes:
      theirs: the name of the tensor.
      ours: the paths of the parameters.
      read: makes the parameters, in the order of `ours`, from the tensor.
      write: makes the tensor from the parameters.
      count: if not None, `read` takes and `write` returns a stack of this many tensors, and `{}` in `theirs` stands for
        the index of each.
    """

    theirs: str
    ours: tuple[str, ...]
    read: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    write: Callable[..., np.ndarray]
    count: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors."""
        return (self.theirs,) if self.count is None else tuple(self.theirs.format(i) for i in range(self.count))


@dataclass(frozen=True)
class Family:
    """A family of models, identified by the `model_type` in config.json.

    Attributes:
      model_type: its name in config.json.
      architecture: the name of the class in `transformers`.
      defaults: the keys that a config.json of the family may have → the value that `transformers` uses if it is
        missing.
      read: makes a ModelConfig from the settings.
      write: makes the settings from a ModelConfig.
      rows: returns the table of a model, in which every parameter appears once.
      prefix: starts the name of every tensor except the head's. Models saved without a head lack it.
      ignored: globs of tensors to skip, such as masks.
      copies: tensors that a tied model may have in addition to the embedding table, which they must equal.
      aliases: other spellings of keys → the key in `defaults`.
      renamed: how names of tensors start in older files → how they start today.
      fixed: keys that some files have and that must have this value or null.
      inert: keys that published files have and that `transformers` does not read.
    """

    model_type: str
    architecture: str
    defaults: Mapping[str, Any]
    read: Callable[[Settings], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    rows: Callable[[ModelConfig], tuple[TensorRow, ...]]
    prefix: str = "model."
    ignored: tuple[str, ...] = ("*.rotary_emb.inv_freq",)
    copies: tuple[str, ...] = ("lm_head.weight",)
    aliases: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    inert: tuple[str, ...] = ()

    def settings(self, values: Mapping[str, Any], ignore: Iterable[str] = ()) -> Settings:
        """Returns the `values` of a config.json with aliases resolved, without the keys in `ignore`.

        Raises:
          ConfigError: two spellings of one key have different values.
        """
        found: dict[str, Any] = {}
        for key, value in values.items():
            name = self.aliases[key] if key in self.aliases else key
            if name in found and found[name] != value:
                raise ConfigError(
                    f'config.json has "{key}": {shown(value)} and another value for "{name}", the same setting:'
                    " remove one"
                )
            found[name] = value
        return Settings(found, self.defaults, self.model_type, (*ignore, *self.inert), self.fixed)


def unchanged(theirs: str, *ours: str) -> TensorRow:
    """A tensor that is stored as the parameter is."""
    return TensorRow(theirs, ours, lambda x: (x,), lambda x: x)


def transposed(theirs: str, *ours: str) -> TensorRow:
    """A tensor that is the transposed parameter: PyTorch stores kernels as (outputs, inputs), not (inputs, outputs)."""
    return TensorRow(theirs, ours, lambda x: (x.T,), lambda x: x.T)


def constant(theirs: str, value: np.generic) -> TensorRow:
    """A tensor with a fixed number that is not a parameter; `read` raises ConfigError if it holds another number."""

    def read(x: np.ndarray) -> tuple[np.ndarray, ...]:
        if not np.allclose(x.astype(np.float64), float(value), rtol=0.01, atol=0):
            raise ConfigError(f"the tensor {theirs} is {x}, and gpt_jax reads only {value}")
        return ()

    return TensorRow(theirs, (), read, lambda: np.asarray(value))


def joined(theirs: str, ours: tuple[str, ...], widths: tuple[int, ...], *, axis: int = 0, groups: int = 1) -> TensorRow:
    """A tensor that holds several parameters, concatenated along their outputs.

    Args:
      theirs: the name of the tensor.
      ours: the paths of the parameters.
      widths: the number of outputs of each parameter.
      axis: the axis of outputs in the tensor, which becomes the last in the parameters: 0 for kernels (outputs, inputs)
        and for biases, 1 for kernels (inputs, outputs), as in GPT-2.
      groups: the number of equal pieces of the tensor, such as key heads; each has an equal share of every parameter.
    """
    cuts = (np.cumsum(widths)[:-1] // groups).tolist()

    def read(x: np.ndarray) -> tuple[np.ndarray, ...]:
        x = np.moveaxis(x, axis, 0)
        parts = np.split(x.reshape(groups, -1, *x.shape[1:]), cuts, axis=1)
        return tuple(np.moveaxis(part.reshape(-1, *x.shape[1:]), 0, -1) for part in parts)

    def write(*parts: np.ndarray) -> np.ndarray:
        turned = [np.moveaxis(part, -1, 0) for part in parts]
        pieces = [part.reshape(groups, -1, *part.shape[1:]) for part in turned]
        return np.moveaxis(np.concatenate(pieces, axis=1).reshape(-1, *turned[0].shape[1:]), 0, axis)

    return TensorRow(theirs, ours, read, write)


def fused(
    model: ModelConfig,
    theirs: str,
    ours: tuple[str, ...],
    widths: tuple[int, ...],
    *,
    axis: int = 0,
    groups: int = 1,
) -> list[TensorRow]:
    """Returns `joined` rows for the kernels and biases of modules in every block; `{}` in `theirs` is the layer."""
    shapes, rows = canonical_shapes(plain(model)), []
    for layer in range(model.layers):
        for leaf, name, along in (("kernel", "weight", axis), ("bias", "bias", 0)):
            paths = tuple(f"blocks/{layer}/{module}/{leaf}" for module in ours)
            if paths[0] in shapes:
                rows.append(joined(f"{theirs.format(layer)}.{name}", paths, widths, axis=along, groups=groups))
    return rows


def by_name(
    model: ModelConfig, names: Mapping[str, str], special: Iterable[TensorRow] = (), *, transpose: bool = True
) -> tuple[TensorRow, ...]:
    """Returns the table of `model`: a row for each parameter, and the `special` rows.

    Args:
      model: the model.
      names: our modules → the family's modules; `{}` is the layer. Kernels, scales and tables are the `weight` of a
        module, biases its `bias`; any other parameter is the tensor named.
      special: rows of parameters that `names` cannot describe.
      transpose: whether kernels are transposed. GPT-2 sets it to False; the head is transposed all the same.

    Raises:
      ConfigError: a parameter has no place in the family.
    """
    special = tuple(special)
    taken = {path for row in special for path in row.ours}
    rows = []
    for path in canonical_shapes(plain(model)):
        if path in taken:
            continue
        module, leaf = path.rsplit("/", 1)
        place = re.search(r"(?<=/)\d+(?=/)", module)
        general = module if place is None else re.sub(r"(?<=/)\d+(?=/)", "{}", module, count=1)
        if general not in names:
            raise ConfigError(f"this family has no place for the parameter {path}")
        theirs = names[general].format(place.group() if place else "")
        if leaf == "bias":
            rows.append(unchanged(f"{theirs}.bias", path))
        elif leaf == "kernel" and (transpose or module == "head"):
            rows.append(transposed(f"{theirs}.weight", path))
        elif leaf in ("kernel", "scale", "table"):
            rows.append(unchanged(f"{theirs}.weight", path))
        else:
            rows.append(unchanged(theirs, path))
    return (*rows, *special)


def plain(model: ModelConfig) -> ModelConfig:
    """Returns the model without initialization and execution settings, which published files do not store."""
    return dataclasses.replace(
        model,
        init=Init(),
        dtype="float32",
        param_dtype="float32",
        scan=False,
        remat=None,
        kernel=None,
    )
