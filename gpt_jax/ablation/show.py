"""Prints a study's plan: what each arm changes and who asked for it, what it costs, and the runs."""

from __future__ import annotations

import dataclasses
import math
import statistics

from rich.console import Console
from rich.table import Column, Table

from gpt_jax.ablation import records
from gpt_jax.ablation.findings import StudyResults
from gpt_jax.ablation.guard import spelled
from gpt_jax.ablation.judging import Rule
from gpt_jax.ablation.plan import StudyPlan
from gpt_jax.ablation.power import SEEDS, power
from gpt_jax.ablation.schema import RESULTS, Leaf
from gpt_jax.ablation.study import Study
from gpt_jax.analysis.cost import forward_flops_per_token
from gpt_jax.config.errors import MissingFile, UserError
from gpt_jax.runs.folder import RunFolder


def show_plan(plan: StudyPlan, console: Console) -> None:
    """Prints the question and the endpoint, for each arm every setting that differs from the baseline's with who asked
    for it and the arm's costs, and the number of runs.
    """
    study = plan.study
    console.print(study.question, style="bold", highlight=False, markup=False, soft_wrap=True)
    lines = [
        f"  decided by the {study.endpoint.words} ({plan.unit}); a difference of {study.smallest_difference:g} matters"
    ]
    for name in plan.arms:
        lines += _arm(plan, name)
    lines += _secondary(plan)
    lines += _tuning(study, plan)
    verdict = [run for group in plan.planner.verdict({}) for run in group]
    copies = sum(run.purpose == "aa" for run in verdict)
    extra = f", {study.fresh_seeds} of the baseline for the noise" if study.fresh_seeds else ""
    extra += f", and {_counted(copies, 'copy', 'copies')} for the determinism check" if copies else ""
    rates = f" × {len(study.learning_rates)} learning rates" if study.learning_rates else ""
    stage = "" if study.tuning is None else "stage 2, at each arm's best: "
    lines.append(f"  {stage}{len(verdict)} runs: {len(plan.arms)} arms{rates} × {len(study.seeds)} seeds{extra}")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _secondary(plan: StudyPlan) -> list[str]:
    """The secondary endpoints, and what asking a run costs beside training it."""
    if not plan.cases:
        return []
    ranked = sum(arm.is_ranked for name, arm in plan.arms.items() if name != plan.study.baseline)
    tokens = sum(case.tokens for case in plan.cases)
    share = max(
        sum(forward_flops_per_token(arm.config.model, case.length) * case.tokens for case in plan.cases)
        / arm.costs.flops
        for arm in plan.arms.values()
    )
    names = "; ".join(f"{case.name} (±{case.suite.smallest_difference:g})" for case in plan.cases)
    return [
        f"  secondary, under a correction of their own over {_counted(ranked * len(plan.cases), 'comparison')}:"
        f" accuracy on {names}",
        f"    each run is asked after its training: {tokens:,} tokens, about {share:.1%} of the FLOPs of training it",
    ]


def _tuning(study: Study, plan: StudyPlan) -> list[str]:
    """How many runs the tuning takes at least and at most."""
    tuning = study.tuning
    if tuning is None:
        return []
    each, rates = len(plan.arms) * len(tuning.seeds), len(tuning.rates)
    further = [(tuning.weight_decays, "weight decays"), (tuning.warmups, "warm-ups")]
    said = [f" + {len(values)} {words}" for values, words in further if values]
    rounds = f" to {rates + tuning.rounds}" if tuning.rounds and rates > 1 else ""
    least, most = each * rates, each * (rates + (tuning.rounds if rates > 1 else 0) + sum(len(v) for v, _ in further))
    count = f"{least}" if least == most else f"{least} to {most}"
    tried = f"({rates}{rounds} learning rates{''.join(said)})"
    return [f"  stage 1, tuning: {count} runs: {len(plan.arms)} arms × {tried} × {_counted(len(tuning.seeds), 'seed')}"]


def _counted(count: int, word: str, many: str | None = None) -> str:
    return f"{count} {word if count == 1 else many or word + 's'}"


