"""Our own files, damaged or replaced: every reader answers in one sentence, within bounds."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.launch import description, local, store
from experiments.launch.clock import SystemClock
from experiments.launch.description import Launch
from gpt_jax.ablation import records, rows
from gpt_jax.ablation.claim import CLAIM, open_claim, read_claim, study_from_claim
from gpt_jax.ablation.endpoint import FinalLoss
from gpt_jax.ablation.log import LOG, read_log
from gpt_jax.ablation.outside import read_table
from gpt_jax.ablation.rows import ROWS, row_sums, write_rows
from gpt_jax.ablation.schema import STUDY
from gpt_jax.config.errors import UserError
from gpt_jax.data.tokenizer import ByteTokenizer
from gpt_jax.runs import record
from gpt_jax.runs.folder import CONFIG, ENVIRONMENT, RunFolder
from gpt_jax.runs.load import run_tokenizer
from tests.ablation.test_claim import small_study, start
from tests.fuzz import bounded, damaged, damaged_json, examples, read_or_refuse
from tests.tiny import tiny_config

LAUNCH = Launch(
    name="one",
    target="local",
    command=("python", "-m", "experiments.train"),
    workdir="/tmp/x",
    zone=None,
    type=None,
    runtime_version=None,
    project=None,
    spot=False,
    processes=1,
    retries=1,
    max_hours=None,
    price=None,
    max_cost=None,
    shards=1,
)
STATE = {
    "state": "running",
    "reason": "",
    "attempt": 1,
    "used": 10,
    "tries": 0,
    "code": None,
    "updated": 1000,
    "command": list(LAUNCH.command),
    "launcher": 4321,
}
ROW_SUMS = np.arange(5, dtype=np.float32), np.ones(5, np.float32)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of each of our files."""
    folder = tmp_path_factory.mktemp("ours")
    study = start(folder, small_study())
    config = tiny_config()
    record.write_config(study, config, config)
    hashes = {"data": "d", "tokenizer": ByteTokenizer().content_hash()}
    study.write_json(ENVIRONMENT, {"id": "a", "hashes": hashes, "base": None, "starts": []})
    ByteTokenizer().save(folder / "tokenizer")
    write_rows(study, FinalLoss(), ROW_SUMS)
    (folder / "table.csv").write_text("arm,seed,loss,rate\na,1,2.0,0.1\nb,1,nan,0.2\n")
    (folder / "launches" / "one").mkdir(parents=True)
    os.environ["GPT_JAX_LAUNCHES"] = str(folder / "launches")
    store.remember(LAUNCH, memory=None)
    store.write(folder / "launches/one/state.json", STATE)
    return folder


def rebuilt(folder: RunFolder) -> Any:
    found = read_claim(folder)
    return found and study_from_claim(found[0].frozen.study)


def launcher_state(folder: Path) -> Any:
    """The state of the launch in `folder`, whose values `status`, `stop` and `--adopt` go by."""
    machines = local.LocalMachines(LAUNCH, folder, SystemClock())
    state = machines.read_state(description.slices(LAUNCH)[0])
    assert state is not None and state["launcher"] > 1 and state["attempt"] >= 0 and f"{state['used'] / 3600:.2f}"
    return state


READERS: dict[str, tuple[str, Callable[[RunFolder], Any]]] = {
    "configuration": (CONFIG, record.recorded),
    "environment": (ENVIRONMENT, record.read_environment),
    "tokenizer": (ENVIRONMENT, run_tokenizer),
    "claim": (CLAIM, rebuilt),
    "claim of a reader": (CLAIM, lambda folder: open_claim(folder.path / CLAIM)),
    "log": (LOG, read_log),
    "rows": (ROWS, lambda folder: row_sums(folder, FinalLoss())),
    "study": (STUDY, records.read_study),
    "table": ("table.csv", lambda folder: read_table(folder.path / "table.csv")),
    "launch": ("launches/one/launch.json", lambda folder: store.recall("one")),
    "launcher": ("launches/one/state.json", lambda folder: launcher_state(folder.path / "launches/one")),
}
CONTENTS = {
    "empty": b"",
    "zeros": bytes(100),
    "no UTF-8": b"\xff\xfe{",
    "a list": b"[]\n",
    "a list of null": b"[null]\n",
    "null": b"null\n",
    "an empty group": b"{}\n",
    "a number": b"3\n",
    "a long number": b"9" * 5000 + b"\n",
    "too deep": b"[" * 100_000 + b"\n",
    "too deep a group": b'{"a":' * 100_000 + b"\n",
    "half of a character": b'{"config": "\\ud800", "resolved": {}}\n',
    "a key twice": b'{"a": 1, "a": 2}\n',
}
# What these readers take for a file without an entry, or with one that a crash cut short.
ACCEPTED = {("log", kind) for kind in ("empty", "zeros", "too deep a group")}


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_of_ours_is_refused(place: Path, reader: str) -> None:
    name, read = READERS[reader]
    whole = (place / name).read_bytes()
    folder = RunFolder(place)
    try:
        for kind, content in CONTENTS.items():
            (place / name).write_bytes(content)
            with bounded():
                sentence = read_or_refuse(lambda: read(folder))
            assert sentence is not None or (reader, kind) in ACCEPTED, kind
        (place / name).unlink()
        (place / name).mkdir()
        with pytest.raises(UserError, match="is not a file but"):
            read(folder)
        (place / name).rmdir()
        os.mkfifo(place / name)
        with pytest.raises(UserError, match="is not a file but"):
            read(folder)
    finally:
        shutil.rmtree(place / name) if (place / name).is_dir() else (place / name).unlink()
        (place / name).write_bytes(whole)
    read(folder)


