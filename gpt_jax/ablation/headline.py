"""What stands on a report above its table: marks, warnings, and the study in a few figures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from gpt_jax.ablation.findings import StudyResults
from gpt_jax.ablation.method import seeds_seen
from gpt_jax.ablation.picture import STAMP
from gpt_jax.ablation.schema import Budget
from gpt_jax.ablation.statuses import ended, failed, statuses, swept
from gpt_jax.pages.numbers import compact, loss, seconds


def warnings(results: StudyResults) -> list[str]:
    """What a reader must know before reading the figures, beside the marks of the study."""
    counts = statuses(results.arms)
    total, left = sum(counts.values()), sum(n for s, n in counts.items() if s not in ("finished", "diverged"))
    has_values = any(arm.values for arm in results.arms)
    said = []
    if left or not (total or has_values):
        open_runs = ", ".join(f"{n} {s}" for s, n in counts.items() if n and s not in ("finished", "diverged"))
        is_tuned = any(arm.tuned is not None for arm in results.arms)
        begun = "no run of the verdict has begun, the tuning comes first" if is_tuned else "no run has begun"
        done = f"{total - left} of {total} runs are done ({open_runs})" if total else begun
        said.append(f"This study is not finished: {done}. The figures will change.")
    lost = [arm for arm in results.arms if failed(arm)]
    if lost:
        names = ", ".join(f"{arm.name} ({failed(arm)} of {ended(arm)})" for arm in lost)
        is_bare = all(arm.mean is None for arm in lost)
        said.append(
            f"Seeds failed: {names}.{' These arms have no mean and no difference of means.' if is_bare else ''}"
        )
    compared = {arm.name: arm.versus_baseline for arm in results.arms if arm.versus_baseline is not None}
    odd = [f"{name} (seed {', '.join(versus.outliers)})" for name, versus in compared.items() if versus.outliers]
    if odd:
        said.append(f"Outliers among the differences: {', '.join(odd)}. See the robust estimate beside the mean.")
    edge = [arm.name for arm in results.arms if arm.tuned is not None and arm.tuned.is_at_edge]
    if edge and not any("edge" in mark for mark in results.marks):
        said.append(f"The best learning rate lies on the edge of the grid for {', '.join(edge)}: widen the grid.")
    if max((len(arm.values) for arm in results.arms), default=0) == 1:
        said.append("One seed: there are no intervals and no tests, and nothing is decided.")
    return said


def facts(results: StudyResults) -> list[tuple[str, str]]:
    """The study in a few figures, as pairs of a name and a text. What is not known is left out."""
    unit = f"{results.metric.replace('_', ' ')} ({results.unit}); all else is secondary"
    found: list[tuple[str, str | None]] = [("Endpoint", unit)]
    if results.secondary_comparisons:
        n = results.secondary_comparisons
        found.append(("Secondary endpoints", f"{_endpoints(results)}; {n} comparisons under a correction of their own"))
    if results.smallest_difference is not None:
        found.append(("Smallest difference that matters", f"{results.smallest_difference:g}"))
    n = len(results.arms) - 1
    found += [("Baseline", f"{results.baseline}, against {n} arm{'' if n == 1 else 's'}"), ("Seeds", _seeds(results))]
    found += [*_setup(results), ("Learning rates", _rates(results)), ("Tuning", _tuning(results))]
    budget = results.budget
    if budget is not None or results.repeat.configs:
        known = budget or Budget()
        field = f", by {known.field}" if known.field else ""
        found.append(("Matched on", f"{known.match}{field}" if known.match else "nothing"))
    return [(name, text) for name, text in [*found, *_runs(results)] if text]


def _endpoints(results: StudyResults) -> str:
    names = dict.fromkeys(found.endpoint for found in results.secondary)
    return f"accuracy on {'; '.join(names)}" if names else "not measured yet"


def _seeds(results: StudyResults) -> str | None:
    n = seeds_seen(results)
    parts = [
        None if results.planned_seeds is None else f"{results.planned_seeds} planned",
        f"{n} seen" if n else None,
        None if results.most_seeds is None else f"at most {results.most_seeds}",
    ]
    return ", ".join(part for part in parts if part) or None


def _setup(results: StudyResults) -> list[tuple[str, str | None]]:
    setup = results.setup
    whole = {
        "Steps": setup.steps,
        "Batch": setup.batch_size,
        "Context": setup.context_length,
        "Tokens of a run": setup.tokens,
        "Validation": setup.validation_tokens,
    }
    units = {"Batch": " rows", "Context": " tokens", "Validation": " tokens"}
    written = {name: f"{value:,}" for name, value in whole.items() if value is not None}
    known = {name: f"{text}{units[name] if name in units else ''}" for name, text in written.items()}
    return [*known.items(), ("Precision", setup.precision), ("Devices", ", ".join(results.devices) or None)]


def _rates(results: StudyResults) -> str | None:
    rates = {arm.name: arm.learning_rate for arm in results.arms if arm.learning_rate is not None}
    if not rates:
        return None
    if several := swept(results.arms):
        return f"{', '.join(f'{rate:g}' for rate in several)}, each in all arms"
    is_tuned = any(arm.tuned is not None for arm in results.arms)
    if len(set(rates.values())) == 1:
        return f"{next(iter(rates.values())):g} for all arms"
    few = [f"{name} {rate:g}" for name, rate in [*rates.items()][:4]]
    more = f", and {len(rates) - 4} more" if len(rates) > 4 else ""
    return f"each arm’s {'tuned ' if is_tuned else ''}own: {', '.join(few)}{more}"


def _tuning(results: StudyResults) -> str | None:
    trials = {arm.name: len(arm.tuned.trials) for arm in results.arms if arm.tuned is not None and arm.tuned.trials}
    if trials:
        least, most = min(trials.values()), max(trials.values())
        each = f"{least}" if least == most else f"{least} to {most}"
        return f"{each} settings for each arm, {sum(trials.values())} in all"
    return "none" if any(arm.learning_rate is not None for arm in results.arms) else None


def _runs(results: StudyResults) -> list[tuple[str, str | None]]:
    counts, repeat = statuses(results.arms), results.repeat
    total = sum(counts.values())
    found: list[tuple[str, str | None]] = []
    if total:
        found.append(("Runs", f"{counts['finished']} of {total} finished"))
    noise = results.noise
    if noise is not None and noise.std is not None:
        found.append(("Noise of the baseline", f"standard deviation {loss(noise.std)}, {noise.n} fresh seeds"))
    if total:
        found.append(("Determinism check", _determinism(results)))
    if repeat.wall_seconds is not None:
        shared = f", {results.jobs} processes at once" if results.jobs > 1 else ""
        found.append(("Time of all runs", f"{seconds(repeat.wall_seconds)}{shared}"))
    flops = [arm.flops for arm in results.arms if arm.flops is not None]
    if flops:
        low, high = compact(min(flops)), compact(max(flops))
        found.append(("FLOPs of a run", low if low == high else f"{low} to {high}"))
    return found


def _determinism(results: StudyResults) -> str:
    if results.aa is None or results.aa.equal is None:
        return "no run was repeated"
    n = results.aa.pairs or 1
    if results.aa.equal:
        return f"{n} of {n} repeated run{'' if n == 1 else 's'} bit-equal"
    return f"not bit-equal ({n} repeated)"


def marks(results: StudyResults) -> list[str]:
    """What stands beside the verdict, as sentences; that of a smoke test is its banner."""
    return [_sentence(mark) for mark in results.marks if not (results.is_smoke and STAMP in mark)]


def marks_html(results: StudyResults) -> str:
    """The marks of a study, and the banner of a smoke test."""
    banner = f'<p class="banner">{escape(STAMP[:1].upper() + STAMP[1:])}.</p>\n' if results.is_smoke else ""
    return banner + "\n".join(f'<p class="mark">{escape(mark)}</p>' for mark in marks(results))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!")) else ".")


def facts_html(pairs: Sequence[tuple[str, str]]) -> str:
    items = "".join(
        f"<div{' class=wide' if len(value) > 48 else ''}><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in pairs
    )
    return f'<dl class="facts">{items}</dl>'