def _arm(plan: StudyPlan, name: str) -> list[str]:
    arm, match = plan.arms[name], plan.study.match
    lines = [f"  {name}: baseline" if name == plan.study.baseline else f"  {name}:"]
    lines += [f"    {line}" for line in _asked(plan.leaves[name])]
    costs = arm.costs
    per_token = f"{costs.flops_per_token:,} FLOPs and {costs.kv_bytes_per_token:,.0f} bytes of cache per token"
    lines.append(f"    {costs.parameters:,} parameters, {per_token}")
    lines.append(f"    {costs.tokens:,} tokens and {costs.flops:.3g} FLOPs in a run")
    if arm.value is not None:
        lines.append(f"    matched {match} with {arm.free} = {arm.value}: {arm.ratio:.4f} ×")
    if not arm.is_ranked:
        lines.append(f"    not ranked: its {match} are {arm.ratio:.3f} × the baseline's")
    return lines


def _asked(leaves: tuple[Leaf, ...]) -> list[str]:
    """A line for each setting that the arm or the match asked for, and one for those that came with a type."""
    lines = [f"{spelled(leaf)} (asked by the {leaf.asked_by})" for leaf in leaves if leaf.asked_by != "type"]
    came = [f"{leaf.key}={leaf.arm!r}" for leaf in leaves if leaf.asked_by == "type"]
    return lines + ([f"came with a type: {', '.join(came)}"] if came else [])


def show_power(plan: StudyPlan, noise: str | None, workdir: str, console: Console) -> None:
    """Prints what numbers of seeds would buy: the difference that 80% of studies tell from 0, and how often equal arms
    come out as no different, by simulation.

    `noise` is the standard deviation of a paired difference, or the folder of an earlier study with the same endpoint;
    None: that of the study in `workdir` if it has results, else a guess.
    """
    study = plan.study
    std, source = _spread(noise, workdir, float(study.smallest_difference))
    rule = Rule(
        float(study.smallest_difference),
        comparisons=max(1, len(plan.arms) - 1),
        rules_out_failures=study.rules_out_failures,
    )
    title = f"  if paired differences have the standard deviation {std:.4g} {plan.unit} ({source}):"
    columns = ("seeds", "found in 80% of studies", "equal arms found alike", "")
    table = Table(*(Column(name, justify="right") for name in columns), box=None, padding=(0, 0, 0, 4))
    for n in sorted({*SEEDS, len(study.seeds)}):
        first = dataclasses.replace(rule, planned=n, most=max(n, study.most_seeds))
        found = power(std, n, first)
        seen = "none" if found.detectable is None else f"{found.detectable:.2g}"
        table.add_row(str(n), seen, f"{found.alike:.0%}", "this study" if n == len(study.seeds) else "")
    console.print(title, highlight=False, markup=False, soft_wrap=True)
    console.print(table, highlight=False)


def _spread(noise: str | None, workdir: str, smallest: float) -> tuple[float, str]:
    """The standard deviation of a paired difference, and where it comes from."""
    if noise is not None:
        try:
            value = float(noise)
        except ValueError:
            return _spread_of(RunFolder(noise)), f"seen in {noise}"
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"--noise must be a positive standard deviation or a study's folder, not {noise}")
        return value, "from --noise"
    folder = RunFolder(workdir)
    if folder.exists(RESULTS):
        return _spread_of(folder), f"seen in {workdir}"
    return smallest, "a guess: what matters; state it with --noise"


def _spread_of(folder: RunFolder) -> float:
    """The median over the arms of a study; without two seeds, the noise of its baseline, unpaired."""
    if not folder.exists(RESULTS):
        raise MissingFile(f"there is no {RESULTS} in {folder}: --noise takes a number, or the folder of a study")
    results = records.read(StudyResults, folder, RESULTS)
    found = [arm.versus_baseline.std for arm in results.arms if arm.versus_baseline is not None]
    known = [float(std) for std in found if std]
    if not known and results.noise is not None and results.noise.std:
        known = [math.sqrt(2) * results.noise.std]
    if not known:
        raise UserError(f"the study in {folder} shows no spread yet: give --noise=NUMBER")
    return statistics.median(known)
