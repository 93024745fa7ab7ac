"""The time of four seeds of one arm at the smoke size, run as a study and as four separate commands."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.benchmarks.timing import summary
from experiments.studies import SMOKE

ROOT = Path(__file__).resolve().parents[2]
SEEDS, CONFIG = 4, "configs/ablations/kv_heads.py"
STUDY = """
import dataclasses
from configs.ablations.kv_heads import SMOKE, get_config
from configs.ablations.kv_heads import get_study as whole

def get_study(base):
    study = whole(base)
    arms = tuple(arm for arm in study.arms if arm.name == study.baseline)
    return dataclasses.replace(study, arms=arms, knobs=(), match=None, free=None, fresh_seeds=0, aa=False)
"""


def run(rounds: int) -> dict[str, Any]:
    """Seconds of whole processes, and the ratio of the best: without a compilation cache ("each_compiles") and with a
    filled one ("compiled_before"). Includes imports, data, compilation, training and, for the study, its report.
    """
    from configs.ablations.base import SMOKE as ITS_SMOKE

    single = [f"--config.{key}={value}" for key, value in (SMOKE | ITS_SMOKE).items()]
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        study = Path(place) / "study.py"
        study.write_text(STUDY)
        commands = {
            "study": [["ablate", f"--config={study}", "--smoke", f"--seeds={SEEDS}"]],
            "by_themselves": [["train", f"--config={CONFIG}", *single, f"--config.seed={s}"] for s in range(SEEDS)],
        }
        for name in ("each_compiles", "compiled_before"):
            kept = None if name == "each_compiles" else f"{place}/xla"
            seconds: dict[str, list[float]] = {way: [] for way in commands}
            for number in range(rounds + 1):
                for way, parts in commands.items():
                    took = sum(_seconds(part, place, kept) for part in parts)
                    if number > 0:  # the first round prepares the text and fills the cache
                        seconds[way].append(took)
            result[name] = {way: summary(values) for way, values in seconds.items()}
            result[name]["ratio"] = min(seconds["study"]) / min(seconds["by_themselves"])
    return result


def _seconds(command: list[str], place: str, cache: str | None) -> float:
    with tempfile.TemporaryDirectory(dir=place) as out:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{out}/xla" if cache is None else cache}
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", f"experiments.{command[0]}", *command[1:], f"--workdir={out}/run"],
            cwd=ROOT,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return time.perf_counter() - start
