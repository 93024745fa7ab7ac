"""The addresses of a study's runs and of their measurements.

A run's address is that of `runs.address`, and whether it is a copy or trains together with other seeds. Measurements
have an address of their own: where only it changed they are made again from the checkpoint, without training.
"""

from __future__ import annotations

import json
from typing import Any

from gpt_jax.ablation import study_runs
from gpt_jax.ablation.rows import kept_for
from gpt_jax.ablation.study import Study
from gpt_jax.config import Config
from gpt_jax.config.code import code_hashes, digest
from gpt_jax.config.conversion import to_dict
from gpt_jax.runs.address import DECIDING, Address, run_address
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.pieces import pieces

MEASURING, ASKING = "gpt_jax.ablation.measure", "gpt_jax.ablation.answers"


def planned_address(
    resolved: Config, data_hash: str, base: str | None, is_copy: bool, group: tuple[int, ...]
) -> Address:
    """The address of a run that trains together with the seeds of its `group`.

    Two purposes of one arm may share a run, but an A/A copy must run again.
    """
    study = {"is a copy": is_copy, "seeds together": list(group) if len(group) > 1 else None}
    return run_address(resolved, data_hash, base).with_part("study", study)


def measurement_address(run: Address, study: Study, is_first: bool) -> str:
    """The address of a run's measurements: the run's, what is measured, and the code that measures."""
    probe = study.probe
    asked: dict[str, Any] = {
        "extrapolation": list(study.extrapolation),
        "probe": None if probe is None else [probe.label, {str(x): to_dict(data) for x, data in probe.data.items()}],
        "rows": to_dict(kept_for(study.endpoint)),
        "speed and memory": is_first,
    }
    decided = code_hashes(*DECIDING)
    asked["pieces"] = [] if probe is None else [pieces(data, decided) for data in probe.data.values()]
    roots = [MEASURING]
    if study.secondary:  # absent else, so that the measurements of other studies keep their addresses
        asked["secondary"] = [[s.name, list(s.kinds), list(s.lengths), s.questions] for s in study.secondary]
        roots.append(ASKING)
    code = {name: value for name, value in code_hashes(*roots).items() if name not in decided}
    return digest(json.dumps([run.hash, asked, code], sort_keys=True))


def is_trained(folder: RunFolder) -> bool:
    """Whether a run is at its end, finished or diverged."""
    return study_runs.outcome(folder) is not None


def is_measured(folder: RunFolder, address: str | None) -> bool:
    """Whether a run's measurements are those of `address` (None: nothing is measured); one that diverged has none."""
    ended, found = study_runs.outcome(folder), study_runs.measurements(folder)
    is_made = address is None or (found is not None and found.address == address)
    return ended is not None and (is_made or ended.status == "diverged")
