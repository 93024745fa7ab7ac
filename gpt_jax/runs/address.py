"""A run's address: a hash of all that decides its numbers and of nothing else, with the parts that it is made of.

Two runs of one address have the same losses and parameters. The parts are the settings, the content of the data and of
the run that it begins with, the code that training imports, the code of pieces from outside the package, the versions
of the numeric libraries, JAX's numeric settings, the compiler's flags, and the devices. Neither the folder's name, the
progress bar nor a docstring is among them.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import platform
from collections.abc import Mapping
from typing import Any

import jax

from gpt_jax.config import Config, LogSpikes, has_adapter
from gpt_jax.config.code import code_hashes, digest
from gpt_jax.config.conversion import flatten, from_dict, to_dict
from gpt_jax.runs.environment import versions
from gpt_jax.runs.load import open_run
from gpt_jax.runs.pieces import NUMERIC, pieces

# Training imports all that decides numbers; see the order of the packages in tests/test_packaging.py.
DECIDING = ("gpt_jax.training",)
# Read where they exist: releases of JAX differ in which they have.
NUMERIC_SETTINGS = (
    "jax_default_matmul_precision", "jax_enable_x64", "jax_explicit_x64_dtypes", "jax_default_dtype_bits",
    "jax_numpy_dtype_promotion", "jax_default_prng_impl", "jax_threefry_partitionable",
    "jax_threefry_gpu_kernel_lowering", "jax_random_seed_offset", "jax_high_dynamic_range_gumbel",
    "jax_softmax_custom_jvp", "jax_allow_f16_reductions", "jax_use_direct_linearize", "jax_use_shardy_partitioner",
    "jax_disable_jit", "jax_disable_most_optimizations", "jax_optimization_level",
    "jax_exec_time_optimization_effort", "jax_memory_fitting_level", "jax_memory_fitting_effort",
    "jax_compiler_enable_remat_pass", "jax_cpu_collectives_implementation",
)  # fmt: skip
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
SILENT_FLAGS = ("--xla_dump",)  # flags that begin so write files and change no program
# What the run writes and watches beside its numbers; and paths, whose content has parts of its own.
NEUTRAL = (
    "prompt", "wandb", "checkpoint", "init_from", "data.path", "data.tokenizer.path", "watchdog", "recompute_every",
    "diagnostics", "suites",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Address:
    """`parts`: name → what that part holds, by name. They are recorded with a run, so that a later one can say in what
    it differs.
    """

    parts: Mapping[str, Mapping[str, Any]]

    @property
    def hash(self) -> str:
        """12 hexadecimal digits."""
        return digest(json.dumps(self.parts, sort_keys=True))[:12]

    def with_part(self, name: str, values: Mapping[str, Any]) -> Address:
        """The address of something that `values` decide too."""
        return Address({**self.parts, name: values})


def run_address(config: Config, data_hash: str, base: str | None = None) -> Address:
    """The address of a run of the resolved `config` on data of the content `data_hash`, on this process's devices.

    `base` is the `base_content` of `config.init_from`.
    """
    code = code_hashes(*DECIDING)
    return Address(
        {
            "settings": _settings(config),
            "data": {"content": data_hash},
            "base": {"content": base},
            "code": code,
            "pieces": pieces(config, code),
            "libraries": {name: version for name, version in versions().items() if name in NUMERIC},
            "numerics": {k: _plain(getattr(jax.config, k)) for k in NUMERIC_SETTINGS if hasattr(jax.config, k)},
            "flags": {name: _flags(os.environ.get(name, "")) for name in FLAGS},
            "devices": _devices(),
        }
    )


def base_content(init_from: str) -> str:
    """What a new run takes from the newest good checkpoint in `init_from`: a hash of its parameters, and of how an
    adapter among them is merged.

    Raises:
      MissingFile: there is no run, or it has no checkpoint.
    """
    opened = open_run(init_from)
    model = opened.config.model
    adapter = [to_dict(block.adapter) for block in model.blocks] if has_adapter(model) else None
    return digest(json.dumps([opened.fingerprint, adapter], sort_keys=True))


def _settings(config: Config) -> dict[str, Any]:
    canonical = from_dict(Config, to_dict(config))  # 1 where a float belongs becomes 1.0
    if isinstance(canonical.train.spikes, LogSpikes):  # which tells of spikes, and changes no number
        canonical = dataclasses.replace(canonical, train=dataclasses.replace(canonical.train, spikes=None))
    settings = flatten(to_dict(canonical))
    return {k: v for k, v in settings.items() if not any(k == name or k.startswith(name + ".") for name in NEUTRAL)}


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value


def _flags(text: str) -> list[str]:
    """In their order, of which the last of a name holds."""
    return [flag for flag in text.split() if not flag.startswith(SILENT_FLAGS)]


def _devices() -> dict[str, Any]:
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
        "runtime": first.client.platform_version,
        "machine": platform.machine(),
    }


# ── what differs, in words ───────────────────────────────────────────────────────────────────────────────────────────

MOST_NAMED = 3
WORDS = {"data": "the content of the data", "base": "the content of init_from"}


def changed_parts(old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """In what two addresses' parts differ, such as "default matmul precision: None → 'highest'"."""
    found = []
    for part in dict.fromkeys([*old, *new]):
        before, after = old.get(part, {}), new.get(part, {})
        names = [n for n in dict.fromkeys([*before, *after]) if before.get(n) != after.get(n)]
        said = [_said(part, name, before.get(name), after.get(name)) for name in names]
        more = [f"{len(said) - MOST_NAMED} more of the {part}"] if len(said) > MOST_NAMED else []
        found += [*said[:MOST_NAMED], *more]
    return list(dict.fromkeys(found))


def _said(part: str, name: str, before: Any, after: Any) -> str:
    if part in WORDS:
        return WORDS[part]
    if part == "code":
        return f"code of {name.removeprefix('gpt_jax.').replace('.', '/')}"
    if part == "pieces":
        return f"code of {name}"
    if part == "libraries":
        return f"{name} {before} → {after}"
    shown = name.removeprefix("jax_").replace("_", " ") if part == "numerics" else name
    shown = f"device {name}" if part == "devices" else shown
    return f"{shown}: {before!r} → {after!r}"
