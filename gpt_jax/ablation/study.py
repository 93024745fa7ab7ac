"""A study: one question, one knob, arms that differ in it alone.

    study = Study(
        question="What do fewer key/value heads cost?",
        base=config,
        arms=vary("model.attention.kv_heads", mha=4, gqa=2, mqa=1),
        baseline="mha",
        knobs=("model.attention.kv_heads",),
        smallest_difference=0.01,
    )

An arm is a name and the settings in which it differs from `base`, by dotted key; `combine` makes and combines arms.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gpt_jax.ablation.endpoint import Endpoint, FinalLoss, LongLoss, PositionLoss, ProbeAccuracy, RateSensitivity, Suite
from gpt_jax.ablation.statistics import FAILURES_RULED_OUT, MOST_SEEDS
from gpt_jax.config import Config, DataConfig
from gpt_jax.config.conversion import flatten, from_dict, to_dict
from gpt_jax.config.errors import ConfigError, nearest

Match = Literal["params", "flops", "kv_bytes", "tokens"]
RATE = "optimizer.learning_rate"


@dataclass(frozen=True)
class Arm:
    """A name, and the settings that differ from the study's base: dotted key → value (a number, a string, None, a group
    of settings, or one of the configuration's dataclasses).
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ()  # the arms of each group that `product` combined


Arms = tuple[Arm, ...]


@dataclass(frozen=True)
class Probe:
    """Data of the same vocabulary on which the accuracy of trained arms is measured, by x; `label` says what x is."""

    label: str
    data: Mapping[int, DataConfig]


