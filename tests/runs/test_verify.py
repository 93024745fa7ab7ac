"""`verify_run` finds each damage, says of what it is, and changes nothing."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gpt_jax.config import Checkpoint, Evaluation, Text
from gpt_jax.config.errors import MissingFile, UserError
from gpt_jax.data import tokenized
from gpt_jax.interop.origin import hashes
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.load import load_run
from gpt_jax.runs.train import train
from gpt_jax.runs.verify import verify_run
from gpt_jax.runs.write import write_run
from tests.runs.test_checkpoint import flip_a_bit, lose_a_file
from tests.runs.test_restart import everything
from tests.tiny import PROGRAMS, tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps with the checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("run") / "run"
    config = tiny_config(4, evaluation=Evaluation(every=2), checkpoint=Checkpoint(every=2, keep=2))
    train(config, folder, console=Console(quiet=True), programs=PROGRAMS)
    (folder / "evaluation.json").write_text(json.dumps({"step": 4, "loss": 1.0}))
    return folder


def found(folder: Path) -> dict[str, bool | None]:
    return {check.part: check.trusted for check in verify_run(folder)}


PARTS = ("config.json", "environment.json", "checkpoints/2", "checkpoints/4", "metrics.jsonl", "tokenizer", "data")
WHOLE: dict[str, bool | None] = dict.fromkeys((*PARTS, "evaluation.json"), True)


def test_a_whole_run_is_good_and_nothing_is_written(run: Path) -> None:
    before, times = everything(run), {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with RunFolder(run).lock():  # as while it trains
        assert found(run) == WHOLE
    assert everything(run) == before and {path: path.stat().st_mtime_ns for path in run.rglob("*")} == times


def rewrite(name: str, change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines(keepends=True)
        lines = [line for line in lines if '"goodput"' not in line]  # which come where the clock says
        (folder / name).write_text("".join(change(lines)))

    return damage


def change_hash(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / "environment.json").read_text())
        content["hashes"][name] = "another"
        (folder / "environment.json").write_text(json.dumps(content))

    return damage


METRICS = "metrics.jsonl"
DAMAGES: list[tuple[Callable[[Path], Any], set[str], str]] = [
    # Below `d`, since Orbax leaves parts of small arrays in a second place, which nothing reads.
    (lambda f: flip_a_bit(f / "checkpoints/4/params/d"), {"checkpoints/4"}, ""),
    (lambda f: flip_a_bit(f / "checkpoints/2/rest/d"), {"checkpoints/2"}, ""),
    (lambda f: lose_a_file(f / "checkpoints/2/rest/d"), {"checkpoints/2"}, ""),
    (lambda f: (f / "checkpoints/4").rename(f / "checkpoints/3"), {"checkpoints/3"}, "renamed or copied"),
    (lambda f: (f / "checkpoints/4/record/metadata").write_text("{}"), {"checkpoints/4"}, "its record"),
    (lambda f: shutil.rmtree(f / "checkpoints"), {"checkpoints"}, "none"),
    (lambda f: (f / "config.json").unlink(), {"config.json"}, "missing"),
    (lambda f: (f / "config.json").write_text("{"), {"config.json"}, "not JSON"),
    (lambda f: (f / "environment.json").write_text("[]"), {"environment.json"}, ""),
    (lambda f: (f / METRICS).unlink(), {METRICS}, "though there is a checkpoint of step 4"),
    (rewrite(METRICS, lambda lines: [*lines[:1], "\0\0\0\n", *lines[1:]]), {METRICS}, "line 2 is not a record"),
    (rewrite(METRICS, lambda lines: [lines[0], *lines]), {METRICS}, "step 1 is recorded twice"),
    (rewrite(METRICS, lambda lines: [lines[1], lines[0], *lines[2:]]), {METRICS}, "step 1 comes after a later one"),
    (rewrite(METRICS, lambda lines: lines[1:]), {METRICS}, "1 steps are missing, the first is 1"),
    (rewrite(METRICS, lambda lines: lines[:2]), {METRICS}, "ends with step 2, before the checkpoint of step 4"),
    (lambda f: shutil.rmtree(f / "tokenizer"), {"tokenizer"}, ""),
    (change_hash("tokenizer"), {"tokenizer"}, "not the one that the run began with"),
    (change_hash("data"), {"data"}, "not the one that the run began with"),
    (lambda f: (f / "evaluation.json").write_text('{"step": 4, "loss": NaN}'), {"evaluation.json"}, "no evaluation"),
]


def test_each_damage_is_found_alone(run: Path, tmp_path: Path) -> None:
    for number, (damage, parts, sentence) in enumerate(DAMAGES):
        folder = tmp_path / str(number)
        shutil.copytree(run, folder)
        damage(folder)
        bad = [check for check in verify_run(folder) if check.trusted is False]
        assert {check.part for check in bad} == parts, (number, bad)
        assert all(check.advice and sentence in check.found for check in bad), (number, bad)


def test_a_torn_last_line_is_what_a_crash_leaves(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    with (tmp_path / "run" / METRICS).open("a") as file:
        file.write('{"step": 5, "spl')
    (check,) = [check for check in verify_run(tmp_path / "run") if check.part == METRICS]
    assert check.trusted and "torn last line" in check.found


def test_a_checkpoint_of_another_model_is_found(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    content = json.loads((tmp_path / "run" / "config.json").read_text())
    content["resolved"]["model"]["scan"] = True  # another way to compute the same model
    (tmp_path / "run" / "config.json").write_text(json.dumps(content))
    assert found(tmp_path / "run") == WHOLE
    content["resolved"]["model"]["width"] = 32
    (tmp_path / "run" / "config.json").write_text(json.dumps(content))
    assert found(tmp_path / "run") == WHOLE | {"checkpoints/2": False, "checkpoints/4": False}


def test_a_run_made_of_a_model_has_neither_steps_nor_data(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT_JAX_CACHE", str(tmp_path / "cache"))  # the machine's may have the text of an earlier run
    write_run(tmp_path / "made", *load_run(run))
    good = ("config.json", "environment.json", "checkpoints/0", "metrics.jsonl", "tokenizer")
    assert found(tmp_path / "made") == dict.fromkeys(good, True) | {"data": None}


def test_the_files_of_an_import_are_read_again_where_they_are_still_there(run: Path, tmp_path: Path) -> None:
    weights = tmp_path / "m.gguf"
    weights.write_bytes(b"weights")
    write_run(tmp_path / "made", *load_run(run), source=str(weights), source_hashes=hashes(weights))

    def source() -> Any:
        return next(check for check in verify_run(tmp_path / "made") if check.part == "source")

    assert (source().trusted, source().found) == (True, "1 file is as it was imported")
    weights.write_bytes(b"wEights")
    assert source().trusted is False and "m.gguf is not the file that was imported" in source().found
    weights.unlink()
    assert source().trusted is None
    record = json.loads((tmp_path / "made" / "environment.json").read_text())
    (tmp_path / "made" / "environment.json").write_text(json.dumps(record | {"source_hashes": [3]}))
    weights.write_bytes(b"weights")
    assert source().trusted is False


def test_the_cache_answers_for_text(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "made", *load_run(run))
    asked = []

    def check_tokens(config: Text, cache: Path) -> int:
        asked.append(config.corpus)
        return 1000

    def damaged(config: Text, cache: Path) -> int:
        raise UserError("the cache is damaged")

    monkeypatch.setattr(tokenized, "check_tokens", check_tokens)
    assert found(tmp_path / "made")["data"] is True and asked == ["python"]
    monkeypatch.setattr(tokenized, "check_tokens", damaged)
    data = next(check for check in verify_run(tmp_path / "made") if check.part == "data")
    assert dataclasses.replace(data, advice=None).found == "the cache is damaged" and data.trusted is False


def test_a_folder_without_a_run_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="there is no run in"):
        verify_run(tmp_path)
    with pytest.raises(MissingFile, match="there is no folder"):
        verify_run(tmp_path / "none")
