"""Any runs side by side, outside of a study: their curves in one page, and in what their configurations differ."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import PurePosixPath
from typing import Any

from etils import epath

from gpt_jax.ablation.pictures import Picture, curves, gap
from gpt_jax.ablation.report import pictures_html
from gpt_jax.ablation.sections import plain_table
from gpt_jax.ablation.table import count, loss, plain
from gpt_jax.config.conversion import flatten
from gpt_jax.config.errors import MissingFile, UserError
from gpt_jax.pages.render import render
from gpt_jax.runs import metrics
from gpt_jax.runs.folder import CONFIG, METRICS, RunFolder

HEADS = ("run", "updates", "last validation loss", "best validation loss", "after", "tokens", "training tokens/s")


def write_comparison(runs: Sequence[str], output: str) -> str:
    """Writes a page that overlays the loss curves of the runs in these folders, and returns its path. The first run is
    the baseline of the others. Each is one run of one seed: nothing here tests a difference.

    Raises:
      FileNotFoundError: a folder holds no run, or nothing was recorded yet.
      ValueError: no run is given, one is given twice, or a record is broken.
    """
    folders = [RunFolder(run) for run in runs]
    if not folders:
        raise UserError("there is nothing to compare: name the folders of some runs")
    if len({str(folder) for folder in folders}) < len(folders):
        raise UserError("a run is named twice: name each once")
    names = short_names([str(folder) for folder in folders])
    arms = [_arm(name, folder) for name, folder in zip(names, folders, strict=True)]
    study = {"arms": arms, "baseline": names[0]}
    drawn = {
        "validation loss": curves(study, "validation"),
        "loss minus the first run’s": gap(study),
        "training loss": curves(study, "train"),
    }
    missing = [f"{name} ({why})" if why else name for name, why in drawn.items() if not isinstance(why, Picture)]
    title = f"{len(arms)} run{'s' * (len(arms) > 1)}, side by side"
    body = [
        f'<p class="eyebrow">Comparison of runs</p>\n<h1>{escape(title)}</h1>',
        '<p class="note">One run each: no intervals and no tests, so no verdicts. A study gives those.</p>',
        plain_table(HEADS, [_row(arm) for arm in arms], 1, "arms"),
        "<h2>Pictures</h2>",
        pictures_html([picture for picture in drawn.values() if isinstance(picture, Picture)], missing),
        "<h2>In what they differ</h2>",
        _differences_html(arms),
        "<h2>Folders</h2>",
        plain_table(["run", "folder"], [[arm["name"], arm["folder"]] for arm in arms], 2),
    ]
    place = epath.Path(output).expanduser()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(render(title, "\n".join(body)))
    return str(place)


def short_names(paths: Sequence[str]) -> list[str]:
    """The last part of each path, with as many parts before it as tell all apart."""
    parts = [PurePosixPath(path).parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def _arm(name: str, folder: RunFolder) -> dict[str, Any]:
    if not folder.exists(METRICS):
        what = "nothing was recorded yet in" if folder.exists(CONFIG) else "there is no run in"
        raise MissingFile(f"{what} {folder}: name the folder of a run, the one with {METRICS} in it")
    records = metrics.read(folder)
    by_split = {split: [r for r in records if r["split"] == split] for split in ("train", "validation")}
    return {
        "name": name,
        "folder": str(folder),
        "curves": {split: [[r["step"], r["loss"]] for r in found] for split, found in by_split.items()},
        "speeds": [r["tokens_per_second"] for r in by_split["train"] if r.get("tokens_per_second")],
        "tokens": _tokens(by_split["train"]),
        "settings": flatten(folder.read_json(CONFIG)["resolved"]) if folder.exists(CONFIG) else {},
    }


def _tokens(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Tokens seen; records need not be of every step, but each tells how many one step took."""
    known = [r["tokens"] for r in records if r.get("tokens") is not None]
    return records[-1]["step"] * statistics.fmean(known) if known else None


def _row(arm: Mapping[str, Any]) -> list[str]:
    train, validation = arm["curves"]["train"], [p for p in arm["curves"]["validation"] if p[1] is not None]
    steps = max((p[0] for p in (*train, *validation)), default=0)
    best = min(validation, key=lambda p: p[1], default=(None, None))
    last = validation[-1][1] if validation else None
    speed = statistics.median(arm["speeds"]) if arm["speeds"] else None
    return [arm["name"], f"{steps:,}", loss(last), loss(best[1]), count(best[0]), count(arm["tokens"]), count(speed)]


def _differences_html(arms: Sequence[Mapping[str, Any]]) -> str:
    keys = dict.fromkeys(key for arm in arms for key in arm["settings"])
    rows = []
    for key in keys:
        values = [plain(arm["settings"][key]) if key in arm["settings"] else "–" for arm in arms]
        if len(set(values)) > 1:
            rows.append([key, *values])
    if not rows:
        return '<p class="note">Their configurations are equal.</p>'
    return plain_table(["setting", *(arm["name"] for arm in arms)], rows, 1, "settings")
