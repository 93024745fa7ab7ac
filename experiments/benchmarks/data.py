"""Batches per second of a prepared text, and the time of training and applying a byte-pair encoding."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from experiments.benchmarks.timing import Arm, alternate
from gpt_jax import config as c
from gpt_jax.data import Data, check_data, open_data
from gpt_jax.data.tokenizer import BpeTokenizer

VOCABULARY, BATCHES, CHUNK = 1_024, 200, 20_000
SHAPES = {"12x64": (12, 64), "8x256": (8, 256)}


def run(rounds: int, text: str) -> dict[str, Any]:
    """Best and median seconds over `rounds` rounds, and rates at the best."""
    words = Path(text).read_text(encoding="utf-8")
    tokenizer = BpeTokenizer.train([words], VOCABULARY, "gpt4")
    pieces = [words[i : i + CHUNK] for i in range(0, len(words), CHUNK)]
    tokens = sum(map(len, tokenizer.encode_batch(pieces)))
    arms: dict[str, Arm] = {
        f"bpe_training_to_{VOCABULARY}": lambda: BpeTokenizer.train([words], VOCABULARY, "gpt4"),
        "bpe_encoding": lambda: tokenizer.encode_batch(pieces),
    }
    for name, (rows, context) in SHAPES.items():
        source = open_data(c.Text(path=text, tokenizer=c.Characters()), context, seed=0, progress=False)
        arms[f"batches_{name}"] = partial(_read, source, rows)
    start = time.perf_counter()
    open_data(c.Text(path=text, tokenizer=c.Characters()), 64, seed=0, progress=False)
    opened = time.perf_counter() - start
    start = time.perf_counter()
    size = check_data(c.Text(path=text, tokenizer=c.Characters()))
    checked = {"bytes": size, "seconds": time.perf_counter() - start}
    results: dict[str, Any] = {"open_prepared_seconds": opened, "check_cache": checked}
    results |= alternate(arms, rounds, calls=1)
    results["bpe_encoding"]["tokens_per_second"] = tokens / results["bpe_encoding"]["best_seconds"]
    for name in SHAPES:
        results[f"batches_{name}"]["batches_per_second"] = BATCHES / results[f"batches_{name}"]["best_seconds"]
    return results


def _read(source: Data, rows: int) -> None:
    for _ in source.batches(0, BATCHES, rows):
        pass
