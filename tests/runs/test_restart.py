"""A run whose configuration or checkpoints are gone does not silently start over."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gpt_jax.config import Checkpoint, Config, Copy, Evaluation
from gpt_jax.config.errors import UserError
from gpt_jax.runs import metrics
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.load import load_run
from gpt_jax.runs.restart import check_whole
from gpt_jax.runs.session import Outcome
from gpt_jax.runs.train import train
from gpt_jax.runs.write import write_run
from tests.tiny import PROGRAMS, tiny_config


def quietly(config: Config, folder: Path, **options: Any) -> Outcome:
    return train(config, folder, console=Console(quiet=True), programs=PROGRAMS, **options)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    quietly(tiny_config(2), folder)
    return folder


def no_configuration(run: Path) -> None:
    (run / "config.json").unlink()


def no_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def empty_checkpoints(run: Path) -> None:
    no_checkpoints(run)
    (run / "checkpoints").mkdir()


def half_a_checkpoint(run: Path) -> None:
    (run / "checkpoints" / "2").rename(run / "checkpoints" / "2.orbax-checkpoint-tmp-0")


def neither_checkpoints_nor_metrics(run: Path) -> None:
    no_checkpoints(run)
    (run / "metrics.jsonl").unlink()


def an_earlier_version(run: Path) -> None:
    """It left no mark of its first checkpoint."""
    empty_checkpoints(run)
    (run / "saved.json").unlink()
    environment = json.loads((run / "environment.json").read_text())
    assert environment.pop("first_checkpoint") == "saved.json"
    (run / "environment.json").write_text(json.dumps(environment))


LOSSES = [
    (no_configuration, "no config.json"),
    (no_checkpoints, "has done 2 steps, but .*checkpoints holds no checkpoint"),
    (empty_checkpoints, "holds no checkpoint"),
    (half_a_checkpoint, "holds no checkpoint"),
    (neither_checkpoints_nor_metrics, "has done some steps, but .*holds no checkpoint"),
    (an_earlier_version, "holds no checkpoint"),
]


def test_what_is_lost_is_said_and_nothing_is_touched(finished: Path, tmp_path: Path) -> None:
    for lose, sentence in LOSSES:
        run = tmp_path / lose.__name__
        shutil.copytree(finished, run)
        lose(run)
        before = everything(run)
        for changes in ({}, {"seed": 3}):
            with pytest.raises(UserError, match=f"{sentence}.*--restart"):
                quietly(tiny_config(4, **changes), run)
        assert everything(run) == before, lose.__name__


def test_restart_begins_again_and_moves_aside(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    no_configuration(run)
    before = everything(run)
    assert quietly(tiny_config(2), run, restart=True).status == "finished"
    (aside,) = (run / "aside").iterdir()
    moved = everything(aside)
    assert moved == {name: content for name, content in before.items() if name != ".lock"}
    again, first = (metrics.read(RunFolder(folder)) for folder in (run, aside))
    assert [(r["step"], r["loss"]) for r in again] == [(r["step"], r["loss"]) for r in first] and len(again) == 3
    assert [start["step"] for start in json.loads((run / "environment.json").read_text())["starts"]] == [0]
    assert quietly(tiny_config(2), run).status == "already finished"


def test_restart_of_a_folder_without_a_run_just_starts(tmp_path: Path) -> None:
    assert quietly(tiny_config(2), tmp_path / "run", restart=True).status == "finished"
    assert not (tmp_path / "run" / "aside").exists()


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(tmp_path: Path) -> None:
    """As SIGKILL leaves it: metrics of some steps, no checkpoint, no mark of one."""
    config = tiny_config(6, evaluation=Evaluation(every=9), checkpoint=Checkpoint(every=4))
    quietly(config, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp-0").mkdir(parents=True)
    (tmp_path / "saved.json").unlink()
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(row for row in rows if json.loads(row)["step"] <= 5))
    with pytest.warns(UserWarning, match="after step 5, before its first checkpoint: it starts again from step 0"):
        assert quietly(config, tmp_path).status == "finished"
    assert [json.loads(row)["step"] for row in (tmp_path / "metrics.jsonl").read_text().splitlines()][-1] == 6


def test_a_run_made_of_a_model_has_a_checkpoint_and_no_metrics(finished: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "made", *load_run(finished))
    made = RunFolder(tmp_path / "made")
    check_whole(made, tiny_config(2))
    adapted = tiny_config(2, init_from=str(made.path), data=Copy(symbols=8, length=4, validation_rows=10))
    adapted = dataclasses.replace(adapted, train=dataclasses.replace(adapted.train, steps=3))
    assert quietly(adapted, tmp_path / "tuned").status == "finished"
    shutil.rmtree(tmp_path / "made" / "checkpoints")
    with pytest.raises(UserError, match="has done some steps"):
        check_whole(made, tiny_config(2))
