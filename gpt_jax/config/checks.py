"""Checks that several classes of this package share. Each raises ConfigError."""

from __future__ import annotations

import math

from gpt_jax.config.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless `condition`."""
    if not condition:
        raise ConfigError(message)


def require_probability(value: int | float, name: str) -> None:
    """Raises ConfigError unless 0 ≤ value < 1."""
    require(0 <= value < 1, f"{name} must lie in [0, 1), not {value}")


def require_positive(value: int | float | None, name: str) -> None:
    """Raises ConfigError unless 0 < value < ∞. None, which means off or derived, is accepted."""
    require(value is None or value > 0, f"{name} must be positive, not {value}")
    require(value is None or value < math.inf, f"{name} must be finite, not {value}")


def require_taps(taps: int | None, name: str) -> None:
    """Raises ConfigError unless a short convolution has at least 2 taps; None, which means off, is accepted."""
    require(taps is None or taps >= 2, f"{name} must be at least 2 taps, this step and one before it, not {taps}")
