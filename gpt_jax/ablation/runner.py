"""Runs a study: finished runs are skipped, interrupted ones go on."""

from __future__ import annotations

import datetime
import math
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import jax
from rich.console import Console
from rich.markup import escape

from gpt_jax.ablation import history, records, stages
from gpt_jax.ablation.addresses import is_measured, is_trained
from gpt_jax.ablation.answers import ask
from gpt_jax.ablation.measure import Measure
from gpt_jax.ablation.plan import StudyPlan
from gpt_jax.ablation.planned import Group, PlannedRun, in_words, shard_of
from gpt_jax.ablation.rows import write_rows
from gpt_jax.ablation.schema import FAILURE, MEASUREMENTS, OUTCOME, RUNS, Grouping, Measurements, Origin, RunOutcome
from gpt_jax.analysis.diagnostics import decode_rate
from gpt_jax.config import Config
from gpt_jax.config.disk import disk_fault
from gpt_jax.data import open_data
from gpt_jax.runs import consensus
from gpt_jax.runs.environment import git_revision, versions
from gpt_jax.runs.folder import RunFolder, Workdir
from gpt_jax.runs.lease import RunLocked
from gpt_jax.runs.load import open_run
from gpt_jax.runs.loop import TrainingDiverged
from gpt_jax.runs.record import recorded
from gpt_jax.runs.session import Outcome
from gpt_jax.runs.together import train_together
from gpt_jax.runs.train import train
from gpt_jax.training.programs import Programs
from gpt_jax.training.sharding import make_mesh, row_share

StudyStatus = Literal["finished", "interrupted", "failed", "waiting"]


