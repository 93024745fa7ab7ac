"""Studies from flags: the study's file, its tiny size, and its processes."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shlex
import signal
import subprocess
import sys
from types import FrameType, ModuleType
from typing import Any

from absl import flags

from experiments import cli
from gpt_jax.ablation import records
from gpt_jax.ablation.grouping import choose
from gpt_jax.ablation.plan import StudyPlan, make_plan
from gpt_jax.ablation.redone import redone
from gpt_jax.ablation.results import STUDY
from gpt_jax.ablation.runner import StudyStatus, write_plan
from gpt_jax.ablation.schema import StudyRecord
from gpt_jax.ablation.study import Study, change
from gpt_jax.config.errors import ConfigError
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
    module = _load(flag.config_filename.split(":")[0])
    if not hasattr(module, "get_study"):
        raise ConfigError(
            f"{module.__file__} is not a study: it needs get_study(base), as the files of configs/ablations/ have"
        )
    if values.smoke:
        base = change(base, SMOKE | (module.SMOKE if hasattr(module, "SMOKE") else {}))
    study: Study = module.get_study(base)
    if values.smoke:
        rates = study.learning_rates[:2]
        study = dataclasses.replace(study, seeds=SMOKE_SEEDS, fresh_seeds=0, learning_rates=rates, is_smoke=True)
    if values.seeds is not None:
        study = dataclasses.replace(study, seeds=tuple(range(values.seeds)))
    if values.learning_rates is not None:
        study = dataclasses.replace(study, learning_rates=_rates(values.learning_rates))
    return study


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


def shard_from_flags() -> tuple[int, int] | None:
    """(I − 1, N) of `--shard=I/N`; None where it was not given."""
    text = flags.FLAGS.shard
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise cli.UsageError(f"--shard must be I/N with I from 1 to N, not {text}")
    return int(found[1]) - 1, int(found[2])


def begin(plan: StudyPlan, workdir: str, is_part: bool, programs: Programs) -> StudyPlan:
    """Writes the plan into the study's folder and returns it, with its seeds in groups that train together."""
    grouping = choose(plan, workdir, flags.FLAGS.together, is_part, programs)
    if grouping.count > 1:
        plan = make_plan(plan.study, grouping.count)
    folder = RunFolder(workdir)
    is_known = is_part and folder.exists(STUDY)  # the command of one part does not make the whole study
    earlier = records.read(StudyRecord, folder, STUDY).repeat.command if is_known else None
    write_plan(plan, workdir, earlier or cli.command(), grouping, flags.FLAGS.force)
    if not is_part:
        print("\n".join([f"  seeds: {grouping.reason}", *(f"  {line}" for line in redone(plan.runs, folder))]))
    return plan


def run_jobs(count: int) -> StudyStatus:
    """Runs this command's study in `count` processes, each with its shard."""
    if flags.FLAGS.shard is not None:
        raise cli.UsageError("--jobs and --shard exclude each other: a launcher starts one process for each shard")
    processes = []
    for i in range(1, count + 1):
        command = shlex.split(cli.command("--jobs=1", f"--shard={i}/{count}"))[1:]
        processes.append(subprocess.Popen([sys.executable, *command]))

    def forward(number: int, frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(number)

    previous = signal.signal(signal.SIGTERM, forward)
    try:
        codes = [process.wait() for process in processes]
    except KeyboardInterrupt:  # the terminal's Ctrl-C reached them too: they save and stop
        codes = [process.wait() for process in processes]
    finally:
        signal.signal(signal.SIGTERM, previous)
    if any(code in (cli.SAVED, cli.INTERRUPTED) for code in codes):
        return "interrupted"
    return "failed" if any(codes) else "finished"
