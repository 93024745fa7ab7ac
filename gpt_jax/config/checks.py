"""What the classes of this package refuse, and how they say it."""

from __future__ import annotations

from gpt_jax.config.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless `condition`."""
    if not condition:
        raise ConfigError(message)


def require_probability(value: int | float, name: str) -> None:
    require(0 <= value < 1, f"{name} must lie in [0, 1), not {value}")


def require_positive(value: int | float | None, name: str) -> None:
    """None, which is off or derived, is as good."""
    require(value is None or value > 0, f"{name} must be positive, not {value}")


def require_taps(taps: int | None, name: str) -> None:
    require(taps is None or taps >= 2, f"{name} must have at least 2 taps, not {taps}: this step and one before it")
