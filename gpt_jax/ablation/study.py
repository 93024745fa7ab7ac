"""A study: one question, one knob, arms that differ in it alone.

    study = Study(
        question="What do fewer key/value heads cost?",
        base=config,
        arms=vary("model.attention.kv_heads", mha=4, gqa=2, mqa=1),
        baseline="mha",
        knobs=("model.attention.kv_heads",),
        smallest_difference=0.01,
    )

An arm is a name and the settings in which it differs from `base`, by dotted key. `vary` makes arms of one key's values;
`product`, `chain`, `zip_arms` and `with_changes` combine arms.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gpt_jax.ablation.endpoint import Endpoint, FinalLoss
from gpt_jax.ablation.statistics import FAILURES_RULED_OUT, MOST_SEEDS
from gpt_jax.config import Config, DataConfig
from gpt_jax.config.conversion import flatten, from_dict, join, to_dict
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
    while any arm's best is at an edge. `weight_decays` and `warmups` are tried afterwards, one after the other, at the
    best so far (empty: not tuned). Each setting is run with each of `seeds`.
    """

    rates: tuple[float, ...]
    weight_decays: tuple[float, ...] = ()
    warmups: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (1000,)
    rounds: int = 2


@dataclass(frozen=True)
class Study:
    """A question and the runs that answer it; `check` refuses arms that differ in more than the question.

    `knobs` are the dotted keys, or groups of keys, in which arms may differ. `endpoint` decides the verdict, and
    `smallest_difference`, in its unit, is the smallest that matters. `seeds` are those of the first look; more may be
    added later, up to `most_seeds`. A run failed if it diverged or its final validation loss is above `fails_above`;
    "no difference" must rule out that a share of `rules_out_failures` of an arm's seeds fails. `tuning` finds each
    arm's learning rate first (None: all have the base's). `learning_rates` is the grid that the endpoint
    `RateSensitivity` sweeps. `match` solves the key `free`, an integer such as "model.mlp.width", for each arm so that
    its cost is the baseline's; `free` may map arms' names to keys, and `free_bounds` allows values of it beyond a
    quarter to four times its start. `extrapolation` evaluates at these multiples of the training context.
    `fresh_seeds` further runs of the baseline measure the noise; `aa` repeats a run of the baseline, which must come
    out bit-equal. `is_smoke` is a tiny size that decides nothing.
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
        if not self.smallest_difference > 0:
            raise ConfigError("the smallest difference that matters must be positive: say how many nats would matter")
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise ConfigError(f"a study needs seeds that are all different, not {self.seeds}")
        for key in self.frees().values():
            if key in self.knobs:
                raise ConfigError(f'"{key}" is a knob of the study, so it can\'t be the free width too')

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

    def declared(self) -> tuple[str, ...]:
        """The keys in which arms may differ: the knobs, the free widths, and the learning rate where it is swept."""
        return (*self.knobs, *sorted(set(self.frees().values())), *((RATE,) if self.learning_rates else ()))

    def check(self, configs: Mapping[str, Config]) -> None:
        """Checks that the arms' resolved configurations differ in the declared keys alone.

        Raises:
          ConfigError: an arm differs from the baseline in another key, or two arms are equal.
        """
        declared, baseline = self.declared(), configs[self.baseline]
        known = {key for config in configs.values() for key in _keys(to_dict(config))}
        for knob in declared:
            if knob not in known:
                raise ConfigError(f'the knob "{knob}" is not a setting of any arm{nearest(knob, known)}')
        seen: dict[str, str] = {}
        for name, config in configs.items():
            if rest_hash(config, declared) != rest_hash(baseline, declared):
                others = undeclared(baseline, config, declared)
                raise ConfigError(
                    f'the arm "{name}" differs from "{self.baseline}" in {", ".join(others)}, which the study does not'
                    " declare: add to `knobs` what is part of the question, or make it equal"
                )
            text = json.dumps(to_dict(config), sort_keys=True)
            if text in seen:
                raise ConfigError(f'the arms "{seen[text]}" and "{name}" are the same: change or drop one')
            seen[text] = name


def _keys(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The dotted keys of all settings and groups."""
    for key, item in values.items():
        yield join(path, key)
        if isinstance(item, Mapping):
            yield from _keys(item, join(path, key))


def _covers(knob: str, key: str) -> bool:
    return key == knob or key.startswith(knob + ".")


def _rest(config: Config, declared: Iterable[str]) -> dict[str, Any]:
    declared = tuple(declared)
    return {k: v for k, v in flatten(to_dict(config)).items() if not any(_covers(knob, k) for knob in declared)}


def rest_hash(config: Config, declared: Iterable[str]) -> str:
    """A hash of everything in a configuration but the declared keys."""
    return hashlib.sha256(json.dumps(_rest(config, declared), sort_keys=True).encode()).hexdigest()[:16]


def undeclared(baseline: Config, config: Config, declared: Iterable[str]) -> list[str]:
    """`key: old → new` for each difference outside of the declared keys."""
    old, new = _rest(baseline, tuple(declared)), _rest(config, tuple(declared))
    keys = [*old, *(key for key in new if key not in old)]
    pairs = {key: (old[key] if key in old else None, new[key] if key in new else None) for key in keys}
    return [f"{key}: {a!r} → {b!r}" for key, (a, b) in pairs.items() if a != b]


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


# ── combining arms ────────────────────────────────────────────────────────────────────────────────────────────────────


def vary(key: str, values: Mapping[str, Any] | None = None, /, **more: Any) -> Arms:
    """An arm for each named value of one key."""
    return tuple(Arm(name, {key: value}) for name, value in {**(values or {}), **more}.items())


def chain(*groups: Arms) -> Arms:
    """All arms, one group after the other.

    Raises:
      ConfigError: two arms of one name.
    """
    arms = tuple(itertools.chain(*groups))
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f'chain has two arms of the name "{name}": rename one')
    return arms


def product(*groups: Arms) -> Arms:
    """Every combination of one arm of each group, named "a+b".

    Raises:
      ConfigError: two groups that set the same key.
    """
    return tuple(_combined(arms) for arms in itertools.product(*groups))


def zip_arms(*groups: Arms) -> Arms:
    """The first of each group together, then the second of each, and so on.

    Raises:
      ConfigError: groups of different sizes, or two that set the same key.
    """
    sizes = [len(group) for group in groups]
    if len(set(sizes)) > 1:
        raise ConfigError(f"zip_arms needs groups of one size, not of {', '.join(map(str, sizes))} arms")
    return tuple(_combined(arms) for arms in zip(*groups, strict=True))


def with_changes(arms: Arms, changes: Mapping[str, Any]) -> Arms:
    """The arms with `changes` added, which replace an arm's own values of the same keys."""
    return tuple(dataclasses.replace(arm, changes={**arm.changes, **changes}) for arm in arms)


def _combined(arms: tuple[Arm, ...]) -> Arm:
    changes: dict[str, Any] = {}
    for arm in arms:
        for key in arm.changes:
            if any(_covers(key, other) or _covers(other, key) for other in changes):
                raise ConfigError(f'"{key}" is set by two of the arms {", ".join(a.name for a in arms)}: drop one')
        changes |= arm.changes
    return Arm("+".join(arm.name for arm in arms), changes, tuple(arm.name for arm in arms))
