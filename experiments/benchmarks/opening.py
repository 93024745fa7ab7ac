"""What the hashes cost whoever opens a checkpoint or a cached corpus: the same opening with and without them."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from experiments.benchmarks.step import SIZES, gpt2_config
from gpt_jax.config import Bytes, Text
from gpt_jax.data import cache, open_data
from gpt_jax.model.gpt import GPT
from gpt_jax.runs import checkpoint
from gpt_jax.runs.checkpoint import Checkpoints
from gpt_jax.runs.folder import RunFolder
from gpt_jax.training.state import PARAMS, REST, init_state, to_trees

TEXT = 20_000_000  # bytes
Opening = Callable[[], Any]


def run(rounds: int) -> dict[str, Any]:
    """Of a checkpoint of 10.7 million parameters and of a corpus of 20 MB, opened for the second time: the best and the
    median seconds with hashes, and the best ones without, in alternation; and by how much the hashes add to the latter.
    """
    with tempfile.TemporaryDirectory() as path:
        return {"checkpoint": _checkpoint(Path(path, "run"), rounds), "cache": _cache(Path(path), rounds)}


def _checkpoint(path: Path, rounds: int) -> dict[str, float]:
    config = gpt2_config(SIZES["medium"])
    trees = to_trees(init_state(GPT(config.model), config))
    with Checkpoints(RunFolder(path)) as checkpoints:
        checkpoints.save(1, trees[PARAMS], trees[REST], {}, None)
    with Checkpoints(RunFolder(path), read_only=True) as reader:
        templates, saved = reader.templates(1), reader.saved_fingerprints(1)

        def opened() -> None:
            jax.block_until_ready(reader.restore(1, templates).trees)

        by_size = {len(paths): paths for paths in saved.values()}
        believed = mock.patch.object(checkpoint, "fingerprints", lambda tree: by_size[len(jax.tree.leaves(tree))])
        return _compared(opened, believed, rounds)


def _cache(path: Path, rounds: int) -> dict[str, float]:
    words = np.random.default_rng(0).choice(["a ", "few ", "words\n"], TEXT // 4)
    (path / "text.txt").write_text("".join(words.tolist()))
    config = Text(path=str(path / "text.txt"), tokenizer=Bytes())

    def opened() -> None:
        open_data(config, 128, 0, path / "cache", progress=False).batch(0, 8)

    opened()
    believed = mock.patch.object(cache, "_opened", lambda folder: cache._content(folder).manifest)
    return _compared(opened, believed, rounds)


def _compared(opened: Opening, believed: Any, rounds: int) -> dict[str, float]:
    """Seconds by the clock, and of the processors, which other programs on the machine disturb less."""
    checked: list[tuple[float, float]] = []
    unchecked: list[tuple[float, float]] = []
    opened()  # it compiles
    for _ in range(rounds):
        checked.append(_seconds(opened))
        with believed:
            unchecked.append(_seconds(opened))
    (wall, work), (wall_without, work_without) = (list(zip(*seconds, strict=True)) for seconds in (checked, unchecked))
    return {
        "best_seconds": min(wall),
        "median_seconds": statistics.median(wall),
        "best_seconds_without_hashes": min(wall_without),
        "hashes_add": min(wall) / min(wall_without) - 1,
        "hashes_add_processor_seconds": statistics.median(work) - statistics.median(work_without),
        "hashes_add_of_processor_time": statistics.median(work) / statistics.median(work_without) - 1,
    }


def _seconds(opened: Opening) -> tuple[float, float]:
    start, work = time.perf_counter(), time.process_time()
    opened()
    return time.perf_counter() - start, time.process_time() - work
