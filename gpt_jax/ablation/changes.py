"""In what a study differs from its claim, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gpt_jax.ablation.claim import Change, ClaimedStudy, Frozen
from gpt_jax.ablation.endpoint import Endpoint
from gpt_jax.config.conversion import convert, flatten
from gpt_jax.runs.address import NEUTRAL

Settings = Mapping[str, str | None]  # what → its value in words

WORDS = {
    "question": "the question",
    "smallest_difference": "the margin",
    "baseline": "the baseline",
    "knobs": "the set of knobs",
    "most_seeds": "the largest number of seeds",
    "fails_above": "the loss above which a run failed",
    "rules_out_failures": "the failure rate to rule out",
    "tuning": "the tuning",
    "learning_rates": "the grid of learning rates",
    "match": "the matched cost",
    "free": "the free key",
    "free_bounds": "the range of the free key",
    "extrapolation": "the list of longer contexts",
    "probe": "the probe",
    "secondary": "the set of secondary endpoints",
    "fresh_seeds": "the number of fresh seeds",
    "aa": "the determinism check",
    "data_hash": "the content of the data",
}
CODE, FORCE, SEEDS = "the code", "--force", "the first seed"
# These decide no verdict, or have marks of their own: a change of them is logged and not in the headline.
QUIET = (CODE, FORCE, WORDS["extrapolation"], WORDS["fresh_seeds"])


def settings(frozen: Frozen) -> dict[str, str | None]:
    """All that a claim fixes but the number of seeds, which may grow."""
    study = frozen.study
    found: dict[str, str | None] = {words: _text(getattr(study, name)) for name, words in WORDS.items()}
    found["the endpoint"] = _endpoint(study)
    found[SEEDS] = str(study.seeds[0])
    found |= {
        f'the arm "{arm.name}"': ", ".join(f"{k}={_text(v)}" for k, v in arm.changes.items()) for arm in study.arms
    }
    known = flatten(study.base)
    found |= {key: _text(value) for key, value in known.items() if not _is_neutral(key)}
    return found | {CODE: frozen.code, FORCE: "on" if frozen.is_forced else "off"}


def _endpoint(study: ClaimedStudy) -> str:
    endpoint: Endpoint = convert(study.endpoint, Endpoint, "endpoint")
    return endpoint.words


def _is_neutral(key: str) -> bool:
    return any(key == name or key.startswith(name + ".") for name in NEUTRAL)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return json.dumps(value, default=vars, ensure_ascii=False)


def in_force(settings_then: Settings, changes: Sequence[Change]) -> dict[str, str | None]:
    """The settings of a claim with its recorded changes."""
    return {**settings_then, **{change.what: change.after for change in changes}}


def differences(old: Settings, new: Settings) -> list[tuple[str, str | None, str | None]]:
    """(what, old value, new value) where they differ; None where it is absent."""
    names = dict.fromkeys([*old, *new])
    pairs = [(name, old.get(name), new.get(name)) for name in names]
    return [(name, before, after) for name, before, after in pairs if before != after]


def logged(what: str, before: str | None, after: str | None) -> str:
    """A change as the log has it, such as "the margin: 0.01 → 0.02"."""
    return f"{what}: {before or 'absent'} → {after or 'absent'}"


def marked(changes: Sequence[Change]) -> tuple[str, ...]:
    """What the headline says of the changes that were not taken back, such as "the margin was changed from 0.01 to 0.02
    after results of 12 runs were seen".
    """
    found = []
    for what in dict.fromkeys(change.what for change in changes if change.what not in QUIET):
        own = [change for change in changes if change.what == what]
        before, after = own[0].before, own[-1].after
        if before == after:
            continue
        found.append(f"{what} {_verb(what, before, after)} {_when(own[0])}")
    return tuple(found)


def _when(change: Change) -> str:
    if not change.runs_done:
        return "after a run had shown its losses"
    runs = f"{change.runs_done} run{'s' * (change.runs_done > 1)}"
    return f"after results of {runs} were seen" if change.is_seen else f"after {runs} had finished"


def _verb(what: str, before: str | None, after: str | None) -> str:
    if before is None:
        return "was added"
    if after is None:
        return "was dropped"
    is_hash = what == WORDS["data_hash"]
    return "was changed" if is_hash else f"was changed from {before} to {after}"
