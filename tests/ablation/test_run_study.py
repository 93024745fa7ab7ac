"""A study as one call."""

import io
from pathlib import Path

from rich.console import Console

from gpt_jax.ablation.combine import vary
from gpt_jax.ablation.run_study import run_study
from gpt_jax.ablation.study import Study
from gpt_jax.config import Checkpoint, Evaluation
from tests.tiny import PROGRAMS, tiny_config

RATE = "optimizer.learning_rate"


def test_one_call_plans_runs_judges_and_reports_a_study_and_does_nothing_twice(tmp_path: Path) -> None:
    base = tiny_config(evaluation=Evaluation(every=3, batch_size=8), checkpoint=Checkpoint(every=3))
    arms = vary(RATE, slow=1e-3, fast=1e-2)
    study = Study("Faster?", base, arms, "slow", (RATE,), 0.01, seeds=(0,), fresh_seeds=0, aa=False)
    said = io.StringIO()
    options = {"console": Console(file=said, width=200), "programs": PROGRAMS}
    first = run_study(study, tmp_path, **options)
    assert first.status == "finished"
    assert [arm.name for arm in first.results.arms if arm.losses["0"] is not None] == ["slow", "fast"]
    assert "fast" in (first.results.verdict or "")
    assert "Faster?" in Path(first.report).read_text(encoding="utf-8")
    assert "Faster?" in said.getvalue() and "[2/2] fast" in said.getvalue()

    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*.json*")}
    assert len([path for path in written if path.name == "metrics.jsonl"]) == 2
    again = run_study(study, tmp_path, **options)
    assert again.status == "finished" and again.results.verdict == first.results.verdict
    assert {path: path.stat().st_mtime_ns for path in written} == written
