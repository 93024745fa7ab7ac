"""Studies from flags: the study's file, its tiny size, and its processes."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import re
import shlex
import signal
import subprocess
import sys
from types import FrameType, ModuleType
from typing import Any

from absl import flags

from experiments import cli
from gpt_jax.ablation import records, stages
from gpt_jax.ablation.endpoint import RateSensitivity
from gpt_jax.ablation.grouping import choose
from gpt_jax.ablation.plan import StudyPlan, make_plan
from gpt_jax.ablation.planned import shard_of
from gpt_jax.ablation.redone import check_shard, redone
from gpt_jax.ablation.runner import StudyStatus, write_plan
from gpt_jax.ablation.schema import STUDY
from gpt_jax.ablation.study import Study, Tuning, change
from gpt_jax.config.errors import ConfigError
from gpt_jax.runs import interrupt
from gpt_jax.runs.folder import RunFolder
from gpt_jax.training.programs import Programs

# What --smoke changes in any study; a study's file may add to it in SMOKE.
SMOKE = {"train.steps": 12, "evaluation.every": 6, "checkpoint.every": 12}
SMOKE_SEEDS = (0, 1)


def study_from_flags() -> Study:
    """The study that the flags describe.

    Raises:
      ConfigError, UsageError: the study or a flag is invalid.
    """
    base, values = cli.config_from_flags(), flags.FLAGS
    flag: Any = values["config"]
    file, _, arg = flag.config_filename.partition(":")
    module = _load(file)
    if not hasattr(module, "get_study"):
        raise ConfigError(
            f"{module.__file__} is not a study: it needs get_study(base), as the files of configs/ablations/ have"
        )
    if values.smoke:
        base = change(base, SMOKE | (module.SMOKE if hasattr(module, "SMOKE") else {}))
    takes_arg = len(inspect.signature(module.get_study).parameters) > 1
    if arg and not takes_arg:
        raise ConfigError(f'{file} has one study and no ":{arg}": leave the argument out')
    study: Study = module.get_study(base, arg) if takes_arg else module.get_study(base)
    if values.learning_rates is not None:
        study = _at_rates(study, _rates(values.learning_rates))
    if values.smoke:
        study = _smoke(study)
    if values.seeds is not None:
        study = dataclasses.replace(study, seeds=tuple(range(values.seeds)))
    return study


def _at_rates(study: Study, rates: tuple[float, ...]) -> Study:
    """The study with other rates to sweep, if that is its endpoint, else to tune over."""
    if isinstance(study.endpoint, RateSensitivity):
        return dataclasses.replace(study, learning_rates=rates)
    tuning = Tuning(rates) if study.tuning is None else dataclasses.replace(study.tuning, rates=rates)
    return dataclasses.replace(study, tuning=tuning)


def _smoke(study: Study) -> Study:
    tuning = study.tuning
    if tuning is not None:
        tuning = dataclasses.replace(
            tuning,
            rates=tuning.rates[:2],
            weight_decays=tuning.weight_decays[:1],
            warmups=tuning.warmups[:1],
            seeds=tuning.seeds[:1],
            rounds=min(1, tuning.rounds),
        )
    rates = study.learning_rates[:2]
    return dataclasses.replace(
        study, seeds=SMOKE_SEEDS, fresh_seeds=0, learning_rates=rates, tuning=tuning, is_smoke=True
    )


def _rates(texts: list[str]) -> tuple[float, ...]:
    try:
        return tuple(float(text) for text in texts)
    except ValueError:
        raise cli.UsageError(f"--learning_rates must be numbers with commas between, not {','.join(texts)}") from None


def _load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("study", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def part_from_flags(name: str) -> stages.Shard | None:
    """(I − 1, N) of the flag `name`, `--shard=I/N` or `--job=I/N`; None where it was not given."""
    text = flags.FLAGS[name].value
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise cli.UsageError(f"--{name} must be I/N with I from 1 to N, not {text}")
    return int(found[1]) - 1, int(found[2])


def begin(plan: StudyPlan, workdir: str, shard: stages.Shard | None, is_job: bool, programs: Programs) -> StudyPlan:
    """The plan with its seeds in groups that train together, advanced to what has finished. Writes it into the study's
    folder, unless this process `is_job`, whose parent has done so.
    """
    values, folder, is_part = flags.FLAGS, RunFolder(workdir), is_job or shard is not None
    known = records.read_study(folder) if folder.exists(STUDY) else None
    shards = max(1 if known is None else known.shards, 1 if shard is None else shard[1])
    grouping = choose(plan, workdir, values.together, is_part, programs)
    if grouping.count > 1 or shards > 1:
        plan = make_plan(plan.study, grouping.count, shards)
    plan = stages.advanced(plan, folder, shard or stages.WHOLE)
    if is_job:
        return plan
    if shard is not None:
        check_shard([run for group in shard_of((*plan.trials, *plan.groups), shard) for run in group], folder)
    # The command of one part does not make the whole study.
    earlier = None if known is None or not is_part else known.repeat.command
    jobs = max(values.jobs, 1 if known is None else known.jobs)
    write_plan(plan, workdir, earlier or cli.command(), grouping, values.force, jobs, shard or stages.WHOLE)
    if not is_part:
        print("\n".join([f"  seeds: {grouping.reason}", *(f"  {line}" for line in redone(plan.runs, folder))]))
    return plan


def run_jobs(plan: StudyPlan, workdir: str, count: int) -> StudyStatus:
    """Runs this command's study in `count` processes, each with its slice of a stage: of each round of the tuning, then
    of the runs that decide.
    """
    if flags.FLAGS.shard is not None:
        raise cli.UsageError("--jobs and --shard exclude each other: a launcher starts one process for each shard")
    folder = RunFolder(workdir)
    while True:
        status = _one_stage(count)
        if status != "finished" or not plan.is_tuning:
            return status
        known = len(plan.trials)
        plan = stages.advanced(plan, folder)
        if plan.is_tuning and len(plan.trials) == known:
            return "waiting"
        stages.rewrite_record(plan, folder)


def _one_stage(count: int) -> StudyStatus:
    processes = []
    for i in range(1, count + 1):
        command = shlex.split(cli.command("--jobs=1", f"--job={i}/{count}"))[1:]
        processes.append(subprocess.Popen([sys.executable, *command]))

    def forward(number: int, frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(number)

    previous = signal.signal(signal.SIGTERM, forward)
    interrupt.wait_for_others()
    try:
        codes = [process.wait() for process in processes]
    except KeyboardInterrupt:  # the terminal's Ctrl-C reached them too: they save and stop
        codes = [process.wait() for process in processes]
    finally:
        signal.signal(signal.SIGTERM, previous)
    if any(code in (cli.SAVED, *cli.INTERRUPTED) for code in codes):
        return "interrupted"
    return "failed" if any(codes) else "finished"
