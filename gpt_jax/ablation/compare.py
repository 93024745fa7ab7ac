"""Runs side by side, outside of a study: a page with their curves and the settings in which they differ."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import PurePosixPath
from typing import Any

from etils import epath

from gpt_jax.ablation.curves import curves, gap
from gpt_jax.ablation.findings import ArmResults, Curves, StudyResults
from gpt_jax.ablation.picture import Picture
from gpt_jax.ablation.report import pictures_html
from gpt_jax.ablation.table import plain
from gpt_jax.config.conversion import flatten
from gpt_jax.config.disk import writing
from gpt_jax.config.errors import MissingFile, UserError
from gpt_jax.pages.numbers import count, loss
from gpt_jax.pages.render import render
from gpt_jax.pages.tables import plain_table
from gpt_jax.runs import metrics
from gpt_jax.runs.folder import CONFIG, METRICS, RunFolder
from gpt_jax.runs.record import read_config

HEADS = ("run", "updates", "last validation loss", "best validation loss", "after", "tokens", "training tokens/s")


def write_comparison(runs: Sequence[str], output: str) -> str:
    """Writes a page that overlays the loss curves of the runs in these folders, and returns its path. The first run is
    the baseline of the others. Each is one run of one seed: nothing here tests a difference.

    Raises:
      MissingFile: a folder holds no run, or nothing was recorded yet.
      UserError: no run is given, one is given twice, or a record is broken.
    """
    folders = [RunFolder(run) for run in runs]
    if not folders:
        raise UserError("there is nothing to compare: name the folders of some runs")
    if len({str(folder) for folder in folders}) < len(folders):
        raise UserError("a run is named twice: name each once")
    names = short_names([str(folder) for folder in folders])
    found = [_run(name, folder) for name, folder in zip(names, folders, strict=True)]
    title = f"{len(found)} run{'s' * (len(found) > 1)}, side by side"
    arms = tuple(ArmResults(name=run.name, curves=run.curves) for run in found)
    study = StudyResults(question=title, baseline=names[0], arms=arms)
    drawn = {
        "validation loss": curves(study, "validation"),
        "loss minus the first run’s": gap(study),
        "training loss": curves(study, "train"),
    }
    missing = [f"{name} ({why})" if why else name for name, why in drawn.items() if not isinstance(why, Picture)]
    body = [
        f'<p class="eyebrow">Comparison of runs</p>\n<h1>{escape(title)}</h1>',
        '<p class="note">One run each: no intervals and no tests, so no verdicts. A study gives those.</p>',
        plain_table(HEADS, [_row(run) for run in found], 1, "arms"),
        "<h2>Pictures</h2>",
        pictures_html([picture for picture in drawn.values() if isinstance(picture, Picture)], missing),
        "<h2>In what they differ</h2>",
        _differences_html(found),
        "<h2>Folders</h2>",
        plain_table(["run", "folder"], [[run.name, run.folder] for run in found], 2),
    ]
    place = epath.Path(output).expanduser()
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(render(title, "\n".join(body)))
    return str(place)


def short_names(paths: Sequence[str]) -> list[str]:
    """The last part of each path, and as many parts before it as make all names different."""
    parts = [PurePosixPath(path).parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


@dataclass(frozen=True)
class _ComparedRun:
    """What a folder holds of a run: its losses by step, tokens per second, tokens seen, and its settings."""

    name: str
    folder: str
    curves: Curves
    speeds: list[float]
    tokens: float | None
    settings: dict[str, Any]


def _run(name: str, folder: RunFolder) -> _ComparedRun:
    if not folder.exists(METRICS):
        what = "nothing was recorded yet in" if folder.exists(CONFIG) else "there is no run in"
        raise MissingFile(f"{what} {folder}: name the folder of a run, the one with {METRICS} in it")
    records = metrics.read(folder)
    train, validation = ([r for r in records if r["split"] == split] for split in ("train", "validation"))
    return _ComparedRun(
        name=name,
        folder=str(folder),
        curves=Curves(*(tuple((r["step"], r["loss"]) for r in found) for found in (train, validation))),
        speeds=[r["tokens_per_second"] for r in train if r.get("tokens_per_second")],
        tokens=_tokens(train),
        settings=flatten(read_config(folder)["resolved"]) if folder.exists(CONFIG) else {},
    )


def _tokens(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Tokens seen: the last step × the mean number of tokens in a recorded step."""
    known = [r["tokens"] for r in records if r.get("tokens") is not None]
    return records[-1]["step"] * statistics.fmean(known) if known else None


def _row(run: _ComparedRun) -> list[str]:
    train, validation = ([(x, y) for x, y in points or ()] for points in (run.curves.train, run.curves.validation))
    known = [(y, x) for x, y in validation if y is not None]
    steps = max((x or 0 for x, _ in (*train, *((x, y) for y, x in known))), default=0)
    best = min(known, default=(None, None))
    last = known[-1][0] if known else None
    speed = statistics.median(run.speeds) if run.speeds else None
    return [run.name, f"{steps:,}", loss(last), loss(best[0]), count(best[1]), count(run.tokens), count(speed)]


def _differences_html(runs: Sequence[_ComparedRun]) -> str:
    rows = []
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        values = [plain(run.settings[key]) if key in run.settings else "–" for run in runs]
        if len(set(values)) > 1:
            rows.append([key, *values])
    if not rows:
        return '<p class="note">Their configurations are equal.</p>'
    return plain_table(["setting", *(run.name for run in runs)], rows, 1, "settings")
