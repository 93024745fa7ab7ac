"""Records come from JSON and go back unchanged; what a record is not is refused by the name of its field."""

import dataclasses
import json
import math
from typing import Any

import pytest

from gpt_jax.ablation.findings import ArmResults, StudyResults
from gpt_jax.ablation.records import from_json
from gpt_jax.ablation.schema import Measurements, RunOutcome, StudyRecord
from gpt_jax.config.errors import ConfigError
from tests.ablation import made_up

STUDY: dict[str, Any] = {
    "question": "?",
    "smallest_difference": 0.01,
    "baseline": "a",
    "seeds": [0, 1],
    "arms": [{"name": "a", "changes": {}, "parameters": 3, "config": {"seed": 0}}],
    "runs": [],
}


def test_results_come_back_as_they_were() -> None:
    """Numbers keep their type: 8192 stays an integer, 0.5 a float."""
    made = json.loads(json.dumps(made_up.study(seeds=2)))
    written = json.loads(json.dumps(dataclasses.asdict(from_json(StudyResults, made, "results.json"))))
    assert written == json.loads(json.dumps(dataclasses.asdict(from_json(StudyResults, written, "results.json"))))
    for before, after in zip(made["arms"], written["arms"], strict=True):
        assert {key: after[key] for key in before} == before
        assert type(after["kv_bytes_per_token"]) is int


def test_absent_fields_take_their_defaults() -> None:
    found = from_json(StudyRecord, STUDY, "study.json")
    assert (found.together, found.repeat.command, found.metric) == (None, None, "final validation loss")
    assert found.arms[0].is_ranked and found.arms[0].flops_per_token is None
    assert from_json(RunOutcome, {"status": "finished", "wall_seconds": 3}, "outcome.json").address is None
    assert from_json(ArmResults, {"name": "a", "losses": None, "runs": None}, "x").losses == {}


def test_numbers_that_are_not_finite_are_none() -> None:
    found = from_json(ArmResults, {"name": "a", "mean": math.nan, "losses": {"0": math.inf, "1": 2.0}}, "x")
    assert found.mean is None and found.losses == {"0": None, "1": 2.0}


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (StudyRecord, 3, "study.json holds no StudyRecord: it is no group"),
        (StudyRecord, {k: v for k, v in STUDY.items() if k != "baseline"}, 'it has no field "baseline"'),
        (StudyRecord, STUDY | {"sead": 3}, 'unknown field "sead"; did you mean "seeds"'),
        (StudyRecord, STUDY | {"seeds": ["0"]}, r"\"seeds\[0\]\" is '0'"),
        (StudyRecord, STUDY | {"question": None}, '"question" is None'),
        (StudyRecord, STUDY | {"arms": [{"name": "a"}]}, r'no field "arms\[0\]\.config"'),
        (ArmResults, {"name": "a", "interval": [1.0, 2.0, 3.0]}, '"interval" has 3 items in place of 2'),
        (Measurements, {"measured_peak_bytes": True}, '"measured_peak_bytes" is True'),
    ],
)
def test_another_thing_is_refused_by_name(kind: type, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_json(kind, value, "study.json")