@dataclass
class Runner:
    """Runs a plan in the folder `workdir`; several processes may share the folder, each with its part of the runs.

    A study that tunes has two stages: the trials, round after round, and then, at the settings that they chose, the
    runs that decide.
    """

    plan: StudyPlan
    workdir: Workdir
    console: Console
    programs: Programs = field(default_factory=Programs)
    measure: Measure = field(default_factory=Measure)
    _seconds: list[float] = field(default_factory=list)
    _losses: dict[str, list[float]] = field(default_factory=dict)

    def run(self, shard: stages.Shard = stages.WHOLE) -> StudyStatus:
        """Runs all that is not done yet of `shard` = (i, n): all arms of the seeds i, i + n, i + 2n …, and all trials
        of the arms i, i + n …; "waiting" says that trials of other shards are missing before settings can be chosen.

        A run that diverges is recorded as diverged and stays in the table. One that fails otherwise is reported and
        leaves its traceback in its folder; the next start tries it again.
        """
        folder = RunFolder(self.workdir)
        was_tuning = self.plan.is_tuning
        self._advance(folder, shard)
        if was_tuning:
            stages.rewrite_record(self.plan, folder, shard)
        while self.plan.is_tuning:
            status = self._run(shard_of(self.plan.trials, shard), "tuning ")
            if status != "finished":
                return status
            known = len(self.plan.trials)
            self._advance(folder, shard)
            if self.plan.is_tuning and len(self.plan.trials) == known:
                return "waiting"
            stages.rewrite_record(self.plan, folder, shard)
        return self._run(shard_of(self._decide(), shard), self._stage)

    def run_slice(self, job: stages.Shard) -> StudyStatus:
        """Runs the groups i, i + n, i + 2n … of the present stage, for `job` = (i, n): of the trials that are known so
        far, or of the runs that decide. All jobs of a study are on one machine.
        """
        self.plan = stages.advanced(self.plan, RunFolder(self.workdir))
        if self.plan.is_tuning:
            return self._run(self.plan.trials[job[0] :: job[1]], "tuning ")
        return self._run(self._decide()[job[0] :: job[1]], self._stage)

    def _advance(self, folder: RunFolder, shard: stages.Shard) -> None:
        consensus.meet("a stage of a study")
        self.plan = stages.advanced(self.plan, folder, shard)
        consensus.check_same(plan_of_the_study=" ".join(run.folder for run in self.plan.runs))

    @property
    def _stage(self) -> str:
        return "" if self.plan.study.tuning is None else "verdict "

    def _decide(self) -> tuple[Group, ...]:
        """The groups that decide; says at which settings."""
        if self.plan.study.tuning is not None:
            self._say(f"chosen by tuning: {stages.chosen_in_words(self.plan)}")
        return self.plan.groups

    def _run(self, mine: Sequence[Group], stage: str) -> StudyStatus:
        """Runs groups; `stage` stands before their numbers in a message."""
        number, count, several = 0, sum(map(len, mine)), jax.process_count() > 1
        status: StudyStatus = "finished"
        for group in mine:
            number += len(group)
            start = time.monotonic()
            is_done = consensus.first_says(all(is_measured(self.folder(run), run.measured_by) for run in group))
            try:
                if not is_done:
                    # Shown on a terminal only.
                    with self.console.status(escape(f"[{stage}{number}/{count}] {_name(group)} …")):
                        has_ended = self._finish(group)
                    if not has_ended:
                        return "interrupted"
            except RunLocked:
                if several:
                    raise  # the other processes are in the midst of this group
                self._say(f"{_name(group)}: another process is running it")
                continue
            except KeyboardInterrupt:
                if several:
                    raise
                return "interrupted"  # between the steps of two runs, where there is nothing to save
            except Exception as error:
                if several or disk_fault(error) is not None:  # which every run would meet
                    raise
                self._fail(group, error)  # the other runs go on
                status = "failed"
                continue
            shown = [self._note(run) for run in group] if self.folder(group[0]).writes else []
            if not is_done:
                self._seconds += [(time.monotonic() - start) / len(group)] * len(group)
                self._report(f"{stage}{number}/{count}", count - number, group, shown)
        return status

    def folder(self, run: PlannedRun) -> RunFolder:
        """The run's folder, an ordinary one that `load_run` opens."""
        return RunFolder(RunFolder(self.workdir).file(RUNS) / run.folder)

    def _finish(self, group: Sequence[PlannedRun]) -> bool:
        """Trains the runs of a group that are not trained yet, and measures those whose measurements are missing or
        those of another address. Returns whether all came to their ends.
        """
        were_trained = consensus.first_says([is_trained(self.folder(run)) for run in group])
        if not all(were_trained):
            start = time.monotonic()
            ends = self._train(group)
            if any(not isinstance(end, TrainingDiverged) and end.status == "interrupted" for end in ends):
                return False
            trained = (time.monotonic() - start) / len(group)
        for i, run in enumerate(group):
            folder, start = self.folder(run), time.monotonic()
            if were_trained[i]:
                if not consensus.first_says(is_measured(folder, run.measured_by)):
                    records.write(self._measured(run), folder, MEASUREMENTS)
                continue
            end = ends[i]
            reason = str(end) if isinstance(end, TrainingDiverged) else None
            if reason is None and run.measured_by is not None:
                records.write(self._measured(run), folder, MEASUREMENTS)
            seconds = round(trained + time.monotonic() - start, 2)
            status = "finished" if reason is None else "diverged"
            records.write(RunOutcome(status, seconds, reason, run.address.parts), folder, OUTCOME)
        return True

    def _train(self, group: Sequence[PlannedRun]) -> Sequence[Outcome | TrainingDiverged]:
        configs = [self._config(run) for run in group]
        folders = [self.folder(run).path for run in group]
        if len(group) > 1:
            return train_together(configs, folders, programs=self.programs)
        try:
            return [train(configs[0], folders[0], console=Console(quiet=True), programs=self.programs)]
        except TrainingDiverged as error:
            return [error]

    def _config(self, run: PlannedRun) -> Config:
        """The run's configuration as its folder began with it: an equal address says that what differs from the plan's
        decides no number.
        """
        begun = recorded(self.folder(run))
        return run.config if begun is None else begun[0]

    def _measured(self, run: PlannedRun) -> Measurements:
        opened = open_run(self.folder(run).path)
        config = opened.config
        data = open_data(config.data, config.model.context_length, config.data_seed, progress=False)
        study = self.plan.study
        found, by_row = self.measure.all(config, opened.params, data, study.extrapolation, study.probe, study.endpoint)
        if by_row is not None:
            write_rows(self.folder(run), study.endpoint, by_row)
        answers = ask(study.secondary, config, opened.params, data)
        found = replace(found, address=run.measured_by, answers=answers)
        if not run.is_first:
            return found
        mesh = make_mesh(axes=config.mesh)
        rows = data.batch(0, config.train.batch_size, *row_share(mesh))
        return replace(
            found,
            measured_decode_tokens_per_second=decode_rate(config.model, opened.params),
            measured_peak_bytes=self.programs.peak_bytes(config, mesh, rows),
        )

    def _note(self, run: PlannedRun) -> str:
        """Keeps the run's loss for the means by arm, and returns it as text."""
        loss = stages.loss_of(run, self.plan, RunFolder(self.workdir))
        assert loss is not None, "the run has ended"
        if run.purpose == "arm":
            self._losses.setdefault(run.arm, []).append(loss)
        return f"{loss:.4f}" if math.isfinite(loss) else "failed"

    def _report(self, place: str, still: int, group: Sequence[PlannedRun], shown: Sequence[str]) -> None:
        means = "  ".join(f"{name} {_mean(losses)}" for name, losses in self._losses.items())
        mean = sum(self._seconds) / len(self._seconds)
        left = datetime.timedelta(seconds=round(mean * still))
        took = self._seconds[-1] * len(group)
        self._say(f"[{place}] {_name(group)}: {' '.join(shown)} in {took:.0f} s | {means} | {left} left")

    def _fail(self, group: Sequence[PlannedRun], error: Exception) -> None:
        for run in group:
            text = f"{run.name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            folder = self.folder(run)
            folder.make()
            folder.write_text(FAILURE, text + "\n\n" + "".join(traceback.format_exception(error)))
            self._say(f"failed: {text}")

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _mean(losses: Sequence[float]) -> str:
    """The mean of an arm's losses; that of those which survived is none."""
    failed = sum(not math.isfinite(loss) for loss in losses)
    return f"{failed} of {len(losses)} failed" if failed else f"{sum(losses) / len(losses):.4f}"


def _name(group: Sequence[PlannedRun]) -> str:
    """What a message calls the group."""
    first = group[0]
    if len(group) == 1:
        return first.name
    return f"{first.arm}, seeds {first.seed} to {group[-1].seed}, {in_words(first.setting)}"


def write_plan(
    plan: StudyPlan, workdir: Workdir, command: str, grouping: Grouping, forced: bool, jobs: int = 1,
    shard: stages.Shard = stages.WHOLE,
) -> RunFolder:  # fmt: skip
    """Writes `study.json`, and the claim before the first run, and returns the study's folder.

    Raises:
      ConfigError: the study has more seeds than its claim allows.
    """
    folder = RunFolder(workdir)
    folder.make(RUNS)
    if folder.writes:
        history.begin(folder, plan.study, plan.data_hash, command, forced)
        origin = Origin(command=command, versions=versions(), git=git_revision())
        stages.write_record(plan, folder, origin, grouping, forced, jobs, shard)
    consensus.meet("a study is written")
    return folder
