"""The table of a study: its columns and how their numbers are written.

A column's value is what it sorts by, its text what is read, and `small` stands below it in small print. What decides
comes first, so that a phone shows it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from gpt_jax.ablation.findings import ArmResults, StudyResults, Versus
from gpt_jax.ablation.statuses import failures_text, statuses
from gpt_jax.pages.numbers import Number, compact, count, decimals, p_value, writer


def _nothing(arm: ArmResults) -> str:
    return ""


@dataclass(frozen=True)
class Column:
    """A column of the table. `hint` explains the head, `tip` a cell; `value` is None where nothing was measured.
    `on_paper` says whether the table of a paper has it.
    """

    head: str
    hint: str
    value: Callable[[ArmResults], Number | str | None]
    text: Callable[[ArmResults], str]
    small: Callable[[ArmResults], str] = _nothing
    tip: Callable[[ArmResults], str] = _nothing
    is_text: bool = False
    always: bool = False
    on_paper: bool = True


def whole(column: Column, arm: ArmResults) -> str:
    """The text of a cell with its small print in brackets, on one line."""
    small = column.small(arm)
    return f"{column.text(arm)} ({small})" if small else column.text(arm)


def runs_text(arm: ArmResults) -> str:
    """`8`, or `6 of 8 (1 diverged)`."""
    counts = statuses([arm])
    total, bad = sum(counts.values()), {k: n for k, n in counts.items() if n and k != "finished"}
    rest = ", ".join(f"{n} {status}" for status, n in bad.items())
    return f"{counts['finished']} of {total} ({rest})" if bad else str(total)


def verdict_small(arm: ArmResults) -> str:
    """The reason of a verdict and, where it is open, the number of seeds that would decide."""
    versus = _versus(arm)
    needed = seeds_needed(arm)
    found = [versus.reason, f"about {needed:,} seeds would decide" if needed else None]
    return "; ".join(text for text in found if text)


def seeds_needed(arm: ArmResults) -> int | None:
    """The number of seeds that would decide on an undecided arm, if it has fewer."""
    versus = _versus(arm)
    if versus.seeds_to_decide is None or versus.verdict != "undecided":
        return None
    return versus.seeds_to_decide if versus.seeds_to_decide > (versus.n or 0) else None


def changes_text(arm: ArmResults) -> str:
    """`kv_heads = 1, mlp.width = 80`: the arm's changes, with short names. What is switched off comes last."""
    changes = arm.changes or {}
    paths = {key: key.removeprefix("model.").removesuffix(".type").split(".") for key in changes}
    ordered = sorted(changes, key=lambda key: changes[key] == "none")
    return ", ".join(f"{_short(paths[key], paths.values())} = {plain(changes[key])}" for key in ordered)


def _short(path: list[str], others: Iterable[list[str]]) -> str:
    """The last part of a setting's name that no other setting ends with."""
    first = 2 if path[-1] in ("width", "path") else 1
    for n in range(first, len(path)):
        if sum(other[-n:] == path[-n:] for other in others) == 1:
            return ".".join(path[-n:])
    return ".".join(path)


