"""The texts and tables of a report."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from gpt_jax.ablation import table
from gpt_jax.ablation.findings import ArmResults, Diagnostics, RunRecord, StudyResults
from gpt_jax.ablation.rates import rate_trials
from gpt_jax.ablation.schema import Trial
from gpt_jax.config.conversion import flatten
from gpt_jax.pages.numbers import Number, compact, loss, p_value, seconds, writer
from gpt_jax.pages.tables import plain_table

Table = tuple[list[str], list[list[str]]]  # heads and rows


@dataclass(frozen=True)
class Reading:
    """A number about an arm's training or attention: its name, its unit, and where it is."""

    name: str
    unit: str
    value: Callable[[ArmResults], Number | None]


def _diagnostic(value: Callable[[Diagnostics], Number | None]) -> Callable[[ArmResults], Number | None]:
    return lambda arm: None if arm.diagnostics is None else value(arm.diagnostics)


READINGS = (
    Reading("attention entropy", "nats, mean over heads and positions", _diagnostic(lambda d: d.attention_entropy)),
    Reading("sink mass", "share of attention on the first position", _diagnostic(lambda d: d.sink_mass)),
    Reading(
        "largest logit", "largest absolute attention score before the softmax", _diagnostic(lambda d: d.largest_logit)
    ),
    Reading("gradient norm", "global norm before clipping", _diagnostic(lambda d: d.gradient_norm)),
    Reading("skipped steps", "updates that were not finite and were skipped", _diagnostic(lambda d: d.skipped_steps)),
    Reading(
        "LR sensitivity",
        "mean over the grid of min(loss, initial loss) − best loss, nats",
        lambda arm: arm.learning_rate_sensitivity,
    ),
)


def diagnostics(results: StudyResults) -> Table:
    """Heads and rows of the readings that some arm has."""
    known = [reading for reading in READINGS if any(reading.value(arm) is not None for arm in results.arms)]
    heads = ["arm", *(reading.name for reading in known)]
    return heads, [[arm.name, *(_written(reading.value(arm)) for reading in known)] for arm in results.arms]


def _written(value: Number | None) -> str:
    return "–" if value is None else compact(value)


def absent_diagnostics(results: StudyResults) -> list[str]:
    """The names of the readings that no arm has."""
    heads = diagnostics(results)[0]
    return [reading.name for reading in READINGS if reading.name not in heads]


def diagnostics_html(results: StudyResults) -> str:
    heads, rows = diagnostics(results)
    absent = absent_diagnostics(results)
    note = f'<p class="missing">Not measured: {escape(", ".join(absent))}.</p>' if absent else ""
    if len(heads) == 1:
        return note
    units = "; ".join(f"{reading.name}: {reading.unit}" for reading in READINGS if reading.name in heads)
    return f'{plain_table(heads, rows, 1, "diagnostics")}<p class="note">{escape(units)}.</p>{note}'


def contrasts(results: StudyResults) -> Table:
    """The contrasts beside the differences from the baseline."""
    write, rows = writer(results.smallest_difference), []
    for contrast in results.contrasts:
        versus = contrast.versus
        interval = "–" if versus.interval is None else write.interval(versus.interval)
        verdict = "; ".join(text for text in (versus.verdict, versus.reason) if text)
        rows.append(
            [contrast.name, contrast.kind, write.signed(versus.mean), interval, p_value(versus.p), verdict or "–"]
        )
    return ["contrast", "kind", "Δ", "95% interval", "p", "verdict"], rows


CONTRASTS = (
    "Secondary. A pair is the difference of two arms that are not the baseline; an interaction is what two changes do "
    "together beyond what each does alone, (both − first) − (second − neither). Intervals and p are corrected over all "
    "contrasts of a kind and over looks."
)


def contrasts_html(results: StudyResults) -> str:
    heads, rows = contrasts(results)
    return f'{plain_table(heads, rows, 2, "contrast-table")}<p class="note">{escape(CONTRASTS)}</p>'


def tuning(results: StudyResults) -> Table:
    """What tuning tried and chose for each arm."""
    rows = []
    for arm in results.arms:
        if arm.tuned is None or not arm.tuned.trials:
            continue
        trials = arm.tuned.trials
        rates = ", ".join(f"{trial.learning_rate:g}" for trial in rate_trials(trials))
        edge = " (edge of the grid)" if arm.tuned.is_at_edge else ""
        best = "none: every setting failed" if arm.tuned.best is None else f"{_setting(arm.tuned.best)}{edge}"
        lost = sum(trial.loss is None for trial in trials)
        reached = None if arm.tuned.best is None else arm.tuned.best.loss
        rows.append([arm.name, rates, best, str(len(trials)), str(lost), loss(reached)])
    return ["arm", "rates", "chosen", "settings", "failed", "loss on the tuning text"], rows


