"""The cost of a model: parameters, floating-point operations, bytes of cache.

Computed analytically, because XLA's cost analysis counts the body of a scan only once.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import jax

from gpt_jax import config
from gpt_jax.analysis.chips import CHIPS
from gpt_jax.model.adapter import is_adapter
from gpt_jax.model.cache import init_cache
from gpt_jax.model.paths import is_stacked, layer_paths, matches, path_of
from gpt_jax.model.registry import mixer_of
from gpt_jax.model.shapes import parameter_shapes


@dataclass(frozen=True)
class ParameterRow:
    """Parameters of one path and shape in `layers` layers; `path` has `*` for the layer if there are several."""

    path: str
    shape: tuple[int, ...]
    layers: int

    @property
    def count(self) -> int:
        """The number of elements in all of its layers."""
        return self.layers * math.prod(self.shape)


def parameter_table(params: Any) -> list[ParameterRow]:
    """The parameters (arrays or shapes), with one row for equal layers; the same for a looped and a scanned stack."""
    found: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for keys, leaf in jax.tree.leaves_with_path(params):
        path = path_of(keys)
        shape = leaf.shape[1:] if is_stacked(path) else leaf.shape
        for layer in layer_paths(path):
            found.setdefault((re.sub(r"(?<=^blocks/)\d+", "*", layer), shape), []).append(layer)
    return [ParameterRow(paths[0] if len(paths) == 1 else name, s, len(paths)) for (name, s), paths in found.items()]


def count_parameters(model: config.ModelConfig) -> tuple[int, int]:
    """(number of parameters, number without the embedding tables). The second is the N of scaling laws; it includes an
    untied head.
    """
    table = parameter_table(parameter_shapes(model))
    rest = [row for row in table if not matches(row.path, ["embedding/**/table"])]
    return sum(row.count for row in table), sum(row.count for row in rest)


def forward_flops_per_token(model: config.ModelConfig, context: int) -> int:
    """Floating-point operations of the forward pass per token, in rows of `context` tokens. A multiply-add counts as 2.

    Only matrix products are counted, as in the customary 6 · N (Kaplan et al. 2020, arXiv:2001.08361); norms, softmax,
    activations and short convolutions are a few percent. Attention counts the keys that the mask leaves visible,
    averaged over the row: (T + 1) / 2 for a causal mask, about W for a window. Kernels compute somewhat more, and the
    customary 12 · L · C · T of PaLM (arXiv:2204.02311) counts all T keys.
    """
    table = parameter_table(parameter_shapes(model))
    products = sum(row.count for row in table if row.path.endswith("/kernel"))
    if model.head.tied:
        assert model.vocab_size is not None
        products += model.vocab_size * model.width
    mixing = [mixer_of(b.attention).mixing_flops(b.attention, model, context) for b in model.blocks]
    return 2 * products + sum(mixing)


def training_flops_per_token(model: config.ModelConfig, context: int) -> int:
    """Floating-point operations of forward and backward pass per token. Each matrix product of the forward pass takes
    two in the backward pass, or one if its kernel is frozen. Recomputation by remat is not counted.
    """
    forward = forward_flops_per_token(model, context)
    if not config.has_adapter(model):
        return 3 * forward
    table = parameter_table(parameter_shapes(model))
    frozen = sum(row.count for row in table if row.path.endswith("/kernel") and not is_adapter(row.path))
    if model.head.tied:
        assert model.vocab_size is not None
        frozen += model.vocab_size * model.width
    return 3 * forward - 2 * frozen


def kv_bytes_per_token(model: config.ModelConfig, length: int) -> float:
    """Bytes of cache per token of a text of `length` tokens; with windows, this falls with the length."""
    layers = jax.eval_shape(lambda: init_cache(model, 1, length).layers)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(layers)) / length


# Dense bfloat16 (or else float16) operations per second of one JAX device, as stated by the vendors, for devices that
# `chips` does not describe.
PEAKS = {
    r"TPU v2": 22.5e12,
    r"TPU v3": 61.5e12,
    r".*\bB200\b.*": 2250e12,
    r".*\bH100 PCIe.*": 756e12,
    r".*\bH[12]00\b.*": 989e12,
    r".*\bA100\b.*": 312e12,
    r".*\bL4\b.*": 121e12,
    r".*\bV100\b.*": 125e12,
    r".*\bT4\b.*": 65e12,
}


def peak_flops(device: Any) -> float | None:
    """Peak operations per second of a device, the denominator of MFU; None if unknown, as for CPUs."""
    peaks = {chip.kind: chip.flops for chip in CHIPS} | PEAKS
    return next((peak for kind, peak in peaks.items() if re.fullmatch(kind, device.device_kind)), None)