@dataclass(frozen=True)
class Tuning:
    """The stage before the runs that decide: every arm tries equally many settings, with seeds and held-out text that
    the verdict does not use, and the verdict compares each arm at its own best.

    `rates` is the first grid of learning rates. In each of up to `rounds` further rounds every arm adds one rate:
    beyond the edge of its grid where its best lies there, else between its best and the better neighbour; rounds go on
    while any arm's best is at an edge (a grid of one rate has none). `weight_decays` and `warmups` are tried
    afterwards, one after the other, at the best so far (empty: not tuned). Each setting is run with each of `seeds`.

    Raises:
      ConfigError: no rates, rates that are equal or not positive, no seeds, or seeds that are equal.
    """

    rates: tuple[float, ...]
    weight_decays: tuple[float, ...] = ()
    warmups: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (1000,)
    rounds: int = 2

    def __post_init__(self) -> None:
        if not self.rates or len(set(self.rates)) < len(self.rates) or not all(rate > 0 for rate in self.rates):
            raise ConfigError(f"tuning needs learning rates that are positive and all different, not {self.rates}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"tuning needs seeds that are all different, not {self.seeds}")


@dataclass(frozen=True)
class Study:
    """A question and the runs that answer it; `guard` refuses arms that differ in more than the question.

    `knobs` are the settings in which arms may differ, by dotted key: a single one, or a choice with its own settings
    such as "model.attention"; a layer's setting has one key, whichever layers have it. `endpoint` decides the verdict,
    and `smallest_difference`, in its unit, is the smallest that matters. `seeds`, consecutive numbers, are those of the
    first look; more may be added later, up to `most_seeds`. A run failed if it diverged or its final validation loss is
    above `fails_above`; "no difference" must rule out that a share of `rules_out_failures` of an arm's seeds fails.
    `tuning` finds each arm's learning rate first (None: all have the base's). `learning_rates` is the grid that the
    endpoint `RateSensitivity` sweeps. `match` solves the key `free`, an integer such as "model.mlp.width", for each arm
    so that its cost is the baseline's ("flops" and "tokens": those of the whole run); `free` may map arms' names to
    keys, and `free_bounds` allows values of it beyond a quarter to four times its start. `extrapolation` evaluates at
    these multiples of the training context. `secondary` endpoints are judged beside the verdict, under a correction of
    their own. `fresh_seeds` further runs of the baseline measure the noise; `aa` repeats
    a run of the baseline, which must come out bit-equal. `is_smoke` is a tiny size that decides nothing.

    Raises:
      ConfigError: seeds that are not consecutive, tuning seeds among those of the verdict, an endpoint that the study
        does not measure, or an arm that sets what the study solves, tunes or sweeps.
    """

    question: str
    base: Config
    arms: Arms
    baseline: str
    knobs: tuple[str, ...]
    smallest_difference: float | int
    endpoint: Endpoint = FinalLoss()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    most_seeds: int = MOST_SEEDS
    fails_above: float | int | None = None
    rules_out_failures: float = FAILURES_RULED_OUT
    tuning: Tuning | None = None
    learning_rates: tuple[float | int, ...] = ()
    match: Match | None = None
    free: str | Mapping[str, str] | None = None
    free_bounds: tuple[int, int] | None = None
    extrapolation: tuple[int, ...] = ()
    probe: Probe | None = None
    secondary: tuple[Suite, ...] = ()
    fresh_seeds: int = 3
    aa: bool = True
    is_smoke: bool = False

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f'two arms of the study have the name "{name}": rename one')
        if self.baseline not in names:
            raise ConfigError(
                f'the baseline "{self.baseline}" is not an arm of the study{nearest(self.baseline, names)}'
            )
        if not (self.smallest_difference > 0 and math.isfinite(self.smallest_difference)):
            raise ConfigError(
                "the smallest difference that matters must be positive and finite: say how many nats would matter"
            )
        if not 0 < self.rules_out_failures < 1:
            raise ConfigError(f"rules_out_failures is a share of the seeds, not {self.rules_out_failures:g}")
        _check_seeds(self)
        _check_endpoint(self)
        _check_solved(self)

    def frees(self) -> dict[str, str]:
        """The key that is solved for each arm that has one."""
        if self.match is None or self.free is None:
            return {}
        if isinstance(self.free, str):
            return {arm.name: self.free for arm in self.arms if arm.name != self.baseline}
        return dict(self.free)

    def configs(self) -> dict[str, Config]:
        """Each arm's configuration, the baseline first.

        Raises:
          ConfigError: an unknown key, or an invalid configuration; the message names the arm.
        """
        arms = sorted(self.arms, key=lambda arm: arm.name != self.baseline)
        return {arm.name: _named(arm.name, self.base, arm.changes) for arm in arms}

    def replaced(self) -> tuple[str, ...]:
        """The settings that a sweep or the tuning sets, whatever an arm says."""
        tuning = self.tuning
        if tuning is None:
            return (RATE,) if self.learning_rates else ()
        return (
            RATE,
            *(("optimizer.weight_decay",) if tuning.weight_decays else ()),
            *(("schedule.warmup",) if tuning.warmups else ()),
        )


def _check_seeds(study: Study) -> None:
    seeds, tuning = study.seeds, study.tuning
    if len(set(seeds)) != len(seeds) or not seeds:
        raise ConfigError(f"a study needs seeds that are all different, not {seeds}")
    if seeds != tuple(range(seeds[0], seeds[0] + len(seeds))):
        raise ConfigError(
            f"the seeds {seeds} look picked: name the first and how many, as in"
            f" seeds=tuple(range({min(seeds)}, {min(seeds) + len(seeds)}))"
        )
    if len(seeds) > study.most_seeds:
        raise ConfigError(f"the first look has {len(seeds)} seeds, more than most_seeds={study.most_seeds}: raise it")
    last = seeds[0] + study.most_seeds + study.fresh_seeds
    for seed in () if tuning is None else tuning.seeds:
        if seeds[0] <= seed < last:
            raise ConfigError(
                f"the tuning seed {seed} is one of the seeds {seeds[0]} to {last - 1} that may decide the verdict:"
                f" choose tuning seeds from {last} on"
            )


