"""How a study's numbers are made, in words: for the page, and as a paragraph for a paper."""

from __future__ import annotations

from gpt_jax.ablation.findings import ArmResults, StudyResults
from gpt_jax.ablation.picture import STAMP
from gpt_jax.ablation.statistics import seeds_without_failure
from gpt_jax.ablation.statuses import ended, failed, swept
from gpt_jax.pages.numbers import p_value, writer

METHOD = (
    "Arms are paired: in one seed all have the same initial values for the parameters that they share, the same "
    "batches in the same order and the same validation tokens. Δ is the mean over seeds of (arm − baseline) on the "
    "study’s endpoint, which alone decides; all else is secondary.",
    "The interval below Δ decides. It is Student’s t interval of the paired differences at a stricter level: corrected "
    "over the arms (Bonferroni), so that the intervals of all arms hold together in 95% of studies, and over looks, by "
    "the distribution of the smallest p over all looks that the claim allows, so that a study may be looked at, and "
    "grow, after every seed. p is corrected in the same way. docs/statistics.md has the details and the error rates of "
    "simulated studies.",
    "The verdict is “better” or “worse” where that interval excludes 0, and “slightly” so where the estimate is "
    "smaller than the smallest difference that matters. It is “no difference that matters” where the interval lies "
    "within that smallest difference, there are at least 5 seeds, and enough seeds without a failure to rule out at 5% "
    "that a share {rate} of them fails ({needed} seeds). Else it is “undecided”. The seeds that would decide are those "
    "at which 80% of simulated studies with this Δ and spread decide, within the most that the claim allows.",
    "A seed failed if its run diverged, or ended above the loss that the study allows. An arm with a failed seed has "
    "no mean and no Δ, and no curve is drawn of it: the seeds that survived are another population. Failure rates are "
    "compared by Fisher’s exact test; the interval of a rate is Clopper and Pearson’s.",
    "The robust Δ is the Hodges–Lehmann estimate with its exact interval. “For text like this” takes seeds and "
    "validation rows as two crossed random factors; the other intervals are for this validation text alone. Outliers "
    "are named by the generalized extreme Studentized deviate test at 1%.",
)


def method(results: StudyResults) -> list[str]:
    """The paragraphs of the page."""
    rate = 0.2 if results.rules_out_failures is None else results.rules_out_failures
    return [text.format(rate=f"of {rate:.0%}", needed=seeds_without_failure(rate)) for text in METHOD]


def paragraph(results: StudyResults) -> str:
    """One paragraph with this study's numbers, which a paper may quote. What is not known is left out."""
    parts = [_design(results), _training(results), _tuning(results), _endpoint(results), _statistics(results)]
    parts += [_looks(results), _failures(results), _machines(results), _findings(results)]
    text = " ".join(part for part in parts if part)
    return f"[{STAMP}] {text}" if results.is_smoke else text


def _list(words: list[str]) -> str:
    comma = "; " if any("," in word for word in words) else ", "
    return words[0] if len(words) == 1 else f"{comma.join(words[:-1])} and {words[-1]}"


def _count(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def _design(results: StudyResults) -> str:
    others = [arm.name for arm in results.arms if arm.name != results.baseline]
    n = seeds_seen(results)
    names = f" ({_list(others)})" if others else ""
    text = f"We compared {_count(len(others), 'arm')}{names} with the baseline {results.baseline}"
    text += f" on {_count(n, 'paired seed')}." if n else "."
    budget = results.budget
    if budget is not None and budget.match:
        by = f" by solving for {budget.field}" if budget.field else ""
        text += f" The arms are matched to the baseline’s budget of {budget.match}{by}."
        off = [f"{a.name} ({a.budget_ratio:.3f} ×)" for a in results.arms if not a.is_ranked and a.budget_ratio]
        text += f" Off the budget and not ranked: {', '.join(off)}." if off else ""
        forced = [f"{arm.name} ({arm.budget_ratio:.3f} ×)" for arm in results.arms if arm.is_forced]
        text += f" Off the budget and ranked all the same: {', '.join(forced)}." if forced else ""
    return text


def seeds_seen(results: StudyResults) -> int:
    """The seeds at which the baseline has a value."""
    return max((len(arm.values) for arm in results.arms if arm.name == results.baseline), default=0)


def _training(results: StudyResults) -> str:
    setup = results.setup
    facts = [
        None if setup.steps is None else f"{setup.steps:,} steps",
        None if setup.batch_size is None else f"batches of {setup.batch_size:,} rows",
        None if setup.context_length is None else f"a context of {setup.context_length:,} tokens",
        None if setup.precision is None else f"{setup.precision} precision",
    ]
    known = [fact for fact in facts if fact]
    text = f"Every run trains for {_list(known)}" if known else ""
    if text:
        text += "." if setup.tokens is None else f", {setup.tokens:,} tokens in all."
    if setup.validation_tokens is not None:
        text += f" Validation reads {setup.validation_tokens:,} predicted tokens."
    return text.strip()


def _tuning(results: StudyResults) -> str:
    tuned = [arm for arm in results.arms if arm.tuned is not None and arm.tuned.trials]
    if tuned:
        numbers = sorted({len(arm.tuned.trials) for arm in tuned if arm.tuned is not None})
        each = f"{numbers[0]} settings" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]} settings"
        best = [f"{arm.name} {arm.learning_rate:g}" for arm in tuned if arm.learning_rate is not None]
        chosen = f" The learning rates so chosen: {_list(best)}." if best else ""
        return f"Each arm was tuned first, with {each} on seeds that the comparison does not use.{chosen}"
    if several := swept(results.arms):
        return f"Every arm was trained at each of the learning rates {_list([f'{rate:g}' for rate in several])}."
    rates = {arm.learning_rate for arm in results.arms if arm.learning_rate is not None}
    if len(rates) == 1:
        return f"Nothing was tuned: all arms have the learning rate {rates.pop():g}."
    return "Nothing was tuned." if rates else ""


