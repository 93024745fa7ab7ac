"""Equal budgets: the costs of an arm, and the width or number of steps at which it costs as much as the baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpt_jax.ablation.schema import TOLERANCE
from gpt_jax.ablation.study import Match, Study, change
from gpt_jax.analysis.cost import count_parameters, kv_bytes_per_token, training_flops_per_token
from gpt_jax.config import Config
from gpt_jax.config.conversion import flatten, to_dict
from gpt_jax.config.errors import ConfigError, nearest
from gpt_jax.training.schedule import resolve_schedule

LARGEST = 2**20
STEPS = (1, 2, 4, 8, 16)  # some widths must be even, or a multiple of the heads
SANE = 4  # a solution lies within this factor of the key's start unless the study declares bounds
TRAIN_STEPS, SCHEDULE_STEPS, AVERAGE_STEPS = "train.steps", "schedule.steps", "train.average.steps"
FOLLOWS = {TRAIN_STEPS: (SCHEDULE_STEPS, AVERAGE_STEPS)}  # a free key → the settings that change with it


@dataclass(frozen=True)
class Costs:
    """What an arm costs. `parameters_non_embedding` is the N of scaling laws; FLOPs are forward and backward; bytes of
    cache are those of a text as long as the context; `tokens` are those of the whole run.
    """

    parameters: int
    parameters_non_embedding: int
    flops_per_token: int
    kv_bytes_per_token: float
    tokens: int

    @property
    def flops(self) -> int:
        """Those of the whole run."""
        return self.flops_per_token * self.tokens

    def of(self, match: Match) -> float:
        """The cost that `match` names; FLOPs are those of the whole run."""
        return {
            "params": float(self.parameters),
            "flops": float(self.flops),
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
    """Each arm with its free key solved, if the study matches one.

    Raises:
      ConfigError: a free key is not an integer setting of its arm, does not move the cost, or would have to leave its
        bounds.
    """
    frees, budget = study.frees(), costs(configs[study.baseline], row_lengths[study.baseline])
    for name in frees:
        if name not in configs or name == study.baseline:
            raise ConfigError(f'free names "{name}": name arms beside the baseline{nearest(name, configs)}')
    result = {}
    for name, config in configs.items():
        free, length = frees[name] if name in frees else None, row_lengths[name]
        match = study.match
        if match is None:
            result[name] = Matched(config, costs(config, length), None, None, None)
            continue
        target, value = budget.of(match), None
        if free is not None:
            config = _matched(name, config, free, match, target, length, study.free_bounds)
            value = flatten(to_dict(config))[free]
        found = costs(config, length)
        result[name] = Matched(config, found, found.of(match) / target, free, value)
    return result


def _matched(
    name: str, config: Config, free: str, match: Match, target: float, row_length: int, bounds: tuple[int, int] | None
) -> Config:
    """`config` with `free` solved within its bounds, and with what follows from it."""
    start, cost = _start(config, free), partial(_cost, row_length, match)
    _check_moves(config, free, start, match, cost)
    low, high = bounds or (-(-start // SANE), SANE * start)
    solved = solve(config, free, target, cost)
    value = _start(solved, free)
    if not low <= value <= high:
        if abs(cost(solved) / target - 1) <= TOLERANCE:
            allowed = "free_bounds allow" if bounds else f"a quarter to four times its start ({start}) allows"
            raise ConfigError(
                f'the arm "{name}" would need {free}={value} for the baseline\'s {match}, and {allowed} {low} to'
                f" {high}: declare free_bounds=({min(low, value)}, {max(high, value)}), or choose another free key"
            )
        solved = _within(config, free, low, high, cost(solved) < target)  # out of reach with any value: not ranked
    return _followed(config, solved, free)


def _within(config: Config, free: str, low: int, high: int, is_too_cheap: bool) -> Config:
    """`config` with the largest legal value of `free` from `low` to `high`, or the smallest."""
    refused: ConfigError | None = None
    for value in range(high, low - 1, -1) if is_too_cheap else range(low, high + 1):
        try:
            return change(config, {free: value})
        except ConfigError as error:
            refused = error
    raise refused or ConfigError(f"free_bounds must be two numbers, the smaller first, not {(low, high)}")


def _check_moves(config: Config, free: str, start: int, match: Match, cost: Callable[[Config], float]) -> None:
    """Refuses a key that does not move the cost, or that lowers it as it grows."""
    known = {start: cost(config)}
    for value in (2 * start, 4 * start, 3 * start, start // 2, start + 1, start - 1):
        if len(known) < 3 and value > 0:
            try:
                known[value] = cost(change(config, {free: value}))
            except ConfigError:  # some values are illegal, such as heads that do not divide the width
                continue
    found = [known[value] for value in sorted(known)]
    if len(found) > 1 and min(found) == max(found):
        raise ConfigError(
            f'the free key "{free}" does not change match="{match}": choose a key that does, or another budget'
        )
    if found != sorted(found):
        raise ConfigError(
            f'match="{match}" falls where the free key "{free}" grows: choose a key that raises it, or another budget'
        )


def _followed(config: Config, solved: Config, free: str) -> Config:
    """`solved` with the lengths that follow from its steps in the same proportion to them as in `config`."""
    if free != TRAIN_STEPS:
        return solved
    steps, settings = solved.train.steps, flatten(to_dict(solved))
    for key in FOLLOWS[free]:
        if key in settings and settings[key] is not None:
            solved = change(solved, {key: max(1, round(settings[key] * steps / config.train.steps))})
    schedule: Any = solved.schedule
    if not hasattr(schedule, "steps"):
        return solved
    length = steps if schedule.steps is None else schedule.steps
    shortest: Any = resolve_schedule(dataclasses.replace(schedule, steps=None), length)
    if shortest.steps > length:
        raise ConfigError(
            f"the match gives {TRAIN_STEPS}={steps}, whose schedule has no room for its warmup and decay: shorten them,"
            " or choose another free key"
        )
    return solved


def _cost(row_length: int, match: Match, config: Config) -> float:
    return costs(config, row_length).of(match)


def _start(config: Config, free: str) -> int:
    settings = flatten(to_dict(config))
    if free not in settings:
        raise ConfigError(f'the free width "{free}" is not a setting{nearest(free, settings)}')
    if type(settings[free]) is not int:
        raise ConfigError(f'the free width "{free}" must be a whole number in the arm, not {settings[free]!r}')
    return settings[free]


def solve(config: Config, free: str, target: float | int, cost: Callable[[Config], float]) -> Config:
    """`config` with the integer `free` whose `cost`, which must not fall as it grows, is nearest to `target`.

    Raises:
      ConfigError: `free` is not an integer setting of this configuration, or no value of it is legal.
    """
    start = _start(config, free)
    refused: ConfigError | None = None
    for step in STEPS:
        try:
            return _nearest(config, free, start, step, target, cost)
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
