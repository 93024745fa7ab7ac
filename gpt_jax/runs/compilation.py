"""The persistent compilation cache: a program that was compiled once on a machine is read back in later processes."""

from __future__ import annotations

import jax

from gpt_jax.data.cache import cache_folder


def enable_compilation_cache() -> None:
    """Turns the cache on, in `xla/` of `$GPT_JAX_CACHE` or of `~/.cache/gpt_jax`, unless the user chose a place
    (`JAX_COMPILATION_CACHE_DIR`).
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder(None) / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
