"""A study's claim: what is frozen into `claim.json` before the first run, what was changed since, and what came out.

The file holds all that it takes to run the study again (`reproduce`). Its part `frozen` is never written again once a
run of the verdict has finished; `frozen_hash` shows whether somebody edited it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpt_jax import config as configuration
from gpt_jax.ablation import records
from gpt_jax.ablation.endpoint import Endpoint, Suite
from gpt_jax.ablation.schema import Interval, Number
from gpt_jax.ablation.study import Arm, Probe, Study, Tuning
from gpt_jax.config import Config, DataConfig
from gpt_jax.config.code import code_hashes, digest
from gpt_jax.config.conversion import convert, from_dict, to_dict
from gpt_jax.config.errors import ConfigError, MissingFile
from gpt_jax.config.foreign import well_formed
from gpt_jax.config.variant import Variant
from gpt_jax.runs.address import DECIDING
from gpt_jax.runs.folder import RunFolder, Workdir

CLAIM = "claim.json"
JUDGING = ("gpt_jax.ablation.verdict", "gpt_jax.ablation.secondary")  # which import the statistics


# ── what the file holds ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class ClaimedArm:
    """An arm in its own words: dotted key → plain value, or {"dataclass": its name, "settings": …}."""

    name: str
    changes: Mapping[str, Any]
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ClaimedProbe:
    """The data of a study's probe by x, in plain form."""

    label: str
    data: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class ClaimedStudy:
    """A `Study` as JSON holds it, field by field, and the hash of the data's content."""

    question: str
    endpoint: Mapping[str, Any]
    smallest_difference: float | int
    baseline: str
    arms: tuple[ClaimedArm, ...]
    knobs: tuple[str, ...]
    seeds: tuple[int, ...]
    most_seeds: int
    fails_above: float | int | None = None
    rules_out_failures: float
    tuning: Tuning | None = None
    learning_rates: tuple[float | int, ...] = ()
    match: str | None = None
    free: Any = None  # a key, or arm → key
    free_bounds: tuple[int, int] | None = None
    extrapolation: tuple[int, ...] = ()
    probe: ClaimedProbe | None = None
    secondary: tuple[Suite, ...] = ()
    fresh_seeds: int
    aa: bool
    is_smoke: bool
    base: Mapping[str, Any]
    data_hash: str | None = None


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """The claim itself. `code` is a hash of the code that decides numbers and verdicts, `devices` names the kinds of
    device of the process that wrote it, and `runs_before` counts the runs of the verdict that had finished before.
    """

    study: ClaimedStudy
    is_forced: bool = False
    command: str | None = None
    time: str
    code: str
    git: str | None = None
    versions: Mapping[str, str]
    devices: tuple[str, ...]
    runs_before: int = 0


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of the claim after runs had finished: `what` went from `before` to `after`, in words (None: absent).
    `is_seen` says whether somebody had looked at results.
    """

    time: str
    what: str
    before: str | None
    after: str | None
    runs_done: int
    is_seen: bool


@dataclass(frozen=True, kw_only=True)
class ArmOutcome:
    """An arm's values by seed, and its difference from the baseline with what was decided on it; `answers` are the
    accuracies by secondary endpoint and seed.
    """

    values: Mapping[str, float | None]
    answers: Mapping[str, Mapping[str, float | None]] = dataclasses.field(default_factory=dict)
    difference: Number | None = None
    interval: Interval | None = None
    p: float | None = None
    verdict: str | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class AddressedRun:
    """A run of the verdict, and the parts of its address that not all runs share."""

    arm: str
    seed: int
    learning_rate: float
    parts: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class ClaimOutcome:
    """What came of the study. `shared` are the parts that the addresses of all `runs` (folder → run) have in common,
    `together` the seeds in one program.
    """

    time: str
    verdict: str
    arms: Mapping[str, ArmOutcome]
    together: int = 1
    shared: Mapping[str, Mapping[str, Any]]
    runs: Mapping[str, AddressedRun]
    versions: Mapping[str, str]
    devices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """`claim.json`. `present` is the study as it runs now, where it is not the frozen one."""

    frozen: Frozen
    frozen_hash: str
    present: ClaimedStudy | None = None
    changes: tuple[Change, ...] = ()
    outcome: ClaimOutcome | None = None

    @property
    def study(self) -> ClaimedStudy:
        """The study as it runs now."""
        return self.frozen.study if self.present is None else self.present


# ── the file ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_claim(folder: RunFolder) -> tuple[Claim, bool] | None:
    """The claim in a study's folder, and whether its frozen part is as it was written; None if there is none.

    Raises:
      ConfigError: the file is not a claim.
    """
    if not folder.exists(CLAIM):
        return None
    found = folder.read_json(CLAIM)
    claim = records.from_json(Claim, found, str(folder.file(CLAIM)))
    return claim, claim.frozen_hash == _hash(found["frozen"])


def open_claim(file: Workdir) -> Claim:
    """The claim in a file, which need not lie in a study's folder.

    Raises:
      MissingFile: there is no such file.
      ConfigError: it is not a claim, or was edited.
    """
    place = RunFolder(file)
    folder = RunFolder(place.path.parent)
    if not place.path.exists():
        raise MissingFile(f"there is no file {place}: give the {CLAIM} of a study")
    found = folder.read_json(place.path.name)
    claim = records.from_json(Claim, found, str(place))
    if claim.frozen_hash != _hash(found["frozen"]):
        raise ConfigError(f"{place} was edited after it was written: restore the claim that the study began with")
    return claim


def write_frozen(folder: RunFolder, frozen: Frozen) -> Claim:
    """Writes a new claim."""
    claim = Claim(frozen=frozen, frozen_hash=_hash(json.loads(json.dumps(dataclasses.asdict(frozen)))))
    records.write(claim, folder, CLAIM)
    return claim


def update(folder: RunFolder, **parts: Any) -> None:
    """Replaces other parts than `frozen` of the claim in the folder."""
    plain = json.loads(json.dumps({name: _plain_part(part) for name, part in parts.items()}))
    folder.write_json(CLAIM, folder.read_json(CLAIM) | plain)


def _plain_part(part: Any) -> Any:
    return [dataclasses.asdict(x) for x in part] if isinstance(part, tuple) else part and dataclasses.asdict(part)


def _hash(frozen: Mapping[str, Any]) -> str:
    return digest(json.dumps(frozen, sort_keys=True))


def code_address() -> str:
    """A hash of the code that decides numbers and verdicts."""
    return digest(json.dumps(code_hashes(*DECIDING, *JUDGING)))


# ── a study as JSON, and back ────────────────────────────────────────────────────────────────────────────────────────


def claimed(study: Study, data_hash: str | None) -> ClaimedStudy:
    """The study in plain form; `study_from_claim` is the inverse."""
    own = {field.name: getattr(study, field.name) for field in dataclasses.fields(Study)}
    probe = study.probe
    return ClaimedStudy(
        **own
        | {
            "endpoint": to_dict(study.endpoint),
            "arms": tuple(
                ClaimedArm(name=arm.name, changes={k: _packed(v) for k, v in arm.changes.items()}, parts=arm.parts)
                for arm in study.arms
            ),
            "free": study.free if study.free is None or isinstance(study.free, str) else dict(study.free),
            "probe": None
            if probe is None
            else ClaimedProbe(label=probe.label, data={str(x): to_dict(data) for x, data in probe.data.items()}),
            "base": to_dict(study.base),
        },
        data_hash=data_hash,
    )


def study_from_claim(claim: ClaimedStudy) -> Study:
    """The study of which `claim` is the plain form.

    Raises:
      ConfigError: a setting is not known to this version, or the study is invalid.
    """
    with well_formed("the claim"):
        return _study(claim)


def _study(claim: ClaimedStudy) -> Study:
    own = {field.name: getattr(claim, field.name) for field in dataclasses.fields(Study)}
    probe = claim.probe
    return Study(
        **own
        | {
            "endpoint": convert(claim.endpoint, Endpoint, "endpoint"),
            "arms": tuple(Arm(a.name, {k: _unpacked(v) for k, v in a.changes.items()}, a.parts) for a in claim.arms),
            "probe": None
            if probe is None
            else Probe(probe.label, {int(x): convert(d, DataConfig, "data") for x, d in probe.data.items()}),
            "base": from_dict(Config, claim.base),
        }
    )


def _packed(value: Any) -> Any:
    """An arm's value in plain form. A dataclass keeps its name: the fields that it leaves at their defaults were not
    asked for, unlike all those of a group.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"dataclass": type(value).__name__, "settings": to_dict(value)}
    if isinstance(value, Mapping):
        return {key: _packed(item) for key, item in value.items()}
    return [_packed(item) for item in value] if isinstance(value, list | tuple) else value


def _unpacked(value: Any) -> Any:
    if isinstance(value, Mapping) and "dataclass" in value:
        return from_dict(_kind(value["dataclass"]), value["settings"])
    if isinstance(value, Mapping):
        return {key: _unpacked(item) for key, item in value.items()}
    return tuple(_unpacked(item) for item in value) if isinstance(value, list) else value


def _kind(name: str) -> Any:
    """The dataclass of a configuration by its name."""
    for kind in Variant.__subclasses__():
        if name in kind.choices:
            return kind.choices[name]
    if not dataclasses.is_dataclass(getattr(configuration, str(name), None)):
        raise ConfigError(f"the claim uses {name}, which is not known: define it before the claim is read")
    return getattr(configuration, name)
