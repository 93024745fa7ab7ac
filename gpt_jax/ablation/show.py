"""Prints a study's plan: what each arm changes and who asked for it, what it costs, and the runs."""

from __future__ import annotations

from rich.console import Console

from gpt_jax.ablation.guard import spelled
from gpt_jax.ablation.plan import AA, StudyPlan
from gpt_jax.ablation.schema import Leaf


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
    copies = sum(run.purpose == "aa" for run in plan.runs)
    extra = f", {study.fresh_seeds} of the baseline for the noise" if study.fresh_seeds else ""
    extra += f", and the {AA} copy" if copies == 1 else f", and {copies} {AA} copies" if copies else ""
    rates = f" × {len(study.learning_rates)} learning rates" if study.learning_rates else ""
    lines.append(f"  {len(plan.runs)} runs: {len(plan.arms)} arms{rates} × {len(study.seeds)} seeds{extra}")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


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