def plain(value: Any) -> str:
    """A setting as a person writes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


NOTHING = Versus()


def _versus(arm: ArmResults) -> Versus:
    """The comparison with the baseline; one of Nones where there is none."""
    return arm.versus_baseline or NOTHING


def columns(results: StudyResults) -> tuple[list[Column], list[str]]:
    """The columns in which some arm has a value, and the heads of the others."""
    wanted = [*_deciding(results), *_supporting(results), *_costs(), *_measured(results)]
    counts = statuses(results.arms)
    if counts["finished"] == sum(counts.values()):
        wanted = [column for column in wanted if column.head != "runs"]
    kept = [c for c in wanted if c.always or any(c.value(arm) is not None for arm in results.arms)]
    return kept, [c.head for c in wanted if c not in kept]


def _deciding(results: StudyResults) -> list[Column]:
    """What a phone must show: the arm, its difference with the interval that decides, p, and the verdict."""
    write = writer(results.smallest_difference)
    side = "below" if results.lower_is_better else "above"
    return [
        Column("arm", "and what it changes", lambda a: a.name, lambda a: a.name, is_text=True, always=True),
        Column(
            "Δ",
            f"paired difference from the baseline, {side} 0 is better; below it, the 95% interval that decides: it "
            "holds for all arms and all looks at once",
            lambda a: _versus(a).mean,
            lambda a: write.signed(_versus(a).mean),
            lambda a: "" if _versus(a).interval is None else write.interval(_versus(a).interval),
            lambda a: _difference_tip(a, write.interval, write.signed),
        ),
        Column(
            "p",
            "paired t-test (exact test where seeds failed), corrected over arms and looks",
            lambda a: _versus(a).p,
            lambda a: p_value(_versus(a).p),
            lambda a: "of failures" if _versus(a).p is not None and _versus(a).mean is None else "",
            lambda a: "" if _versus(a).t_p is None else f"for this arm alone: {p_value(_versus(a).t_p)}",
        ),
        Column(
            "verdict",
            "",
            lambda a: _versus(a).verdict,
            lambda a: _versus(a).verdict or "–",
            verdict_small,
            is_text=True,
        ),
    ]  # fmt: skip


def _supporting(results: StudyResults) -> list[Column]:
    """The endpoint itself, and what a reader needs to weigh the verdict."""
    write = writer(results.smallest_difference)

    def mean_text(arm: ArmResults) -> str:
        started = arm.mean is not None or arm.values or arm.losses
        return write.plus_minus(arm.mean, arm.interval) if started else "not run yet"

    return [
        Column(
            results.metric.replace("_", " "),
            f"mean over seeds ± 95% interval, {results.unit}; none where a seed failed",
            lambda a: a.mean,
            mean_text,
            tip=lambda a: _values_tip(a, write.plain),
        ),
        Column(
            "failed",
            "seeds that failed: diverged, or ended above what the study allows; exact 95% interval of the rate",
            lambda a: None if a.failures is None else a.failures.failed,
            lambda a: "–" if a.failures is None else f"{a.failures.failed} of {a.failures.n}",
            _failure_interval,
        ),
        Column(
            "robust Δ",
            "Hodges–Lehmann estimate, which one outlier hardly moves, with its exact interval",
            lambda a: _versus(a).robust,
            lambda a: write.signed(_versus(a).robust),
            lambda a: "" if _versus(a).robust_interval is None else write.interval(_versus(a).robust_interval),
            _robust_tip,
        ),
        Column(
            "for text like this",
            "95% interval of Δ over seeds and validation rows together",
            lambda a: None if (ends := _versus(a).population_interval) is None else ends[1],
            lambda a: write.interval(_versus(a).population_interval),
        ),
        Column("SD", "standard deviation over seeds", lambda a: a.std, lambda a: write.plain(a.std), on_paper=False),
        Column(
            "SD of Δ",
            "standard deviation of the paired differences",
            lambda a: _versus(a).std,
            lambda a: write.plain(_versus(a).std),
            on_paper=False,
        ),
        Column(
            "pairing’s r",
            "correlation with the baseline over seeds, which is what pairing gains",
            lambda a: _versus(a).correlation,
            lambda a: "–" if (r := _versus(a).correlation) is None else decimals(r, 2),
            on_paper=False,
        ),
        Column("seeds", "runs in the mean", lambda a: a.n, lambda a: count(a.n), on_paper=False),
        Column("runs", "all that the arm has", lambda a: statuses([a])["finished"], runs_text, on_paper=False),
        Column("LR", "learning rate", lambda a: a.learning_rate, _rate, _edge),
    ]  # fmt: skip


def _costs() -> list[Column]:
    return [
        _cost("parameters", "trainable, all", lambda a: a.parameters),
        _cost("tokens", "that a run trains on", lambda a: a.tokens, on_paper=False),
        _cost("FLOPs", "of a run: training, forward and backward, counted analytically", lambda a: a.flops, _flops),
        _cost("budget", "the matched cost ÷ the baseline’s", lambda a: a.budget_ratio, _ratio, on_paper=False),
        _cost("FLOPs/token", "of training, counted analytically", lambda a: a.flops_per_token, on_paper=False),
        _cost("KV bytes/token", "of the cache, all layers", lambda a: a.kv_bytes_per_token, _bytes),
    ]


def _measured(results: StudyResults) -> list[Column]:
    """What depends on the machine, which each head's hint names."""
    hint = f"measured on {machine(results)}"
    if results.jobs > 1:
        hint += f", which {results.jobs} processes shared: not comparable"
    return [
        _cost("decode tokens/s", hint, lambda a: a.measured_decode_tokens_per_second, on_paper=False),
        _cost("training tokens/s", hint, lambda a: a.measured_training_tokens_per_second, on_paper=False),
        _cost("peak memory", hint, lambda a: a.measured_peak_bytes, _memory, on_paper=False),
    ]