def _setting(trial: Trial) -> str:
    more = [
        None if trial.weight_decay is None else f"weight decay {trial.weight_decay:g}",
        None if trial.warmup is None else f"warm-up {trial.warmup:,}",
    ]
    return ", ".join([f"{trial.learning_rate:g}", *(text for text in more if text)])


def log(results: StudyResults) -> Table:
    """Each start, look and change of the study."""
    rows = [[event.time, event.what, str(event.runs_done), event.text] for event in results.log]
    return ["time", "what", "runs done", ""], rows


def log_html(results: StudyResults) -> str:
    """The log as a timeline."""
    heads, rows = log(results)
    items = "".join(
        f'<li class="{escape(what)}"><time>{escape(time)}</time> <b>{escape(what)}</b> {escape(text)}'
        f"<small>{escape(done)} runs done</small></li>"
        for time, what, done, text in rows
    )
    return f'<ol class="log">{items}</ol>'


ASKED = {"arm": "the arm", "match": "the matched budget", "type": "the type that the arm chose"}


def settings(results: StudyResults) -> Table:
    """What each arm changes: one row per setting, its value in the baseline and in the arm, and who asked for it."""
    rows = [
        [arm.name, leaf.key + leaf.where, table.plain(leaf.baseline), table.plain(leaf.arm), ASKED[leaf.asked_by]]
        for arm in results.arms
        for leaf in arm.leaves
    ]
    if rows:
        return ["arm", "setting", "baseline", "arm’s", "asked for by"], rows
    configs = results.repeat.configs or {}
    base = flatten(configs[results.baseline]) if results.baseline in configs else {}
    for arm in results.arms:
        for key, value in (arm.changes or {}).items():
            before = table.plain(base[key]) if key in base else "–"
            rows.append([arm.name, key, before, table.plain(value)])
    return ["arm", "setting", "baseline", "arm’s"], rows


def provenance(results: StudyResults) -> list[tuple[str, str]]:
    """What one needs to make the study again, in lines of a name and a text."""
    repeat = results.repeat
    versions = ", ".join(f"{name} {version}" for name, version in (repeat.versions or {}).items())
    found = [
        ("command", repeat.command),
        ("git", repeat.git),
        ("data", repeat.data_hash),
        ("versions", versions),
        ("seeds", None if results.seeds is None else ", ".join(map(str, results.seeds))),
        ("training", None if repeat.together is None else repeat.together.reason),
        ("wall time", None if repeat.wall_seconds is None else seconds(repeat.wall_seconds)),
    ]
    return [(name, text) for name, text in found if text]


def repeat_html(results: StudyResults) -> str:
    """Command, versions, what the arms change, every run, resolved configurations."""
    parts = []
    for name, value in provenance(results):
        words = " ".join(f'<span class="word">{escape(word)}</span>' for word in value.split(" "))
        body = f"<pre>{words}</pre>" if name == "command" else f" {escape(value)}"
        parts.append(f'<div class="line"><b>{escape(name.capitalize())}</b>{body}</div>')
    items = "".join(f"<li>{escape(failure)}</li>" for failure in results.repeat.failures)
    if items:
        parts.append(f"<p><b>Failures</b></p><ul>{items}</ul>")
    elif any(arm.runs for arm in results.arms):
        parts.append("<p><b>Failures</b> none</p>")
    heads, rows = settings(results)
    if rows:
        parts.append(f"<h3>What the arms change</h3>{plain_table(heads, rows, len(heads), 'settings')}")
    runs = [[arm.name, *_run_cells(run)] for arm in results.arms for run in arm.runs]
    if runs:
        table_of_runs = plain_table(["arm", *RUN_HEADS], runs, 1, "runs")
        parts.append(f"<details><summary>All {len(runs)} runs</summary>{table_of_runs}</details>")
    for name, config in (results.repeat.configs or {}).items():
        listing = escape(json.dumps(config, indent=2, ensure_ascii=False))
        summary = f"<summary>Configuration of {escape(name)}, resolved</summary>"
        parts.append(f'<details class="long">{summary}<pre>{listing}</pre></details>')
    return "\n".join(parts)


RUN_HEADS = ("seed", "learning rate", "status", "time", "hash of the configuration", "folder")


def _run_cells(run: RunRecord) -> list[str]:
    rate = None if run.learning_rate is None else f"{run.learning_rate:g}"
    cells = [run.seed, rate, run.status, seconds(run.wall_seconds), run.config_hash, run.folder]
    return ["–" if cell is None else str(cell) for cell in cells]
