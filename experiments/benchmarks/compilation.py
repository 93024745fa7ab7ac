"""Time from a configuration to the end of the first step, without a compilation cache, for 12 and 48 scanned layers."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import jax

from experiments.benchmarks.step import gpt2_config, ours
from experiments.benchmarks.timing import summary

LAYERS = (12, 48)
SIZE = {"width": 64, "heads": 4, "context": 64, "batch": 2, "vocab": 65}


def run(rounds: int) -> dict[str, Any]:
    """Seconds to the end of the first step for each depth, measured in separate processes in alternation, and the ratio
    of the best.
    """
    seconds: dict[str, list[float]] = {f"{layers}_layers": [] for layers in LAYERS}
    for _ in range(rounds):
        for layers in LAYERS:
            command = [sys.executable, "-m", "experiments.benchmarks.compilation", str(layers)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds[f"{layers}_layers"].append(float(out.split()[-1]))
    measured = {name: summary(values) for name, values in seconds.items()}
    few, many = (measured[f"{layers}_layers"]["best_seconds"] for layers in LAYERS)
    return {"sizes": SIZE, **measured, "deep_against_shallow": many / few}


def first_step_seconds(layers: int) -> float:
    """Seconds from the configuration to the end of the first step, after the backend has started."""
    jax.config.update("jax_enable_compilation_cache", False)
    jax.block_until_ready(jax.numpy.zeros(1))
    start = time.perf_counter()
    step = ours(gpt2_config({**SIZE, "layers": layers}, scan=True))
    jax.block_until_ready(step())
    return time.perf_counter() - start


if __name__ == "__main__":
    print(first_step_seconds(int(sys.argv[1])))
