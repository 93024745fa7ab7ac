"""The persistent compilation cache: programs compiled once on a machine are read back by later processes."""

from __future__ import annotations

import jax

from gpt_jax.data.cache import cache_folder


def enable_compilation_cache() -> None:
    """Enables the cache in `$GPT_JAX_CACHE/xla` or `~/.cache/gpt_jax/xla`. Does nothing if the user has set a folder
    (`JAX_COMPILATION_CACHE_DIR`).
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder(None) / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
