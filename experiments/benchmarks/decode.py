"""Tokens per second of `generate`, prefill included, compared to the rate at which the machine reads memory."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.timing import alternate
from gpt_jax import config as c
from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.sampling import Greedy
from gpt_jax.model.gpt import GPT

SIZES = {"small": (4, 128, 4, 65), "gpt2": (12, 768, 12, 50_257)}
PROMPT, NEW_TOKENS, READ_FLOATS = 32, 64, 2**26


def run(rounds: int) -> dict[str, Any]:
    """Tokens per second for each size and number of rows, and the rate at which weights are read as a share of the
    machine's.
    """
    read = read_rate(rounds)
    results: dict[str, Any] = {"memory_read_bytes_per_second": read}
    for name, (layers, width, heads, vocab) in SIZES.items():
        block = c.BlockConfig(c.Attention(heads=heads, position=c.Rope()), c.GatedMlp(width=8 * width // 3))
        model = GPT(c.ModelConfig(vocab, PROMPT + NEW_TOKENS, width, layers * (block,)))
        params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        for rows in (1, 16):
            prompts = np.random.default_rng(0).integers(0, vocab, (rows, PROMPT)).tolist()

            def arm(prompts: list = prompts, model: GPT = model, params: Any = params) -> Any:
                options: Any = {"key": jax.random.key(0), "max_new_tokens": NEW_TOKENS, "sampler": Greedy()}
                return generate(model, params, prompts, **options).tokens

            measured = alternate({"generate": arm}, rounds, calls=1)["generate"]
            steps = NEW_TOKENS / measured["best_seconds"]
            share = steps * weights / read
            results[f"{name}_{rows}_rows"] = {
                **measured,
                "tokens_per_second": rows * steps,
                "share_of_read_rate": share,
            }
    return results


def read_rate(rounds: int) -> float:
    """Bytes per second that a sum over 256 MiB reads from memory."""
    data = jnp.ones(READ_FLOATS, jnp.float32)
    total = jax.jit(jnp.sum)
    measured = alternate({"sum": lambda: total(data)}, rounds, calls=2)["sum"]
    return data.nbytes / measured["best_seconds"]
