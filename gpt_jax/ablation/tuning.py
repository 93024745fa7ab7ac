"""Which settings the tuning of a study tries next, and which one each arm has at the end: pure functions of the losses
of the trials that have finished, so that a study that was killed goes on alike.

A setting is a `Trial` without its loss. A loss is the mean over the tuning seeds, in nats per token, and infinite where
one of them failed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpt_jax.ablation.schema import Trial, Tuned
from gpt_jax.ablation.study import Study, Tuning

Losses = Mapping[Trial, float]


@dataclass(frozen=True)
class Search:
    """The settings that each arm tries, equally many for all, in their order. `is_over` says that all of them have
    losses and that no other one follows.
    """

    tried: dict[str, tuple[Trial, ...]]
    is_over: bool


def search(study: Study, losses: Mapping[str, Losses]) -> Search:
    """The settings tried so far and those to try next, given the losses by arm of what has finished.

    The search is replayed from its first grid, so that it does not depend on the order in which runs finished.
    """
    tuning, start = _tuning(study), _start(study)
    names = [arm.name for arm in study.arms]
    tried = {name: [replace(start, learning_rate=rate) for rate in sorted(tuning.rates)] for name in names}
    for _ in range(tuning.rounds if len(tuning.rates) > 1 else 0):
        if _is_open(tried, losses):
            return _search(tried, False)
        if not any(is_at_edge(tried[name], losses[name]) for name in names):
            break
        for name in names:
            tried[name].append(replace(start, learning_rate=_next_rate(tried[name], losses[name])))
    further: dict[str, tuple[Any, ...]] = {"weight_decay": tuning.weight_decays, "warmup": tuning.warmups}
    for key, values in further.items():
        if not values:
            continue
        if _is_open(tried, losses):
            return _search(tried, False)
        for name in names:
            at_best = best(tried[name], losses[name])
            more = [replace(at_best, **{key: value}) for value in dict.fromkeys(values)]
            tried[name] += [setting for setting in more if setting not in tried[name]]
    return _search(tried, not _is_open(tried, losses))


def tuned(tried: Sequence[Trial], losses: Losses, is_over: bool, runs: int = 0, seconds: float = 0.0) -> Tuned:
    """The record of an arm's tuning: `runs` and `seconds` are what it took. Nothing is chosen before it `is_over`."""
    return Tuned(
        trials=tuple(_with_loss(setting, losses) for setting in tried if setting in losses),
        best=_with_loss(best(tried, losses), losses) if is_over else None,
        is_at_edge=is_over and is_at_edge(tried, losses),
        runs=runs,
        seconds=round(seconds, 2),
    )


def best(tried: Sequence[Trial], losses: Losses) -> Trial:
    """The setting of the least loss; of equal ones that of the lowest rate, which is the one to go on from where all
    failed.
    """
    return min(tried, key=lambda setting: (losses[setting], setting.learning_rate))


def is_at_edge(tried: Sequence[Trial], losses: Losses) -> bool:
    """Whether the best rate is the lowest or the highest of those tried."""
    rates = _rates(tried)
    return best(tried, losses).learning_rate in (rates[0], rates[-1])


def changes(setting: Trial) -> dict[str, float | int]:
    """Dotted key → value of what a setting sets in a configuration."""
    found = {
        "optimizer.learning_rate": setting.learning_rate,
        "optimizer.weight_decay": setting.weight_decay,
        "schedule.warmup": setting.warmup,
    }
    return {key: value for key, value in found.items() if value is not None}


def _start(study: Study) -> Trial:
    """Decay and warm-up of the rates' trials, where these are tuned: the base's for every arm, so that all arms try
    equally many.
    """
    tuning, base = _tuning(study), study.base
    decay = getattr(base.optimizer, "weight_decay", None) if tuning.weight_decays else None
    warmup = getattr(base.schedule, "warmup", None) if tuning.warmups else None
    return Trial(learning_rate=base.optimizer.learning_rate, weight_decay=decay, warmup=warmup)


def _next_rate(tried: Sequence[Trial], losses: Losses) -> float:
    """Beyond the edge at which the best lies, by the grid's last step; else between the best and its better neighbour.
    Both are geometric.
    """
    rates, at_best = _rates(tried), best(tried, losses)
    i, rate = rates.index(at_best.learning_rate), at_best.learning_rate
    if i == 0:
        return _rounded(rate * rate / rates[1])
    if i == len(rates) - 1:
        return _rounded(rate * rate / rates[i - 1])
    neighbours = [replace(at_best, learning_rate=other) for other in (rates[i - 1], rates[i + 1])]
    return _rounded(math.sqrt(rate * best(neighbours, losses).learning_rate))


def _rounded(rate: float) -> float:
    """The rate as messages and names of folders print it, so that what is read there is what ran."""
    return float(f"{rate:g}")


def _rates(tried: Sequence[Trial]) -> list[float]:
    return sorted({setting.learning_rate for setting in tried})


def _is_open(tried: Mapping[str, Sequence[Trial]], losses: Mapping[str, Losses]) -> bool:
    return any(setting not in losses.get(name, {}) for name, settings in tried.items() for setting in settings)


def _with_loss(setting: Trial, losses: Losses) -> Trial:
    return replace(setting, loss=losses[setting] if math.isfinite(losses[setting]) else None)


def _search(tried: Mapping[str, Sequence[Trial]], is_over: bool) -> Search:
    return Search({name: tuple(settings) for name, settings in tried.items()}, is_over)


def _tuning(study: Study) -> Tuning:
    assert study.tuning is not None, "a study without tuning searches nothing"
    return study.tuning
