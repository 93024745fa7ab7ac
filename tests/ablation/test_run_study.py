"""A study as one call."""

import dataclasses
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

    trained = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/metrics.jsonl")}
    assert len(trained) == 2
    more = run_study(dataclasses.replace(study, seeds=(0, 1)), tmp_path, **options)
    assert more.results.arms[1].versus_baseline is not None and more.results.arms[1].versus_baseline.n == 2
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
