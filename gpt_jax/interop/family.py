"""What a family of published models is: its settings as a ModelConfig and back, and which of its tensors is which of
our parameters.
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
from gpt_jax.interop.settings import Settings
from gpt_jax.model.shapes import canonical_shapes


@dataclass(frozen=True)
class Row:
    """One tensor of theirs and our parameters that it holds: `read` makes ours of it, in the order of `ours`, and
    `write` reverses that.

    `count`: what is read is a stack of so many tensors of theirs, and `{}` in their names is the place.
    """

    theirs: str
    ours: tuple[str, ...]
    read: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    write: Callable[..., np.ndarray]
    count: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of their tensors."""
        return (self.theirs,) if self.count is None else tuple(self.theirs.format(i) for i in range(self.count))


@dataclass(frozen=True)
class Family:
    """A family of models, by the `model_type` of its config.json.

    `defaults` are the keys that a config.json of the family may have, each with what `transformers` takes where it is
    missing. `read` makes a ModelConfig of them, `write` reverses that. `rows` names every parameter of a model once.
    `ignored` are globs of tensors that carry nothing, such as masks; `copies` those that a tied head may have beside
    the table, which they must equal. `prefix` begins the name of every tensor but the head's; files of a model that was
    saved without a head lack it. `aliases` are other spellings of keys: theirs → the key. `renamed` are names that
    tensors have in older files: how they begin → how they begin here. `fixed` are keys that some files have
    and that must have this value, or null; `inert` those that published files have and nothing reads.
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
    aliases: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    inert: tuple[str, ...] = ()

    def settings(self, values: Mapping[str, Any], ignore: Iterable[str] = ()) -> Settings:
        """`values` as this family reads them.

        Raises:
          ConfigError: a key that stands there in two spellings, with two values.
        """
        found: dict[str, Any] = {}
        for key, value in values.items():
            name = self.aliases[key] if key in self.aliases else key
            if name in found and found[name] != value:
                raise ConfigError(f'config.json has "{key}": {value!r}, which "{name}" says otherwise: remove one')
            found[name] = value
        return Settings(found, self.defaults, self.model_type, (*ignore, *self.inert), self.fixed)


def same(theirs: str, *ours: str) -> Row:
    """As it is."""
    return Row(theirs, ours, lambda x: (x,), lambda x: x)


def transposed(theirs: str, *ours: str) -> Row:
    """PyTorch's linear layers keep (outputs, inputs), ours (inputs, outputs)."""
    return Row(theirs, ours, lambda x: (x.T,), lambda x: x.T)


def constant(theirs: str, value: np.generic) -> Row:
    """A number that is no parameter of ours; `read` refuses another one."""

    def read(x: np.ndarray) -> tuple[np.ndarray, ...]:
        if not np.allclose(x.astype(np.float64), float(value), rtol=0.01, atol=0):
            raise ConfigError(f"the tensor {theirs} holds {x}, and gpt_jax has {value} in its place")
        return ()

    return Row(theirs, (), read, lambda: np.asarray(value))


def joined(theirs: str, ours: tuple[str, ...], widths: tuple[int, ...], *, axis: int = 0, groups: int = 1) -> Row:
    """Several of ours side by side along their outputs: `axis` of theirs is transposed to our last.

    `widths` are those of the parts. For kernels theirs is (outputs, inputs) with `axis` 0, and (inputs, outputs), as
    in GPT-2, with `axis` 1; biases have one axis. In `groups` each of so many equal pieces of theirs, such as the heads
    of one key, has its share of every part.
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

    return Row(theirs, ours, read, write)


def fused(
    model: ModelConfig,
    theirs: str,
    ours: tuple[str, ...],
    widths: tuple[int, ...],
    *,
    axis: int = 0,
    groups: int = 1,
) -> list[Row]:
    """`joined` for linear layers of every block, `{}` its number in `theirs`: the kernels, and biases if there are."""
    shapes, rows = canonical_shapes(plain(model)), []
    for layer in range(model.layers):
        for leaf, name, along in (("kernel", "weight", axis), ("bias", "bias", 0)):
            paths = tuple(f"blocks/{layer}/{module}/{leaf}" for module in ours)
            if paths[0] in shapes:
                rows.append(joined(f"{theirs.format(layer)}.{name}", paths, widths, axis=along, groups=groups))
    return rows


def by_name(
    model: ModelConfig, names: Mapping[str, str], special: Iterable[Row] = (), *, linear: bool = True
) -> tuple[Row, ...]:
    """A row for each parameter of `model`, by a table of modules: ours → theirs, `{}` the layer.

    Kernels, scales and tables are their `weight`, a bias their `bias`, other leaves the named tensor itself. Kernels
    are transposed; with `linear` False, as in GPT-2, the head's alone is. Parameters of the `special` rows are theirs.
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
            rows.append(same(f"{theirs}.bias", path))
        elif leaf == "kernel" and (linear or module == "head"):
            rows.append(transposed(f"{theirs}.weight", path))
        elif leaf in ("kernel", "scale", "table"):
            rows.append(same(f"{theirs}.weight", path))
        else:
            rows.append(same(theirs, path))
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
