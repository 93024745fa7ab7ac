"""Timing that is robust to noise: arms alternate within one process, and the best and the median of many rounds are
reported.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

Arm = Callable[[], Any]


def alternate(arms: dict[str, Arm], rounds: int, calls: int) -> dict[str, dict[str, float]]:
    """Seconds per call of each arm: best and median over `rounds` rounds of the mean of `calls` calls.

    Each round times all arms in turn, and waits for the arrays that they return. Two calls of each arm warm up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for arm in arms.values():
        for _ in range(2):
            jax.block_until_ready(arm())
    for _ in range(rounds):
        for name, arm in arms.items():
            start = time.perf_counter()
            for _ in range(calls):
                result = arm()
            jax.block_until_ready(result)
            seconds[name].append((time.perf_counter() - start) / calls)
    return {name: summary(values) for name, values in seconds.items()}


def summary(seconds: list[float]) -> dict[str, float]:
    """The best and the median of `seconds`."""
    return {"best_seconds": min(seconds), "median_seconds": statistics.median(seconds)}
