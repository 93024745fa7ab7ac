"""Equal budgets: the costs of an arm, and the width at which an arm costs as much as the baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from gpt_jax.ablation.study import Match, Study, change
from gpt_jax.analysis.cost import count_parameters, kv_bytes_per_token, training_flops_per_token
from gpt_jax.config import Config
from gpt_jax.config.conversion import flatten, to_dict
from gpt_jax.config.errors import ConfigError, nearest

TOLERANCE = 0.01
LARGEST = 2**20
STEPS = (1, 2, 4, 8, 16)  # some widths must be even, or a multiple of the heads


@dataclass(frozen=True)
class Costs:
    """What an arm costs. `parameters_non_embedding` is the N of scaling laws; FLOPs are forward and backward; bytes of
    cache are those of a text as long as the context.
    """

    parameters: int
    parameters_non_embedding: int
    flops_per_token: int
    kv_bytes_per_token: float
    tokens: int

    def of(self, match: Match) -> float:
        """The cost that `match` names."""
        return {
            "params": float(self.parameters),
            "flops": float(self.flops_per_token),
            "kv_bytes": float(self.kv_bytes_per_token),
            "tokens": float(self.tokens),
        }[match]


def costs(config: Config, row_length: int) -> Costs:
    """Costs of a configuration whose vocabulary is known, trained on rows of `row_length` tokens."""
    parameters, rest = count_parameters(config.model)
    return Costs(
        parameters,
        rest,
        training_flops_per_token(config.model, row_length),
        float(kv_bytes_per_token(config.model, config.model.context_length)),
        config.train.steps * config.train.batch_size * row_length,
    )


@dataclass(frozen=True)
class Matched:
    """An arm after matching: `ratio` of its cost to the baseline's, and the value of the `free` key if it has one."""

    config: Config
    costs: Costs
    ratio: float | None
    free: str | None
    value: int | None

    @property
    def is_ranked(self) -> bool:
        """Whether the arm is within 1% of the baseline's budget, or there is none to match."""
        return self.ratio is None or abs(self.ratio - 1) <= TOLERANCE


def match_arms(study: Study, configs: Mapping[str, Config], row_lengths: Mapping[str, int]) -> dict[str, Matched]:
    """Each arm with its free width solved, if the study matches one.

    Raises:
      ConfigError: a free key is not an integer setting of its arm.
    """
    frees, budget = study.frees(), costs(configs[study.baseline], row_lengths[study.baseline])
    result = {}
    for name, config in configs.items():
        free, length = frees[name] if name in frees else None, row_lengths[name]
        match = study.match
        if match is None:
            result[name] = Matched(config, costs(config, length), None, None, None)
            continue
        target = budget.of(match)
        if free is not None:
            config = solve(config, free, target, partial(_cost, length, match))
        found = costs(config, length)
        value = None if free is None else flatten(to_dict(config))[free]
        result[name] = Matched(config, found, found.of(match) / target, free, value)
    return result


def _cost(row_length: int, match: Match, config: Config) -> float:
    return costs(config, row_length).of(match)


def solve(config: Config, free: str, target: float | int, cost: Callable[[Config], float]) -> Config:
    """`config` with the integer `free` whose `cost`, which must not fall as it grows, is nearest to `target`.

    Raises:
      ConfigError: `free` is not an integer setting of this configuration, or no value of it is legal.
    """
    settings = flatten(to_dict(config))
    if free not in settings:
        raise ConfigError(f'the free width "{free}" is not a setting{nearest(free, settings)}')
    if type(settings[free]) is not int:
        raise ConfigError(f'the free width "{free}" must be a whole number in the arm, not {settings[free]!r}')
    refused: ConfigError | None = None
    for step in STEPS:
        try:
            return _nearest(config, free, settings[free], step, target, cost)
        except ConfigError as error:
            refused = error
    assert refused is not None
    raise refused


def _nearest(
    config: Config, free: str, start: int, step: int, target: float | int, cost: Callable[[Config], float]
) -> Config:
    known: dict[int, float] = {}

    def at(units: int) -> float:
        if units not in known:
            known[units] = cost(change(config, {free: units * step}))
        return known[units]

    low, high = 1, max(2, -(-start // step))
    while at(high) < target and high * step < LARGEST:
        low, high = high, 2 * high
    if at(low) >= target:
        low = 1
    while high - low > 1:
        # Costs are nearly linear in a width: guess by the line through both ends, and bisect every third time.
        slope = (at(high) - at(low)) / (high - low)
        is_straight = slope > 0 and at(low) < target and len(known) % 3 > 0
        guess = low + round((target - at(low)) / slope) if is_straight else (low + high) // 2
        guess = min(max(guess, low + 1), high - 1)
        if at(guess) < target:
            low = guess
        else:
            high = guess
    best = min((low, high), key=lambda units: abs(at(units) - target))
    return change(config, {free: best * step})
