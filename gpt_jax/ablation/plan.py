"""Which runs a study is: every arm × learning rate × seed, each in a folder named by what decides its numbers."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax

from gpt_jax.ablation import guard
from gpt_jax.ablation.addresses import measurement_address, planned_address
from gpt_jax.ablation.matching import Matched, match_arms
from gpt_jax.ablation.results import RUNS
from gpt_jax.ablation.schema import ArmRecord, Budget, Grouping, Leaf, Origin, PlannedRunRecord, Setup, StudyRecord
from gpt_jax.ablation.study import RATE, Study, change
from gpt_jax.config import Config, learned_positions
from gpt_jax.config.conversion import config_hash, difference, flatten, to_dict
from gpt_jax.config.errors import ConfigError
from gpt_jax.data import Data, open_data
from gpt_jax.data.tasks import make_task
from gpt_jax.runs.address import Address, base_content
from gpt_jax.training.resolve import resolve

AA = "A/A"

Purpose = Literal["arm", "noise", "aa"]


@dataclass(frozen=True)
class PlannedRun:
    """One run: `config` as `gpt_jax.train` takes it, `resolved` with all that is derived, `folder` below the study's
    `runs/`. `purpose` is to measure its arm, the noise of the baseline, or that a copy of the baseline is bit-equal.
    `group` are the seeds that train in one program with it, its own included. `measured_by` is the address of its
    measurements; speed and memory are measured of an arm's first run (`is_first`).
    """

    arm: str
    seed: int
    learning_rate: float
    purpose: Purpose
    config: Config
    resolved: Config
    folder: str
    group: tuple[int, ...]
    address: Address
    measured_by: str
    is_first: bool

    @property
    def name(self) -> str:
        """What a message calls it."""
        return f"{self.arm}, seed {self.seed}, learning rate {self.learning_rate:g}"


@dataclass(frozen=True)
class StudyPlan:
    """A checked study: its matched arms, the baseline first, and all its runs in their order, in groups that train
    together. `leaves` are the settings in which each arm differs from the baseline, and who asked for them; `unit` is
    that of the endpoint's values.
    """

    study: Study
    arms: dict[str, Matched]
    groups: tuple[tuple[PlannedRun, ...], ...]
    data_hash: str
    leaves: dict[str, tuple[Leaf, ...]]
    setup: Setup
    unit: str

    @property
    def runs(self) -> list[PlannedRun]:
        """All runs, in their order."""
        return [run for group in self.groups for run in group]

    def changes(self, arm: str) -> dict[str, Any]:
        """Dotted key → value of the arm, where it differs from the baseline's; settings of a type that the arm does
        not have are left out.
        """
        config = self.arms[arm].config
        settings, pairs = flatten(to_dict(config)), difference(self.arms[self.study.baseline].config, config)
        return {key: value for key, (_, value) in pairs.items() if key in settings}


def make_plan(study: Study, together: int = 1) -> StudyPlan:
    """Checks the study, opens its data, matches its budgets and lists its runs: all arms of the first `together`
    seeds, then of the next.

    Raises:
      ConfigError: the study or one of its arms is invalid; see `Study`.
    """
    configs, opened = study.configs(), _Opened()
    sized = {name: _sized(config, opened.of(config)) for name, config in configs.items()}
    lengths = {name: opened.of(config).row_length for name, config in configs.items()}
    arms = match_arms(study, sized, lengths)
    _check_probe(study, sized)
    resolved = {name: resolve(arm.config, opened.of(arm.config)) for name, arm in arms.items()}
    data = {name: opened.of(arm.config) for name, arm in arms.items()}
    leaves = guard.check_knobs(study, resolved)
    unit = guard.check_text(study, resolved, data)
    guard.check_different(arms, resolved, data)
    setup = _setup(resolved[study.baseline], data[study.baseline])
    groups, seeds = [], _cut(study.seeds, together)

    def group(arm: str, config: Config, part: tuple[int, ...], rate: float, purpose: Purpose) -> tuple[PlannedRun, ...]:
        return tuple(_run(study, arm, config, seed, part, rate, purpose, opened) for seed in part)

    for part in seeds:
        for name, arm in arms.items():
            for rate in study.learning_rates or (_rate(arm.config),):
                groups.append(group(name, arm.config, part, rate, "arm"))
    baseline = arms[study.baseline].config
    rates = sorted(study.learning_rates) or [_rate(baseline)]
    rate = _rate(baseline) if _rate(baseline) in rates else rates[(len(rates) - 1) // 2]
    if study.aa:
        # Early: if it fails, nothing else can be believed. Its pair is the baseline's run of the same seed and rate.
        groups.insert(len(arms) * len(rates), group(AA, baseline, seeds[0], rate, "aa"))
    fresh = range(max(study.seeds) + 1, max(study.seeds) + 1 + study.fresh_seeds)
    groups += [group(study.baseline, baseline, part, rate, "noise") for part in _cut(fresh, together)]
    return StudyPlan(study, arms, tuple(groups), data[study.baseline].content_hash, leaves, setup, unit)


def _setup(config: Config, data: Data) -> Setup:
    model, train = config.model, config.train
    stored = "" if model.param_dtype == model.dtype else f", parameters {model.param_dtype}"
    products = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return Setup(
        steps=train.steps,
        batch_size=train.batch_size,
        context_length=data.row_length,
        tokens=train.steps * train.batch_size * data.row_length,
        validation_tokens=data.validation_tokens,
        precision=f"{model.dtype}{stored}" + (f", matrix products {products}" if products else ""),
    )


def _cut(seeds: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(seeds[i : i + size]) for i in range(0, len(seeds), size)]


class _Opened:
    """Data and base runs that were opened already. One seed does for all: the order of rows does not matter here."""

    def __init__(self) -> None:
        self._known: dict[str, Data] = {}
        self._contents: dict[str, str] = {}

    def of(self, config: Config) -> Data:
        key = json.dumps([to_dict(config.data), config.model.context_length], sort_keys=True)
        if key not in self._known:
            self._known[key] = open_data(config.data, config.model.context_length, 0)
        return self._known[key]

    def content_of(self, init_from: str) -> str:
        """See `base_content`."""
        if init_from not in self._contents:
            self._contents[init_from] = base_content(init_from)
        return self._contents[init_from]


def _check_probe(study: Study, configs: Mapping[str, Config]) -> None:
    for x, other in {}.items() if study.probe is None else study.probe.data.items():
        task = make_task(other)
        for name, config in configs.items():
            known, positions = config.model.vocab_size or 0, learned_positions(config.model) or task.length
            if task.vocab_size > known or task.length > positions:
                raise ConfigError(
                    f"the probe at {x} has {task.vocab_size} symbols and rows of {task.length}, more than the arm"
                    f' "{name}" knows ({known} symbols): use the training task with other numbers only'
                )


def _sized(config: Config, data: Data) -> Config:
    size = resolve(config, data).model.vocab_size
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


def _rate(config: Config) -> float:
    return config.optimizer.learning_rate


def _run(
    study: Study, arm: str, config: Config, seed: int, group: tuple[int, ...], rate: float, purpose: Purpose,
    opened: _Opened,
) -> PlannedRun:  # fmt: skip
    data = opened.of(config)
    config = change(config, {"seed": seed, RATE: rate})
    resolved = resolve(config, data)
    base = None if config.init_from is None else opened.content_of(config.init_from)
    address = planned_address(resolved, data.content_hash, base, purpose == "aa", group)
    slug = re.sub(r"[^A-Za-z0-9.+_-]+", "-", arm)
    folder = f"{slug}-seed{seed}-lr{rate:g}-{address.hash}"
    is_first = seed == study.seeds[0] and purpose == "arm"
    measured_by = measurement_address(address, study, is_first)
    return PlannedRun(arm, seed, rate, purpose, config, resolved, folder, group, address, measured_by, is_first)


def describe(plan: StudyPlan, origin: Origin, grouping: Grouping, forced: bool) -> StudyRecord:
    """The plan as `study.json` holds it; `forced` ranks arms off the budget too."""
    study, parts = plan.study, {arm.name: arm.parts for arm in plan.study.arms}
    free = sorted(set(study.frees().values()))
    return StudyRecord(
        question=study.question,
        endpoint=to_dict(study.endpoint),
        metric=study.endpoint.words,
        unit=plan.unit,
        lower_is_better=study.endpoint.lower_is_better,
        smallest_difference=study.smallest_difference,
        planned_seeds=len(study.seeds),
        most_seeds=study.most_seeds,
        fails_above=study.fails_above,
        rules_out_failures=study.rules_out_failures,
        setup=plan.setup,
        baseline=study.baseline,
        seeds=study.seeds,
        learning_rates=study.learning_rates,
        budget=Budget(study.match, ", ".join(free) if free else None),
        probe=None if study.probe is None else study.probe.label,
        arms=tuple(
            ArmRecord(
                name=name,
                changes=plan.changes(name),
                leaves=plan.leaves[name],
                parts=parts[name],
                parameters=arm.costs.parameters,
                parameters_non_embedding=arm.costs.parameters_non_embedding,
                flops_per_token=arm.costs.flops_per_token,
                kv_bytes_per_token=arm.costs.kv_bytes_per_token,
                tokens=arm.costs.tokens,
                flops=arm.costs.flops,
                budget_ratio=arm.ratio,
                is_ranked=arm.is_ranked or forced,
                config=to_dict(arm.config),
            )
            for name, arm in plan.arms.items()
        ),
        runs=tuple(
            PlannedRunRecord(
                arm=run.arm,
                seed=run.seed,
                learning_rate=run.learning_rate,
                purpose=run.purpose,
                folder=f"{RUNS}/{run.folder}",
                steps=run.config.train.steps,
                config_hash=config_hash(run.resolved),
                together=len(run.group),
            )
            for run in plan.runs
        ),
        is_smoke=study.is_smoke,
        is_forced=forced,
        together=grouping,
        repeat=dataclasses.replace(origin, data_hash=plan.data_hash),
    )
