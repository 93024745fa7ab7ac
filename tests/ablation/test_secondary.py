"""Secondary endpoints: refused before training where they can't be asked, asked of every run alike, judged under a
correction of their own, and said beside a verdict that they do not touch.
"""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy import stats

from gpt_jax import GPT
from gpt_jax.ablation import runner as runners
from gpt_jax.ablation.addresses import measurement_address
from gpt_jax.ablation.answers import ask, cases
from gpt_jax.ablation.endpoint import Suite
from gpt_jax.ablation.findings import ArmResults, StudyResults
from gpt_jax.ablation.plan import make_plan
from gpt_jax.ablation.report import to_html, to_markdown, write_pages
from gpt_jax.ablation.schema import Answered, SecondaryEndpoint, StudyRecord
from gpt_jax.ablation.secondary import comparisons, judged, sentences
from gpt_jax.ablation.sentence import with_marks
from gpt_jax.ablation.show import show_plan
from gpt_jax.ablation.verdict import compare_arms
from gpt_jax.config import Learned, Recall, Text
from gpt_jax.config.errors import ConfigError
from tests.ablation import made_up
from tests.ablation.test_guard import POSITION, plan
from tests.ablation.test_runner import KV, run, small_study
from tests.tiny import random_params, tiny_config

# ── what can be asked ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_suite_becomes_one_endpoint_for_each_kind_and_length() -> None:
    config = tiny_config(data=Recall(symbols=16, pairs=4, length=16))
    found = cases((Suite("recall", ("noisy", "full of pairs"), (24, 32), 10), Suite("recall", ("recall",))), config)
    assert [case.name for case in found] == [
        "recall, noisy at 24", "recall, full of pairs at 24", "recall, noisy at 32", "recall, full of pairs at 32",
        "recall at 16",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match='no kind "noisy" at 16 tokens: there it has recall'):
        cases((Suite("recall", ("noisy",)),), config)
    assert found[0].tokens == 240 and found[0].point is not None and found[0].point.task.validation_rows == 10


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": "recal"}, 'no suite "recal" whose answers a study can count; did you mean "recall"'),
    ({"name": "text"}, 'no suite "text" whose answers'),
    ({"name": "needle"}, 'the suite "needle" does not fit runs on Copy: choose copy'),
    ({"name": "copy", "lengths": (1,)}, "no rows of 1 tokens for this task"),
    ({"name": "copy", "kinds": ("noisy",)}, 'no kind "noisy" at 8 tokens: there it has copy'),
    ({"name": "copy", "questions": 1}, "needs 2 questions or more"),
    ({"name": "copy", "smallest_difference": 0.0}, "no difference of them"),
]