def _check_solved(study: Study) -> None:
    """Refuses an arm that sets by hand what the match solves or what the study tunes or sweeps."""
    for key in study.frees().values():
        if key in study.knobs:
            raise ConfigError(f'"{key}" is a knob of the study, so it can\'t be the free width too')
    for arm in study.arms:
        for key in arm.changes:
            if key in study.frees().values():
                raise ConfigError(
                    f'the arm "{arm.name}" sets "{key}" by hand, which the match solves: drop it from the arm, or give'
                    " its start in the base"
                )
            if key in study.replaced():
                raise ConfigError(
                    f'the arm "{arm.name}" sets "{key}", which the study tunes or sweeps for every arm: drop one'
                )


def _check_endpoint(study: Study) -> None:
    """Refuses an endpoint that the study does not measure, and a sweep that the endpoint does not use."""
    endpoint, probe = study.endpoint, study.probe
    if study.learning_rates and not isinstance(endpoint, RateSensitivity):
        raise ConfigError(
            "learning_rates is the sweep of the endpoint RateSensitivity(): use tuning=Tuning(rates=...) to find each"
            " arm's learning rate, or declare that endpoint"
        )
    if isinstance(endpoint, RateSensitivity) and len(study.learning_rates) < 2:
        raise ConfigError("the endpoint RateSensitivity() needs a sweep: give two or more learning_rates")
    if isinstance(endpoint, RateSensitivity) and study.tuning is not None:
        raise ConfigError("the endpoint RateSensitivity() compares all rates of its sweep: leave tuning out")
    if isinstance(endpoint, LongLoss) and endpoint.factor not in study.extrapolation:
        raise ConfigError(
            f"the endpoint is the loss at {endpoint.factor} × the context, which nothing measures: add"
            f" {endpoint.factor} to extrapolation"
        )
    if isinstance(endpoint, ProbeAccuracy) and (
        probe is None or not probe.data or (endpoint.x is not None and endpoint.x not in probe.data)
    ):
        known = "has no probe" if probe is None else f"has a probe at {', '.join(map(str, probe.data))} only"
        wanted = "" if endpoint.x is None else f" at {endpoint.x}"
        raise ConfigError(f"the endpoint is the accuracy of a probe{wanted}, and the study {known}: add it there")
    last = None
    if isinstance(endpoint, PositionLoss):
        last = endpoint.first if endpoint.stop is None else endpoint.stop - 1
    if last is not None and last >= study.base.model.context_length:
        raise ConfigError(
            f"the endpoint reads position {last}, and the context has {study.base.model.context_length}, counted from"
            " 0: choose positions within it"
        )


def covers(knob: str, key: str) -> bool:
    """Whether the setting `key` is `knob` or belongs to the group `knob`."""
    return key == knob or key.startswith(knob + ".")


# ── settings by dotted key ───────────────────────────────────────────────────────────────────────────────────────────


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def change(config: Config, changes: Mapping[str, Any]) -> Config:
    """`config` with settings replaced, by dotted key, in their order.

    Raises:
      ConfigError: an unknown key (with the nearest real one), or an invalid combination.
    """
    values = to_dict(config)
    for key, value in changes.items():
        *groups, name = key.split(".")
        place = values
        for group in groups:
            if not isinstance(place, dict) or group not in place:
                raise ConfigError(f'unknown setting "{key}"{nearest(key, flatten(values))}')
            place = place[group]
        if not isinstance(place, dict) or (name not in place and not key.startswith("model.letters.")):
            raise ConfigError(f'unknown setting "{key}"{nearest(key, flatten(values))}')
        old = place[name] if name in place else None
        is_tagged = isinstance(old, Mapping) and "type" in old
        place[name] = {"type": "none"} if value is None and is_tagged else _plain(value)
    return from_dict(Config, values)


def _named(name: str, base: Config, changes: Mapping[str, Any]) -> Config:
    try:
        return change(base, changes)
    except ConfigError as error:
        raise ConfigError(f'the arm "{name}": {error}') from None
