"""The runs of a study: every arm × learning rate × seed, each in a folder named by what decides its numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gpt_jax.ablation.addresses import measurement_address, planned_address
from gpt_jax.ablation.matching import Matched
from gpt_jax.ablation.schema import Trial
from gpt_jax.ablation.study import Study, change
from gpt_jax.ablation.tuning import changes
from gpt_jax.config import Config
from gpt_jax.config.conversion import to_dict
from gpt_jax.data import Data, open_data
from gpt_jax.runs.address import Address, base_content
from gpt_jax.training.resolve import resolve

AA = "A/A"

Purpose = Literal["tuning", "arm", "noise", "aa"]


@dataclass(frozen=True)
class PlannedRun:
    """One run: `config` as `gpt_jax.train` takes it, `resolved` with all that is derived, `folder` below the study's
    `runs/`. `purpose` is to try the `setting` for its arm, to measure its arm, the noise of the baseline, or that a
    copy of the baseline is bit-equal. `group` are the seeds that train in one program with it, its own included; runs
    of one `part` belong to one shard. `measured_by` is the address of its measurements (None: nothing is measured);
    speed and memory are measured of an arm's first run (`is_first`).
    """

    arm: str
    seed: int
    setting: Trial
    purpose: Purpose
    config: Config
    resolved: Config
    folder: str
    group: tuple[int, ...]
    part: int
    address: Address
    measured_by: str | None
    is_first: bool

    @property
    def learning_rate(self) -> float:
        return self.setting.learning_rate

    @property
    def name(self) -> str:
        """What a message calls it."""
        return f"{self.arm}, seed {self.seed}, {in_words(self.setting)}"


Group = tuple[PlannedRun, ...]


def in_words(setting: Trial) -> str:
    """A setting as messages have it."""
    decay = "" if setting.weight_decay is None else f", weight decay {setting.weight_decay:g}"
    warmup = "" if setting.warmup is None else f", warm-up {setting.warmup}"
    return f"learning rate {setting.learning_rate:g}{decay}{warmup}"


class Opened:
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


@dataclass(frozen=True)
class Planner:
    """Lists the runs of a checked study: the first `together` seeds train together, then the next. Each of `shards`
    has a copy of the baseline at its first seed.
    """

    study: Study
    arms: Mapping[str, Matched]
    opened: Opened
    together: int
    shards: int

    def trials(self, tried: Mapping[str, Sequence[Trial]]) -> tuple[Group, ...]:
        """The runs of the tuning. All trials of an arm belong to one shard."""
        seeds = () if self.study.tuning is None else self.study.tuning.seeds
        found = []
        for part in _cut(seeds, self.together):
            for i, (name, arm) in enumerate(self.arms.items()):
                config = change(arm.config, {"data.held_out": "tuning"})
                found += [self._group(name, config, part, i, setting, "tuning") for setting in tried[name]]
        return tuple(found)

    def verdict(self, chosen: Mapping[str, Trial]) -> tuple[Group, ...]:
        """The runs that decide: all arms of a part of the seeds, then of the next. An arm without a chosen setting has
        the rates of the sweep, or its own.
        """
        study, groups, seeds = self.study, [], _cut(self.study.seeds, self.together)
        baseline = self.arms[study.baseline].config
        own = chosen[study.baseline] if study.baseline in chosen else _middle(_swept(study, baseline), baseline)
        for i, part in enumerate(seeds):
            for name, arm in self.arms.items():
                for setting in [chosen[name]] if name in chosen else _swept(study, arm.config):
                    groups.append(self._group(name, arm.config, part, i, setting, "arm"))
            if study.aa and i < self.shards:
                # Early: if it fails, nothing else can be believed. Its pair is the baseline's run of seed and rate.
                groups.append(self._group(AA, baseline, part, i, own, "aa"))
        fresh = range(max(study.seeds) + 1, max(study.seeds) + 1 + study.fresh_seeds)
        for i, part in enumerate(_cut(fresh, self.together), len(seeds)):
            groups.append(self._group(study.baseline, baseline, part, i, own, "noise"))
        return tuple(groups)

    def _group(
        self, arm: str, config: Config, seeds: tuple[int, ...], part: int, setting: Trial, purpose: Purpose
    ) -> Group:
        return tuple(self._run(arm, config, seed, seeds, part, setting, purpose) for seed in seeds)

    def _run(
        self, arm: str, config: Config, seed: int, group: tuple[int, ...], part: int, setting: Trial, purpose: Purpose
    ) -> PlannedRun:
        data = self.opened.of(config)
        config = change(config, {"seed": seed, **changes(setting)})
        resolved = resolve(config, data)
        base = None if config.init_from is None else self.opened.content_of(config.init_from)
        address = planned_address(resolved, data.content_hash, base, purpose == "aa", group)
        is_first = seed == self.study.seeds[0] and purpose == "arm"
        measured_by = None if purpose == "tuning" else measurement_address(address, self.study, is_first)
        folder = f"{_label(arm, seed, setting)}-{address.hash}"
        return PlannedRun(
            arm, seed, setting, purpose, config, resolved, folder, group, part, address, measured_by, is_first
        )


def _label(arm: str, seed: int, setting: Trial) -> str:
    """What the folders of runs that differ in code, libraries or devices only have in common."""
    slug = re.sub(r"[^A-Za-z0-9.+_-]+", "-", arm)
    decay = "" if setting.weight_decay is None else f"-decay{setting.weight_decay:g}"
    warmup = "" if setting.warmup is None else f"-warmup{setting.warmup}"
    return f"{slug}-seed{seed}-lr{setting.learning_rate:g}{decay}{warmup}"


def _swept(study: Study, config: Config) -> list[Trial]:
    return [Trial(learning_rate=rate) for rate in study.learning_rates or (config.optimizer.learning_rate,)]


def _middle(settings: Sequence[Trial], config: Config) -> Trial:
    """The setting with the configuration's own rate, or the middle one where a sweep leaves that out."""
    own = [setting for setting in settings if setting.learning_rate == config.optimizer.learning_rate]
    ordered = sorted(settings, key=lambda setting: setting.learning_rate)
    return own[0] if own else ordered[(len(ordered) - 1) // 2]


def _cut(seeds: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(seeds[i : i + size]) for i in range(0, len(seeds), size)]


def shard_of(groups: Sequence[Group], shard: tuple[int, int]) -> list[Group]:
    """The groups of `shard` = (i, n): those whose part is i, i + n, i + 2n …"""
    return [group for group in groups if group[0].part % shard[1] == shard[0]]
