"""Checks of a whole run folder: what in it can be trusted. They lock nothing and change nothing."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt_jax.config import Config, Text
from gpt_jax.config.errors import MissingFile, UserError
from gpt_jax.config.printable import printable
from gpt_jax.data import cache_folder, open_data, tokenized
from gpt_jax.data.tokenizer import load_tokenizer
from gpt_jax.interop import origin
from gpt_jax.model.adapter import pruned, trainable
from gpt_jax.model.shapes import parameter_shapes
from gpt_jax.runs import record
from gpt_jax.runs.checkpoint import CheckpointError, Checkpoints
from gpt_jax.runs.fingerprint import paths
from gpt_jax.runs.folder import CHECKPOINTS, CONFIG, ENVIRONMENT, EVALUATION, METRICS, TOKENIZER, RunFolder, Workdir
from gpt_jax.runs.metrics import MEASURED, parse_line
from gpt_jax.runs.restart import saved_steps
from gpt_jax.training.state import PARAMS

GO_ON = "the same training command skips it and goes on from the newest good checkpoint"
SOURCE = "source"
RESTORE = "restore it from a copy, or start again with --restart"


@dataclasses.dataclass(frozen=True)
class Check:
    """What was found of one part of a run. `trusted` None: it could not be checked. `advice` says what to do."""

    part: str
    trusted: bool | None
    found: str
    advice: str | None = None


def verify_run(workdir: Workdir) -> list[Check]:
    """Checks each checkpoint, the records and the data of a run, which may be running.

    Raises:
      MissingFile: there is no folder, or no run in it.
    """
    folder = RunFolder(workdir)
    if not folder.exists(CONFIG) and not record.has_progress(folder):
        what = "there is no run in" if folder.exists() else "there is no folder"
        raise MissingFile(f"{what} {folder}: give the folder of a run")
    configuration, config = _config(folder)
    environment, began = _environment(folder)
    checks = [configuration, environment, *_checkpoints(folder, config), _metrics(folder, config)]
    checks += [_tokenizer(folder, began), _data(config, began)]
    checks += [] if environment.trusted is False else _source(folder)
    return checks + ([_evaluation(folder)] if folder.exists(EVALUATION) else [])


def _config(folder: RunFolder) -> tuple[Check, Config | None]:
    try:
        found = record.recorded(folder)
    except (UserError, OSError, UnicodeDecodeError) as error:
        return Check(CONFIG, False, _sentence(error), RESTORE), None
    if found is None:
        return Check(CONFIG, False, "missing", RESTORE), None
    return Check(CONFIG, True, f"{found[1].train.steps:,} steps"), found[1]


def _environment(folder: RunFolder) -> tuple[Check, dict[str, Any]]:
    """And the hashes of the data and of the tokenizer that the run began with."""
    try:
        content = folder.read_json(ENVIRONMENT)
        hashes, starts = content["hashes"], content["starts"]
        known = {name: hashes[name] for name in ("data", "tokenizer")}
        began = [int(start["step"]) for start in starts]
    except (UserError, OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        return Check(ENVIRONMENT, False, _sentence(error), RESTORE), {}
    return Check(ENVIRONMENT, True, f"{len(began)} starts" if len(began) != 1 else "1 start"), known


def _checkpoints(folder: RunFolder, config: Config | None) -> list[Check]:
    steps = saved_steps(folder)
    if not steps:
        lost = record.has_progress(folder)
        return [Check(CHECKPOINTS, not lost, "none", RESTORE if lost else None)]
    shapes = None
    if config is not None:  # checkpoints have per-layer names, also those of a scanned model
        shapes = paths(pruned(trainable(parameter_shapes(dataclasses.replace(config.model, scan=False)))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # each finding has a line of its own
        with Checkpoints(folder, read_only=True) as checkpoints:
            return [_checkpoint(folder, checkpoints, step, shapes) for step in steps]


def _checkpoint(folder: RunFolder, checkpoints: Checkpoints, step: int, shapes: dict[str, Any] | None) -> Check:
    name, arrays = f"{CHECKPOINTS}/{step}", 0
    try:
        for item, template in checkpoints.templates(step).items():
            found = paths(template)
            if item == PARAMS and shapes is not None and _shapes(found) != _shapes(shapes):
                return Check(name, False, f"its parameters are not those of {CONFIG}", GO_ON)
            restored = checkpoints.restore(step, {item: template})  # one item at a time, which bounds the memory
            if missing := restored.fingerprints.get(item, {}).keys() - found.keys():
                return Check(name, False, f"{min(missing)} is missing", GO_ON)
            arrays += len(found)
    except CheckpointError as error:
        if not folder.exists(name):
            return Check(name, None, "was replaced while it was read")
        return Check(name, False, _sentence(error), GO_ON)
    return Check(name, True, f"{arrays} arrays are as they were saved")


def _shapes(leaves: dict[str, Any]) -> dict[str, Any]:
    return {path: (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves.items()}


def _metrics(folder: RunFolder, config: Config | None) -> Check:
    steps = saved_steps(folder)
    if not folder.exists(METRICS):
        if max(steps, default=0) == 0:
            return Check(METRICS, True, "none: the run has taken no step")
        return Check(METRICS, False, f"missing, though there is a checkpoint of step {max(steps)}", RESTORE)
    lines = folder.file(METRICS).read_bytes().split(b"\n")
    rows, bad = [], []
    for number, line in enumerate(lines, 1):
        row = parse_line(line)
        if row is not None:
            rows += [(row["step"], row["split"])] if row["split"] in MEASURED else []
        elif line and number < len(lines):  # a torn last line is what a crash leaves
            bad.append(number)
    faults = [f"line {bad[0]} is not a record" + (f", nor are {len(bad) - 1} others" if bad[1:] else "")] if bad else []
    faults += _faults(rows, max(steps, default=0), None if config is None else config.train.log_every)
    last = max((step for step, _ in rows), default=0)
    if faults:
        return Check(METRICS, False, "; ".join(faults), "restore it from a copy, or leave those steps out of a curve")
    torn = ", and a torn last line, which the next start drops" if lines[-1] else ""
    return Check(METRICS, True, f"{len(rows):,} records up to step {last:,}{torn}")


def _faults(rows: list[tuple[int, str]], saved: int, log_every: int | None) -> list[str]:
    """What is wrong with the order of the records. `saved` is the step of the newest checkpoint."""
    faults = []
    twice = [step for (step, _), count in Counter(rows).items() if count > 1]
    if twice:
        faults.append(f"step {min(twice)} is recorded twice")
    order = [step for step, _ in rows]
    if back := [later for before, later in zip(order, order[1:], strict=False) if later < before]:
        faults.append(f"step {back[0]} comes after a later one")
    train = {step for step, split in rows if split == "train"}
    if log_every is not None and train:
        gaps = [step for step in range(log_every, max(train), log_every) if step not in train]
        if gaps:
            faults.append(f"{len(gaps)} steps are missing, the first is {gaps[0]}")
    if log_every == 1 and max(train, default=0) < saved:
        faults.append(f"it ends with step {max(train, default=0)}, before the checkpoint of step {saved}")
    return faults


def _tokenizer(folder: RunFolder, hashes: dict[str, Any]) -> Check:
    return _guarded(TOKENIZER, RESTORE, lambda: _same(load_tokenizer(folder.file(TOKENIZER)).content_hash(), hashes))


def _same(found: str, hashes: dict[str, Any], name: str = "tokenizer") -> tuple[bool | None, str]:
    if name not in hashes or hashes[name] is None:
        return None, "the run has no hash to compare with"
    return found == hashes[name], "as the run began" if found == hashes[name] else "not the one that the run began with"


def _data(config: Config | None, hashes: dict[str, Any]) -> Check:
    if config is None:
        return Check("data", None, f"unknown without {CONFIG}")
    advice = "the next start prepares it again from the text"

    def look() -> tuple[bool | None, str]:
        if not isinstance(config.data, Text):
            data = open_data(config.data, config.model.context_length, config.data_seed, progress=False)
            return _same(data.content_hash, hashes, "data")
        size = tokenized.check_tokens(config.data, cache_folder(None))  # builds nothing
        return (True, f"{size:,} bytes of the cache are as written") if size else (None, "not in this machine's cache")

    return _guarded("data", advice, look)


def _source(folder: RunFolder) -> list[Check]:
    """Of a model from elsewhere: whether the files that it was imported from are those of then."""
    content = folder.read_json(ENVIRONMENT)
    wanted = content.get("source_hashes")
    if not wanted:
        return []

    def look() -> tuple[bool | None, str]:
        path = Path(content["source"])
        if not path.is_absolute() or not path.exists():
            return None, f"{printable(str(path))} is not there any more"
        found = origin.hashes(path)
        differing = sorted(name for name in {**wanted, **found} if found.get(name) != wanted.get(name))
        if differing:
            return False, f"{printable(differing[0])} is not the file that was imported"
        return True, f"{len(found)} {'file is as it was' if len(found) == 1 else 'files are as they were'} imported"

    return [_guarded(SOURCE, "the run has its own copy of the weights; restore the files to import them again", look)]


def _evaluation(folder: RunFolder) -> Check:
    def look() -> tuple[bool, str]:
        content = folder.read_json(EVALUATION)
        step, loss = content["step"], content["loss"]
        good = type(step) is int and (loss is None or (isinstance(loss, int | float) and math.isfinite(loss)))
        return good, f"of step {step:,}" if good else "holds no evaluation"

    return _guarded(EVALUATION, "evaluate again", look)


def _guarded(part: str, advice: str, look: Callable[[], tuple[bool | None, str]]) -> Check:
    """The check that `look` makes; an error that a damaged file causes is a finding."""
    try:
        trusted, found = look()
    except MissingFile as error:
        elsewhere = part in ("data", SOURCE)
        return Check(part, None if elsewhere else False, _sentence(error), None if elsewhere else advice)
    except (UserError, OSError, ValueError, KeyError, TypeError) as error:
        return Check(part, False, _sentence(error), advice)
    return Check(part, trusted, found, None if trusted is not False else advice)


def _sentence(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    if isinstance(error, OSError) and not isinstance(error, UserError):
        return error.strerror or type(error).__name__
    return " ".join(str(error).split())[:300] or type(error).__name__
