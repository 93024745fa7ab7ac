"""A study's plan: what is checked before its first run, its arms, its runs, and the record of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from gpt_jax.ablation import guard
from gpt_jax.ablation.answers import Case, check_arms
from gpt_jax.ablation.endpoint import LongLoss
from gpt_jax.ablation.matching import Matched, match_arms
from gpt_jax.ablation.planned import Group, Opened, PlannedRun, Planner
from gpt_jax.ablation.schema import (
    RUNS,
    ArmRecord,
    Budget,
    Grouping,
    Leaf,
    Origin,
    PlannedRunRecord,
    SecondaryEndpoint,
    Setup,
    StudyRecord,
    Tuned,
)
from gpt_jax.ablation.study import Study
from gpt_jax.ablation.tuning import search
from gpt_jax.config import Config, learned_positions
from gpt_jax.config.conversion import config_hash, difference, flatten, to_dict
from gpt_jax.config.errors import ConfigError
from gpt_jax.data import Data
from gpt_jax.data.tasks import make_task
from gpt_jax.runs.questions import check_suites
from gpt_jax.training.resolve import resolve


@dataclass(frozen=True)
class StudyPlan:
    """A checked study: its matched arms, the baseline first, and its runs in their order, in groups that train
    together. `trials` are those of the tuning that are known so far, `groups` those that decide; the latter follow the
    former, and there are none while a study `is_tuning`. `tuned` is the tuning of each arm (empty: the study tunes
    nothing). `leaves` are the settings in which each arm differs from the baseline, and who asked for them; `unit` is
    that of the endpoint's values. `cases` are the secondary endpoints.
    """

    study: Study
    arms: dict[str, Matched]
    trials: tuple[Group, ...]
    groups: tuple[Group, ...]
    tuned: Mapping[str, Tuned]
    data_hash: str
    leaves: dict[str, tuple[Leaf, ...]]
    setup: Setup
    unit: str
    cases: tuple[Case, ...]
    planner: Planner

    @property
    def runs(self) -> list[PlannedRun]:
        """All runs that are known, in their order."""
        return [run for group in (*self.trials, *self.groups) for run in group]

    @property
    def is_tuning(self) -> bool:
        """Whether settings are still to be chosen."""
        return self.study.tuning is not None and not self.groups

    def changes(self, arm: str) -> dict[str, Any]:
        """Dotted key → value of the arm, where it differs from the baseline's; settings of a type that the arm does
        not have are left out.
        """
        config = self.arms[arm].config
        settings, pairs = flatten(to_dict(config)), difference(self.arms[self.study.baseline].config, config)
        return {key: value for key, (_, value) in pairs.items() if key in settings}


def make_plan(study: Study, together: int = 1, shards: int = 1) -> StudyPlan:
    """Checks the study, opens its data, matches its budgets and lists its runs: the first trials of a study that tunes,
    else those that decide, all arms of the first `together` seeds, then of the next. Each of `shards` copies a run.

    Raises:
      ConfigError: the study or one of its arms is invalid; see `Study`.
    """
    configs, opened = study.configs(), Opened()
    sized = {name: _sized(config, opened.of(config)) for name, config in configs.items()}
    lengths = {name: opened.of(config).row_length for name, config in configs.items()}
    arms = match_arms(study, sized, lengths)
    _check_probe(study, sized)
    _check_lengths(study, {name: (arm.config, opened.of(arm.config)) for name, arm in arms.items()})
    resolved = {name: resolve(arm.config, opened.of(arm.config)) for name, arm in arms.items()}
    data = {name: opened.of(arm.config) for name, arm in arms.items()}
    for name, config in resolved.items():
        check_suites(config, data[name])
    leaves = guard.check_knobs(study, resolved)
    unit = guard.check_text(study, resolved, data)
    guard.check_different(arms, resolved, data)
    cases = check_arms(study.secondary, resolved, data, study.baseline)
    setup = _setup(resolved[study.baseline], data[study.baseline])
    planner = Planner(study, arms, opened, together, shards)
    is_tuning = study.tuning is not None
    return StudyPlan(
        study=study,
        arms=arms,
        trials=planner.trials(search(study, {}).tried) if is_tuning else (),
        groups=() if is_tuning else planner.verdict({}),
        tuned={name: Tuned() for name in arms} if is_tuning else {},
        data_hash=data[study.baseline].content_hash,
        leaves=leaves,
        setup=setup,
        unit=unit,
        cases=cases,
        planner=planner,
    )


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


def _check_lengths(study: Study, arms: Mapping[str, tuple[Config, Data]]) -> None:
    """Refuses an endpoint on longer rows that an arm can't read, which would have no value after all runs."""
    if not isinstance(study.endpoint, LongLoss):
        return
    for name, (config, data) in arms.items():
        length, positions = study.endpoint.factor * config.model.context_length, learned_positions(config.model)
        if data.is_task:
            raise ConfigError(
                f"the endpoint is the {study.endpoint.words}, and a task has rows of one length: use text, or a probe"
                " with longer rows"
            )
        if positions is not None and positions < length:
            raise ConfigError(
                f'the endpoint reads rows of {length} tokens, and the arm "{name}" has learned {positions} positions:'
                " give it a longer table, or choose a smaller factor"
            )


def _sized(config: Config, data: Data) -> Config:
    size = resolve(config, data).model.vocab_size
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


def describe(
    plan: StudyPlan, origin: Origin, grouping: Grouping, forced: bool, jobs: int = 1,
    earlier: Sequence[PlannedRunRecord] = (),
) -> StudyRecord:  # fmt: skip
    """The plan as `study.json` holds it; `forced` ranks arms off the budget too. `earlier` are the trials of a tuning
    that is over.
    """
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
        tuning=None if study.tuning is None else dataclasses.asdict(study.tuning),
        budget=Budget(study.match, ", ".join(free) if free else None),
        probe=None if study.probe is None else study.probe.label,
        secondary=tuple(SecondaryEndpoint(c.name, c.suite.name, c.suite.smallest_difference) for c in plan.cases),
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
                tuned=plan.tuned.get(name),
                config=to_dict(arm.config),
            )
            for name, arm in plan.arms.items()
        ),
        runs=(*earlier, *map(planned_record, plan.runs)),
        is_smoke=study.is_smoke,
        is_forced=forced,
        jobs=jobs,
        shards=plan.planner.shards,
        together=grouping,
        repeat=dataclasses.replace(origin, data_hash=plan.data_hash),
    )


def planned_record(run: PlannedRun) -> PlannedRunRecord:
    """The run as `study.json` holds it."""
    return PlannedRunRecord(
        arm=run.arm,
        seed=run.seed,
        learning_rate=run.learning_rate,
        weight_decay=run.setting.weight_decay,
        warmup=run.setting.warmup,
        purpose=run.purpose,
        folder=f"{RUNS}/{run.folder}",
        steps=run.config.train.steps,
        config_hash=config_hash(run.resolved),
        together=len(run.group),
    )
