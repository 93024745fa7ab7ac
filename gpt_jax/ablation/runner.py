"""Runs a study: what is done is skipped, what was cut off goes on, and the results are written after every run."""

from __future__ import annotations

import datetime
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.console import Console

from gpt_jax.ablation import results
from gpt_jax.ablation.measure import Measure, decode_rate
from gpt_jax.ablation.plan import AA, Plan, PlannedRun, describe
from gpt_jax.data import open_data
from gpt_jax.run import Workdir, open_run, train
from gpt_jax.training import record
from gpt_jax.training.loop import TrainingDiverged
from gpt_jax.training.programs import Programs
from gpt_jax.training.storage import RunFolder, RunLocked

Status = Literal["finished", "interrupted", "failed"]


@dataclass
class Runner:
    """Runs a plan in the folder `workdir`; several processes may share the folder, each with its slice of the runs."""

    plan: Plan
    workdir: Workdir
    console: Console
    programs: Programs = field(default_factory=Programs)
    measure: Measure = field(default_factory=Measure)
    _seconds: list[float] = field(default_factory=list)
    _losses: dict[str, list[float]] = field(default_factory=dict)

    def run(self, shard: tuple[int, int] = (0, 1)) -> Status:
        """Runs every n-th run, from number i on, of `shard` = (i, n) that is not done yet.

        A run that diverges is recorded so and stays in the table; one that fails otherwise is reported, leaves its
        reason in its folder, and is tried again by the next start.
        """
        mine = self.plan.runs[shard[0] :: shard[1]]
        status: Status = "finished"
        for number, run in enumerate(mine, 1):
            folder = self.folder(run)
            if (outcome := results.outcome(folder)) is not None:
                self._note(run, outcome)
                continue
            start = time.monotonic()
            try:
                done = self._one(run, folder)
            except RunLocked:
                self._say(f"{run.name}: another process is at it")
                continue
            except KeyboardInterrupt:  # between the steps of two runs, where there is nothing to save
                return "interrupted"
            except Exception as error:  # one arm must not take the night's other runs with it
                self._fail(run, folder, error)
                status = "failed"
                continue
            if not done:
                return "interrupted"
            self._seconds.append(time.monotonic() - start)
            outcome = results.outcome(folder)
            assert outcome is not None
            self._note(run, outcome)
            self._report(number, len(mine), run, outcome)
        return status

    def folder(self, run: PlannedRun) -> RunFolder:
        """The run's folder, an ordinary one that `load_run` opens."""
        return RunFolder(RunFolder(self.workdir).file("runs") / run.folder)

    def _one(self, run: PlannedRun, folder: RunFolder) -> bool:
        """Trains and measures one run; whether it came to its end."""
        start = time.monotonic()
        quiet = Console(quiet=True)
        try:
            outcome = train(run.config, folder.path, console=quiet, programs=self.programs)
        except TrainingDiverged as error:
            folder.write_json(results.OUTCOME, _outcome("diverged", start) | {"reason": str(error)})
            return True
        if outcome.status == "interrupted":
            return False
        if not folder.exists(results.MEASUREMENTS):
            folder.write_json(results.MEASUREMENTS, self._ask(run, folder))
        folder.write_json(results.OUTCOME, _outcome("finished", start))
        return True

    def _ask(self, run: PlannedRun, folder: RunFolder) -> dict[str, Any]:
        opened = open_run(folder.path)
        config = opened.config
        data = open_data(config.data, config.model.context_length, config.data_seed, progress=False)
        study = self.plan.study
        found = self.measure.all(config, opened.params, data, study.extrapolation, study.probe)
        is_first = run.seed == study.seeds[0] and run.purpose == "arm"
        found["measured_decode_tokens_per_second"] = decode_rate(config.model, opened.params) if is_first else None
        return found

    def _note(self, run: PlannedRun, outcome: Mapping[str, Any]) -> None:
        if outcome["status"] == "finished" and run.purpose == "arm":
            loss = results.final_loss(self.folder(run))
            if loss is not None:
                self._losses.setdefault(run.arm, []).append(loss)

    def _report(self, number: int, count: int, run: PlannedRun, outcome: Mapping[str, Any]) -> None:
        loss = results.final_loss(self.folder(run))
        shown = "diverged" if outcome["status"] == "diverged" or loss is None else f"loss {loss:.4f}"
        means = "  ".join(f"{name} {sum(x) / len(x):.4f}" for name, x in self._losses.items())
        mean = sum(self._seconds) / len(self._seconds)
        left = datetime.timedelta(seconds=round(mean * (count - number)))
        self._say(f"[{number}/{count}] {run.name}: {shown} in {self._seconds[-1]:.0f} s | {means} | {left} left")

    def _fail(self, run: PlannedRun, folder: RunFolder, error: Exception) -> None:
        text = f"{run.name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        folder.make()
        folder.write_text(results.FAILURE, text + "\n\n" + "".join(traceback.format_exception(error)))
        self._say(f"failed: {text}")

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _outcome(status: str, start: float) -> dict[str, Any]:
    return {"status": status, "wall_seconds": round(time.monotonic() - start, 2)}


def write_plan(plan: Plan, workdir: Workdir, command: str, forced: bool) -> RunFolder:
    """Writes `study.json` and returns the study's folder."""
    folder = RunFolder(workdir)
    folder.make("runs")
    repeat = {"command": command, "versions": record.versions(), "git": record.git_revision()}
    folder.write_json(results.STUDY, describe(plan, repeat, forced))
    return folder


def show_plan(plan: Plan, console: Console) -> None:
    """Prints the question, the arms with what they cost and what was chosen for them, and how many runs it takes."""
    study = plan.study
    console.print(study.question, style="bold", highlight=False, markup=False, soft_wrap=True)
    for name, arm in plan.arms.items():
        changes = ", ".join(f"{key}={value!r}" for key, value in plan.changes(name).items()) or "baseline"
        cost = f"{arm.costs.parameters:,} parameters, {arm.costs.flops_per_token:,} FLOPs and"
        cost += f" {arm.costs.kv_bytes_per_token:,.0f} bytes of cache per token"
        console.print(f"  {name}: {changes}\n    {cost}", highlight=False, markup=False, soft_wrap=True)
        if arm.value is not None:
            console.print(
                f"    matched {study.match} with {arm.free} = {arm.value}: {arm.ratio:.4f} ×", highlight=False
            )
        if not arm.is_ranked:
            console.print(f"    not ranked: its {study.match} are {arm.ratio:.3f} × the baseline's", highlight=False)
    extra = f", {study.fresh_seeds} of the baseline for the noise" if study.fresh_seeds else ""
    extra += f", and the {AA} copy" if study.aa else ""
    rates = f" × {len(study.learning_rates)} learning rates" if study.learning_rates else ""
    console.print(
        f"  {len(plan.runs)} runs: {len(plan.arms)} arms{rates} × {len(study.seeds)} seeds{extra}",
        highlight=False,
        soft_wrap=True,
    )