def _endpoint(results: StudyResults) -> str:
    text = f"The endpoint is the {results.metric.replace('_', ' ')} ({results.unit})"
    text += ", of which lower is better" if results.lower_is_better else ", of which higher is better"
    if results.smallest_difference is not None:
        text += f"; the smallest difference that matters was set to {results.smallest_difference:g}"
    return text + f". All other measurements are secondary.{_secondary(results)}"


def _secondary(results: StudyResults) -> str:
    names = list(dict.fromkeys(found.endpoint for found in results.secondary))
    if not names:
        return ""
    return (
        f" Of these, we compare the accuracy on {_list(names)} with known answers, the same questions for every run, in"
        f" {_count(results.secondary_comparisons, 'comparison')} under a Bonferroni correction of their own."
    )


def _statistics(results: StudyResults) -> str:
    compared = [arm for arm in results.arms if arm.name != results.baseline and arm.is_ranked]
    return (
        "We judge mean paired differences by two-sided t tests and intervals, Bonferroni-corrected for "
        f"{_count(len(compared), 'comparison')} and corrected for repeated looks by the distribution of the smallest "
        "p-value over looks, so that all stated intervals hold together with 95% confidence. “No difference” means "
        "that such an interval lies within the smallest difference that matters."
    )


def _looks(results: StudyResults) -> str:
    planned, most = results.planned_seeds, results.most_seeds
    text = ""
    if planned is not None:
        allowed = f" and at most {most}" if most is not None and most > planned else ""
        text = f"The plan named {_count(planned, 'seed')} for the first look{allowed}."
    looks = sum(event.what == "look" for event in results.log)
    if looks:
        text += f" The results were looked at {_count(looks, 'time')}."
    changes = sum(event.what == "change" and event.runs_done > 0 for event in results.log)
    if changes:
        text += f" The claim was changed {_count(changes, 'time')} after runs had finished."
    return text.strip()


def _failures(results: StudyResults) -> str:
    lost = [f"{failed(arm)} of {ended(arm)} seeds of {arm.name}" for arm in results.arms if failed(arm)]
    if not lost:
        return ""
    rule = "Arms with failed seeds have no mean difference; exact tests compare the failures."
    return f"Failed: {_list(lost)}. {rule}"


def _machines(results: StudyResults) -> str:
    text = f"Runs used {_list(list(results.devices))}." if results.devices else ""
    if results.aa is not None and results.aa.equal is not None:
        n = results.aa.pairs or 1
        equal = f"{'was' if n == 1 else 'were'} bit-equal to" if results.aa.equal else "differed from"
        text += f" {_count(n, 'repeated run')} {equal} the first."
    versions = results.repeat.versions or {}
    if versions:
        text += f" Software: {', '.join(f'{name} {version}' for name, version in versions.items())}."
    return text.strip()


def _findings(results: StudyResults) -> str:
    found = [text for arm in results.arms if (text := _finding(arm, results))]
    return f"Against {results.baseline}: {'; '.join(found)}." if found else ""


def _finding(arm: ArmResults, results: StudyResults) -> str:
    versus, write = arm.versus_baseline, writer(results.smallest_difference)
    if versus is None or versus.verdict is None:
        return ""
    if versus.mean is None:
        return f"{arm.name}, {versus.verdict}{f' ({versus.reason})' if versus.reason else ''}"
    numbers = f"Δ {write.signed(versus.mean)}"
    numbers += "" if versus.interval is None else f", interval {write.interval(versus.interval)}"
    numbers += "" if versus.p is None else f", p {'' if versus.p < 1e-4 else '= '}{p_value(versus.p)}"
    return f"{arm.name}, {versus.verdict} ({numbers})"