def machine(results: StudyResults) -> str:
    """The devices of the runs, in words."""
    return " and ".join(results.devices) if results.devices else "a machine that is not recorded"


def timings_note(results: StudyResults) -> str:
    """Where times and memory come from; empty if there are none."""
    if not any(column.value(arm) is not None for column in _measured(results) for arm in results.arms):
        return ""
    shared = f" {results.jobs} processes shared the machine, so they are not comparable." if results.jobs > 1 else ""
    return f"Times and memory are of {machine(results)}.{shared}"


def _cost(
    head: str,
    hint: str,
    value: Callable[[ArmResults], Number | None],
    write: Callable[[Number | None], str] = count,
    on_paper: bool = True,
) -> Column:
    """A column of numbers whose exact value is in the cell's tip."""
    tip = lambda a: _exact(value(a))  # noqa: E731
    return Column(head, hint, value, lambda a: write(value(a)), tip=tip, on_paper=on_paper)


def _values_tip(arm: ArmResults, write: Callable[[Number | None], str]) -> str:
    return "; ".join(
        f"seed {seed}: {'failed' if value is None else write(value)}" for seed, value in arm.values.items()
    )


def _difference_tip(arm: ArmResults, write: Callable[..., str], signed: Callable[[Number | None], str]) -> str:
    versus = _versus(arm)
    if failures := failures_text(arm):
        return failures
    lines = [] if versus.t_interval is None else [f"95% for this arm alone: {write(versus.t_interval)}"]
    lines += [f"outliers: seed {', '.join(versus.outliers)}"] if versus.outliers else []
    return "\n".join(lines)


def _failure_interval(arm: ArmResults) -> str:
    failures = arm.failures
    if failures is None or failures.interval is None:
        return ""
    return f"{failures.interval[0]:.0%} to {failures.interval[1]:.0%}"


def _robust_tip(arm: ArmResults) -> str:
    level = _versus(arm).robust_level
    return "" if level is None else f"the interval holds in {level:.1%} of cases"


def _rate(arm: ArmResults) -> str:
    return "–" if arm.learning_rate is None else f"{arm.learning_rate:g}"


def _edge(arm: ArmResults) -> str:
    return "edge of the grid" if arm.tuned is not None and arm.tuned.is_at_edge else ""


def _flops(value: Number | None) -> str:
    return "–" if value is None else f"{value:.3g}".replace("e+", "e")


def _ratio(value: Number | None) -> str:
    return "–" if value is None else f"{decimals(value, 3)} ×"


def _bytes(value: Number | None) -> str:
    return "–" if value is None else decimals(value, 0 if value == int(value) else 1)


def _memory(value: Number | None) -> str:
    return "–" if value is None else compact(value, 2) + "B"


def _exact(value: Number | None) -> str:
    return "" if value is None else f"{value:,.6g}" if isinstance(value, float) and value % 1 else f"{value:,.0f}"
