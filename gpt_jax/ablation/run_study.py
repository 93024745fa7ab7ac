"""A study in one process, from its plan to its report: what `experiments.ablate` does, for a cell of a notebook."""

from __future__ import annotations

from typing import NamedTuple

from rich.console import Console

from gpt_jax.ablation import stages
from gpt_jax.ablation.findings import StudyResults
from gpt_jax.ablation.grouping import choose
from gpt_jax.ablation.plan import make_plan
from gpt_jax.ablation.redone import redone
from gpt_jax.ablation.report import write_report
from gpt_jax.ablation.results import write_results
from gpt_jax.ablation.runner import Runner, StudyStatus, write_plan
from gpt_jax.ablation.show import show_plan
from gpt_jax.ablation.study import Study
from gpt_jax.runs.folder import RunFolder, Workdir
from gpt_jax.training.programs import Programs


class StudyEnd(NamedTuple):
    """What came of a study: `report` is the path of its page. A study that is "interrupted" or "failed" has the results
    of the runs that finished; `run_study` with the same folder continues it.
    """

    status: StudyStatus
    results: StudyResults
    report: str


def run_study(
    study: Study,
    workdir: Workdir,
    *,
    console: Console | None = None,
    programs: Programs | None = None,
    together: int | None = None,
) -> StudyEnd:
    """Runs a study in the folder `workdir`, and writes its results and its report. Finished runs are skipped,
    interrupted ones continue.

    Args:
      study: the question, the arms and the seeds.
      workdir: the study's folder, as of `experiments.ablate`.
      console: where the plan and a line for each run are printed; None: a new one.
      programs: compiled programs to share with other studies of the process; None: new ones.
      together: the number of seeds that train in one program; None: as is measured to be faster.

    Raises:
      ConfigError: the study is invalid, or has more seeds than the claim in the folder allows.
    """
    console, programs, folder = console or Console(), programs or Programs(), RunFolder(workdir)
    plan = make_plan(study)
    grouping = choose(plan, workdir, together, False, programs)
    if grouping.count > 1:
        plan = make_plan(study, grouping.count)
    plan = stages.advanced(plan, folder)
    write_plan(plan, workdir, "gpt_jax.ablation.run_study", grouping, forced=False)
    show_plan(plan, console)
    for line in (f"seeds: {grouping.reason}", *redone(plan.runs, folder)):
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    status = Runner(plan, workdir, console, programs).run()
    return StudyEnd(status, write_results(workdir), write_report(workdir))
