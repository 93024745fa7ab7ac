"""A study's report: from `results.json` to one page that opens from disk, to Markdown and to CSV.

`write_report` reads nothing but that file, so a report can be made again, half-way through a study or years after it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from gpt_jax.ablation import sections, table
from gpt_jax.ablation.pictures import Picture, pictures
from gpt_jax.config.errors import ConfigError, MissingFile
from gpt_jax.pages.render import render
from gpt_jax.runs.folder import RunFolder

RESULTS, REPORT, MARKDOWN, CSV = "results.json", "report.html", "report.md", "results.csv"
STUDY_KEYS = (
    "question", "metric", "smallest_difference", "baseline", "seeds", "budget", "verdict", "noise", "aa", "arms",
    "repeat",
)  # fmt: skip
ARM_KEYS = (
    "name", "changes", "parameters", "parameters_non_embedding", "flops_per_token", "kv_bytes_per_token",
    "measured_decode_tokens_per_second", "measured_training_tokens_per_second", "measured_peak_bytes",
    "best_learning_rate", "learning_rate_at_edge", "learning_rate_sensitivity", "mean", "std", "n", "interval",
    "versus_baseline", "losses", "by_learning_rate", "curves", "loss_by_position", "extrapolation", "accuracy_by",
    "diagnostics", "runs",
)  # fmt: skip
VERSUS_KEYS = ("mean", "t_interval", "bca_interval", "t_p", "t_p_holm", "sign_flip_p", "verdict", "seeds_to_decide")
RUN_KEYS = ("seed", "learning_rate", "folder", "status", "config_hash", "wall_seconds")


def write_report(folder: str | os.PathLike[str]) -> str:
    """Writes `report.html`, `report.md` and `results.csv` beside `results.json`, and returns the page's path.

    Raises:
      FileNotFoundError: the folder has no `results.json`.
      ConfigError: that file does not hold the results of a study.
    """
    place = RunFolder(folder)
    if not place.exists(RESULTS):
        raise MissingFile(f"there is no {RESULTS} in {place}: give the folder of a study that has begun")
    results = complete(place.read_json(RESULTS))
    place.write_text(CSV, table.to_csv(results))
    place.write_text(MARKDOWN, to_markdown(results))
    place.write_text(REPORT, to_html(results))
    return str(place.file(REPORT))


def complete(results: Any) -> dict[str, Any]:
    """Results with every key of the contract, None where one is absent or a number is not finite.

    Raises:
      ConfigError: they are not a study's.
    """
    if not isinstance(results, dict) or not isinstance(results.get("arms"), list) or "question" not in results:
        raise ConfigError(f"{RESULTS} holds no study: it needs a question and a list of arms")

    def filled(keys: Sequence[str], group: Mapping[str, Any]) -> dict[str, Any]:
        return {**dict.fromkeys(keys), **group}

    study = filled(STUDY_KEYS, _finite(results))
    study["metric"] = study["metric"] or "loss"
    arms = [filled(ARM_KEYS, arm) for arm in study["arms"]]
    for arm in arms:
        arm["runs"] = [filled(RUN_KEYS, run) for run in arm["runs"] or ()]
        if arm["versus_baseline"] is not None:
            arm["versus_baseline"] = filled(VERSUS_KEYS, arm["versus_baseline"])
    return study | {"arms": arms, "repeat": study["repeat"] or {}}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_html(results: Mapping[str, Any]) -> str:
    """The page."""
    drawn, missing = pictures(results)
    question = results["question"]
    body = [
        f'<p class="eyebrow">Ablation study</p>\n<h1>{escape(question)}</h1>',
        f'<p class="verdict">{escape(results["verdict"] or "No verdict yet.")}</p>',
        *(f'<p class="warning">{escape(warning)}</p>' for warning in sections.warnings(results)),
        sections.facts_html(sections.facts(results)),
        "<h2>Arms</h2>",
        sections.arms_html(results),
        "<h2>Pictures</h2>",
        pictures_html(drawn, missing),
        "<h2>Diagnostics</h2>",
        sections.diagnostics_html(results),
        "<h2>How the numbers are made</h2>",
        *(f'<p class="note">{escape(paragraph)}</p>' for paragraph in sections.METHOD),
        "<h2>To repeat it</h2>",
        sections.repeat_html(results),
    ]
    return render(question, "\n".join(body))


def pictures_html(drawn: Sequence[Picture], missing: Sequence[str]) -> str:
    figures = "\n".join(picture.html() for picture in drawn)
    absent = f'<p class="missing">Not measured: {escape("; ".join(missing))}.</p>' if missing else ""
    return f'<div class="pictures">\n{figures}\n</div>\n{absent}'


def to_markdown(results: Mapping[str, Any]) -> str:
    """The report without pictures, for a pull request or a notebook."""
    columns, absent = table.columns(results)
    heads, right = [column.head for column in columns], [not column.is_text for column in columns]
    rows = [[column.text(arm) for column in columns] for arm in results["arms"]]
    say = table.escape_markdown
    parts = [f"# {say(results['question'])}", say(results["verdict"] or "No verdict yet.")]
    parts += [f"> {say(warning)}" for warning in sections.warnings(results)]
    parts.append("".join(f"- {say(name)}: {say(value)}\n" for name, value in sections.facts(results)))
    parts.append(table.to_markdown(heads, rows, right))
    unmeasured = [*absent, *pictures(results)[1], *sections.absent_diagnostics(results)]
    if unmeasured:
        parts.append(f"Not measured: {say('; '.join(unmeasured))}.")
    heads, rows = sections.diagnostics(results)
    if len(heads) > 1:
        parts += ["## Diagnostics", table.to_markdown(heads, rows, [False] + [True] * (len(heads) - 1))]
    heads, rows = sections.settings(results)
    if rows:
        parts += ["## What the arms change", table.to_markdown(heads, rows, [False] * len(heads))]
    parts.append("## To repeat it")
    lines = sections.provenance(results)
    parts += [f"    {' '.join(value.split())}" for name, value in lines if name == "command"]
    parts.append("".join(f"- {say(name)}: {say(value)}\n" for name, value in lines if name != "command"))
    failures = results["repeat"].get("failures") or []
    if failures:
        parts += ["Failures:", "".join(f"- {say(sections.sentence(failure))}\n" for failure in failures)]
    configs = results["repeat"].get("configs")
    if configs:
        parts.append(f"Resolved configurations and every run are in `{RESULTS}` and `{REPORT}`.")
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"