def test_no_look_is_lost_with_a_damaged_line(place: Path) -> None:
    whole = (place / LOG).read_bytes()
    try:
        (place / LOG).write_bytes(whole.replace(b'"what"', b'"what') + whole)
        with pytest.raises(UserError, match="a line of .* is not an event"):
            read_log(RunFolder(place))
        (place / LOG).write_bytes(whole[:20] + b"\n" + whole)
        assert len(read_log(RunFolder(place))) == len(whole.splitlines())
    finally:
        (place / LOG).write_bytes(whole)


def test_every_part_of_a_launchers_state_is_checked(place: Path) -> None:
    path = place / "launches/one/state.json"
    try:
        for key in STATE.keys() - {"updated"}:
            for wrong in (None, [3], -1, True, {}, float("nan")):
                if (key, wrong) != ("code", None):
                    store.write(path, STATE | {key: wrong})
                    with pytest.raises(UserError, match=r"state\.json is damaged"):
                        launcher_state(path.parent)
            store.write(path, {name: value for name, value in STATE.items() if name != key})
            with pytest.raises(UserError, match=f"state\\.json is damaged .*{key}"):
                launcher_state(path.parent)
        store.write(path, STATE | {"launcher": 0})
        with pytest.raises(UserError, match="launcher is 0"):
            launcher_state(path.parent)
    finally:
        store.write(path, STATE)


def test_another_tokenizer_than_the_runs_is_refused(place: Path) -> None:
    folder = RunFolder(place)
    assert run_tokenizer(folder).vocab_size == 257
    ByteTokenizer(["<other>"]).save(place / "tokenizer")
    try:
        with pytest.raises(UserError, match="is not the one that the run began with"):
            run_tokenizer(folder)
    finally:
        ByteTokenizer().save(place / "tokenizer")


def test_rows_that_unpack_to_more_than_the_bound_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MOST_BYTES", 1 << 20)
    whole = (place / ROWS).read_bytes()
    with (place / ROWS).open("wb") as file:
        np.savez_compressed(file, of=np.array("x"), sums=np.zeros(1 << 20, np.float32), weights=np.zeros(1))
    try:
        with bounded(), pytest.raises(UserError, match="is damaged .it is too large"):
            row_sums(RunFolder(place), FinalLoss())
    finally:
        (place / ROWS).write_bytes(whole)


@examples(4)
@given(st.data())
@pytest.mark.parametrize("reader", READERS)
def test_fuzz_bytes(place: Path, reader: str, data: st.DataObject) -> None:
    name, read = READERS[reader]
    whole = (place / name).read_bytes()
    (place / name).write_bytes(data.draw(damaged(whole)))
    try:
        read_or_refuse(lambda: read(RunFolder(place)))
    finally:
        (place / name).write_bytes(whole)


@examples(4)
@given(st.data())
@pytest.mark.parametrize("reader", [name for name, (file, _) in READERS.items() if file not in (ROWS, "table.csv")])
def test_fuzz_values(place: Path, reader: str, data: st.DataObject) -> None:
    name, read = READERS[reader]
    whole = (place / name).read_bytes()
    value = json.loads(whole.splitlines()[0] if name == LOG else whole)
    (place / name).write_text(json.dumps(data.draw(damaged_json(value))) + "\n")
    try:
        read_or_refuse(lambda: read(RunFolder(place)))
    finally:
        (place / name).write_bytes(whole)