@pytest.mark.parametrize(("suite", "message"), REFUSED)
def test_a_suite_that_does_not_fit_gets_a_sentence_before_any_training(suite: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan({KV: 1}, (KV,), secondary=(Suite(**suite),))


def test_a_suite_is_refused_twice_or_beyond_an_arms_positions() -> None:
    with pytest.raises(ConfigError, match='"copy at 8" is named twice'):
        plan({KV: 1}, (KV,), secondary=(Suite("copy"), Suite("copy", lengths=(8,))))
    embedding = "model.embedding.position"
    arm = {POSITION: None, embedding: Learned(length=16)}
    assert plan(arm, tuple(arm), secondary=(Suite("copy", lengths=(16,)),)).cases
    with pytest.raises(ConfigError, match='rows of 32 tokens, and the arm "b" has learned 16 positions'):
        plan(arm, tuple(arm), secondary=(Suite("copy", lengths=(32,)),))


def test_questions_about_text_need_one_tokenizer_context_and_enough_room(tmp_path: Path) -> None:
    words = [f"{a}{b}{c}{d}" for a in "bcdfg" for b in "aeiou" for c in "lmnr" for d in "aeiou"]
    file = tmp_path / "text.txt"
    file.write_text(" ".join(words * 20))
    text = tiny_config(data=Text(path=str(file)), model={"context_length": 128})
    suites = (Suite("needle", questions=4), Suite("copy", questions=4))
    made = plan({KV: 1}, (KV,), text, secondary=suites)
    assert [case.name for case in made.cases] == ["needle, one needle at 128", "copy at 128"]
    assert made.cases[0].tokens == 4 * 4 * 128
    config, data = made.runs[0].resolved, made.planner.opened.of(text)
    params = [random_params(GPT(config.model), seed) for seed in (0, 1)]
    first, other, again = (ask(suites, config, params[i], data) for i in (0, 1, 0))
    assert list(first) == [case.name for case in made.cases] and again == first != other
    alone = ask(suites[1:], config, params[0], data)
    assert alone["copy at 128"] == first["copy at 128"], "whatever else is asked"
    with pytest.raises(ConfigError, match="another tokenizer or context"):
        plan({"model.context_length": 64}, ("model.context_length",), text, secondary=suites)
    with pytest.raises(ConfigError, match='"needle, one needle at 16" cannot be asked: its facts are longer'):
        plan({KV: 1}, (KV,), text, secondary=(Suite("needle", lengths=(16,), questions=4),))
    with pytest.raises(ConfigError, match='"sort" does not fit runs on text'):
        plan({KV: 1}, (KV,), text, secondary=(Suite("sort"),))


def test_the_plan_names_them_and_what_they_cost() -> None:
    text = io.StringIO()
    show_plan(plan({KV: 1}, (KV,), secondary=(Suite("copy", questions=100),)), Console(file=text, width=200))
    assert "own over 1 comparison: accuracy on copy at 8 (±0.05)" in text.getvalue()
    assert "800 tokens, about " in text.getvalue()


def test_a_study_without_them_keeps_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its measurements do not depend on the code that asks."""
    study = small_study()
    address = make_plan(study).runs[0].address
    without, known = measurement_address(address, study, True), dataclasses.replace(study, secondary=(Suite("copy"),))
    assert measurement_address(address, known, True) != without
    monkeypatch.setattr("gpt_jax.ablation.addresses.ASKING", "gpt_jax.ablation.sentence")
    assert measurement_address(address, study, True) == without


# ── a study ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_run_is_asked_once_and_the_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after some runs it goes on; what was measured is not measured again."""
    asked: list[int] = []

    def counted(suites: Any, config: Any, params: Any, data: Any) -> Any:
        asked.append(config.model.blocks[0].attention.kv_heads)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return ask(suites, config, params, data)

    monkeypatch.setattr(runners, "ask", counted)
    options: dict[str, Any] = {"probe": None, "fresh_seeds": 0, "aa": False, "seeds": (0,)}
    study = small_study(**options, secondary=(Suite("copy", questions=16),))
    status, found = run(study, tmp_path)
    assert (status, found["secondary"], found["secondary_comparisons"]) == ("interrupted", [], 1)
    status, found = run(study, tmp_path)
    assert (status, asked) == ("finished", [2, 1, 1])
    status, again = run(study, tmp_path)
    assert (len(asked), again["secondary"]) == (3, found["secondary"])
    [row], answers = found["secondary"], [arm["answers"]["copy at 8"]["0"] for arm in found["arms"]]
    assert (row["endpoint"], row["arm"], row["versus"]["n"]) == ("copy at 8", "mqa", 1)
    assert [row["baseline"], row["value"]] == [answer["value"] for answer in answers]
    assert [answer["rows"] for answer in answers] == [16, 16]
    assert answers[0]["chance"] == answers[1]["chance"] > 0, "the same questions"


# ── judged ───────────────────────────────────────────────────────────────────────────────────────────────────────────

LOSSES = {"full": [0.1, 0.11, 0.1, 0.12, 0.1], "equal": [0.101, 0.109, 0.1, 0.12, 0.102],
          "worse": [0.3, 0.32, 0.31, 0.33, 0.32]}  # fmt: skip
SHARES = {
    "recall at 64": {"full": [0.9, 0.91, 0.92, 0.9, 0.91], "equal": [0.6, 0.62, 0.58, 0.61, 0.6],
                     "worse": [0.9, 0.912, 0.921, 0.899, 0.91]},
    "copy at 64": {"full": [1.0] * 5, "equal": [1.0] * 5, "worse": [0.2, 0.21, 0.2, 0.22, 0.2]},
    "sort at 64": {"full": [0.26, 0.24, 0.25, 0.25, 0.26], "equal": [0.2, 0.21, 0.2, 0.19, 0.2],
                   "worse": [0.25, 0.26, 0.24, 0.26, 0.25]},
}  # fmt: skip
STUDY = StudyRecord(
    question="?", smallest_difference=0.02, baseline="full", seeds=(0, 1, 2, 3, 4), planned_seeds=5, most_seeds=5,
    rules_out_failures=0.5, arms=(), runs=(),
    secondary=tuple(SecondaryEndpoint(name, name.split()[0], 0.05) for name in SHARES),
)  # fmt: skip


def made(losses: dict[str, list[float]] = LOSSES, seeds: int = 5, **changes: Any) -> StudyResults:
    arms = [
        ArmResults(
            name=name,
            values={str(s): loss for s, loss in enumerate(values[:seeds])},
            losses={str(s): loss for s, loss in enumerate(values[:seeds])},
            answers={
                endpoint: {str(s): Answered(v, max(v - 0.02, 0), 0.25, 256) for s, v in enumerate(by_arm[name][:seeds])}
                for endpoint, by_arm in SHARES.items()
            },
            **changes,
        )
        for name, values in losses.items()
    ]
    arms = list(compare_arms(arms, STUDY))
    return StudyResults(
        question="?", baseline="full", arms=tuple(arms), smallest_difference=0.02, verdict="Against full, all is told.",
        secondary=judged(arms, STUDY), secondary_comparisons=comparisons(arms, STUDY),
    )  # fmt: skip


def test_one_correction_covers_all_arms_and_endpoints() -> None:
    """Bonferroni over 2 arms × 3 endpoints, whatever of them can be compared; the primary verdict stays as it is."""
    results = made()
    found = {(row.arm, row.endpoint): row for row in results.secondary}
    assert results.secondary_comparisons == 6 and len(found) == 6
    row = found["equal", "recall at 64"]
    changes = [a - b for a, b in zip(SHARES["recall at 64"]["equal"], SHARES["recall at 64"]["full"], strict=True)]
    assert row.versus.p == pytest.approx(6 * stats.ttest_1samp(changes, 0).pvalue)
    low, high = stats.ttest_1samp(changes, 0).confidence_interval(1 - 0.05 / 6)
    assert row.versus.interval == pytest.approx((low, high)) and row.versus.verdict == "worse"
    alone = compare_arms([dataclasses.replace(arm, answers={}) for arm in results.arms], STUDY)
    assert [arm.versus_baseline for arm in results.arms] == [arm.versus_baseline for arm in alone]


def test_what_can_not_be_compared_is_said_and_not_computed() -> None:
    """Both at the ceiling, neither above chance, seeds that failed, off the budget, one seed."""
    found = {(row.arm, row.endpoint): row.versus for row in made().secondary}
    for arm, endpoint, reason in (
        ("equal", "copy at 64", "both answer everything"),
        ("worse", "sort at 64", "neither is above chance"),
        ("equal", "sort at 64", "neither is above chance"),  # though all pairs differ by one sign
    ):
        versus = found[arm, endpoint]
        assert (versus.verdict, versus.reason, versus.p, versus.interval) == ("not compared", reason, None, None)
    results = made()
    lost = dataclasses.replace(results.arms[1], answers={"recall at 64": {"0": None, "1": Answered(0.5, 0.4, 0.1, 9)}})
    off = dataclasses.replace(results.arms[2], is_ranked=False)
    found = {(row.arm, row.endpoint): row.versus for row in judged([results.arms[0], lost, off], STUDY)}
    assert found["equal", "recall at 64"].reason == "seeds failed" and found["equal", "recall at 64"].mean is None
    assert found["worse", "copy at 64"].verdict == "not ranked" and found["worse", "copy at 64"].p is None
    one = {(row.arm, row.endpoint): row.versus for row in made(seeds=1).secondary}["worse", "copy at 64"]
    assert (one.verdict, one.reason, one.p) == ("undecided", "1 of 5 planned seeds done", None)


def test_equal_loss_recall_lost_is_a_sentence() -> None:
    """And its reverse; an arm whose answers agree with its verdict has none."""
    said = sentences(made())
    assert said[0] == (
        "Equal loss, recall lost: the final validation loss of equal is within ±0.02 of full’s, but its accuracy on"
        " recall at 64 is 0.306 lower (−0.351 to −0.261; 0.602 against 0.908, chance 0.250)."
    )
    assert said[1].startswith("Higher loss, recall kept: by the final validation loss, worse is worse than full, and")
    assert len(said) == 2 and said[0] in with_marks(made())
    better = {"full": LOSSES["worse"], "equal": LOSSES["full"], "worse": [0.301, 0.319, 0.31, 0.33, 0.321]}
    assert [text.split(":")[0] for text in sentences(made(better))] == [
        "Lower loss, recall lost", "Equal loss, copy lost"
    ]  # fmt: skip
    wide = {**LOSSES, "equal": [0.2, 0.0, 0.15, 0.05, 0.12]}
    assert sentences(made(wide))[0].startswith("Loss undecided, recall lost: by the final validation loss, equal is un")


def test_the_report_tells_primary_from_secondary(tmp_path: Path) -> None:
    results = made()
    page, text = to_html(results), to_markdown(results)
    assert page.count("<h2>Secondary endpoints</h2>") == 1 and page.count('<figure id="secondary">') == 1
    assert "Primary is the final validation loss, which alone decides" in page and "all 6 comparisons" in page
    assert "6 comparisons under a correction of their own" in page and "Not compared: 3" in page
    assert sentences(results)[0] in page.replace("&#x27;", "'") and sentences(results)[0].split("(")[0] in text
    assert "| recall at 64 | equal | worse | −0.306 |" in text
    write_pages(results, tmp_path)
    rows = (tmp_path / "export" / "secondary.csv").read_text().splitlines()
    assert len(rows) == 7 and rows[0].startswith("endpoint,suite,arm,chance,baseline,value,")
    assert 'href="export/secondary.csv"' in (tmp_path / "report.html").read_text()
    assert json.loads(json.dumps(dataclasses.asdict(results)))["secondary"][0]["versus"]["verdict"] == "worse"
    assert "econdary endpoints" not in to_html(made_up.results(secondary=False))
