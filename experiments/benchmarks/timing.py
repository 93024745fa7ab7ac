"""Timing that a noisy machine can't fool too easily: arms in alternation within one process, best and median of many
rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

Arm = Callable[[], Any]


def alternate(arms: dict[str, Arm], rounds: int, calls: int) -> dict[str, dict[str, float]]:
    """Seconds per call of each arm: best and median over `rounds` of the mean of `calls` calls, the arms taking turns.

    What an arm returns is waited for. Two calls of each go before, uncounted.
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
    """Best and median."""
    return {"best_seconds": min(seconds), "median_seconds": statistics.median(seconds)}
