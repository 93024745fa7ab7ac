"""metrics.jsonl is the truth, whatever happens while it is written."""

import json
import struct
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from gpt_jax.runs import metrics
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.metrics import Metrics, TensorBoard, WeightsAndBiases, check_wandb, read
from tests.tiny import tiny_config


def line(step: int, loss: float = 1.0, split: str = "train") -> dict[str, Any]:
    return {"step": step, "split": split, "loss": loss}


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    whole = "".join(json.dumps(line(step)) + "\n" for step in (1, 2))
    torn = json.dumps(line(3))
    for cut in range(len(torn)):
        (tmp_path / "metrics.jsonl").write_text(whole + torn[:cut])
        assert [r["step"] for r in read(RunFolder(tmp_path))] == [1, 2]


FAULTS = {
    "NULs": b"\0" * 500,
    "NULs and an end": b"\0" * 40 + b"\n",
    "no UTF-8": b'{"step": 4, "split": "\xff\xfe"}\n',
    "another type": b"[1]\n3\nnull\n",
    "no step": b'{"step": true, "split": "train", "loss": 1}\n',
    "no finite step": b'{"step": Infinity, "split": "train", "loss": 1}\n',
    "no loss": b'{"step": 4, "split": "train"}\n',
    "a loss of another type": b'{"step": 4, "split": "train", "loss": "low"}\n',
    "depth": b"[" * 100_000 + b"\n",
    "two in one": b'{"step": 4, "spl{"step": 5, "split": "train", "loss": 1}\n',
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_crash_of_the_machine_leaves_at_the_end_is_left_out_with_a_warning(fault: str, tmp_path: Path) -> None:
    folder, whole = RunFolder(tmp_path), [(json.dumps(line(step)) + "\n").encode() for step in (1, 2, 3, 4, 5)]
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"".join(whole[:3]) + FAULTS[fault])
    with pytest.warns(UserWarning, match=r"line 4 of metrics.jsonl is damaged"):
        assert [r["step"] for r in read(folder)] == [1, 2, 3]
    # In the middle: whole lines beyond the checkpoint follow, and are computed again.
    file.write_bytes(b"".join(whole[:3]) + FAULTS[fault].rstrip(b"\n") + b"\n" + whole[4])
    with pytest.raises(ValueError, match=r"line 4 of metrics.jsonl is not a record of a step.*delete the line"):
        read(folder)
    before = file.read_bytes()
    for step in (4, 5):  # the damaged line stands where a record is wanted
        with pytest.raises(ValueError, match="line 4 of metrics.jsonl"):
            Metrics(folder, step, [])
        assert file.read_bytes() == before, "a refusal changes nothing"
    with pytest.warns(UserWarning, match="line 4"):
        Metrics(folder, 3, []).close()
    assert file.read_bytes() == b"".join(whole[:3])


def test_a_damaged_record_of_every_tenth_step_is_missed(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    text = "".join(json.dumps(line(step)) + "\n" for step in (10, 20)).encode()
    file.write_bytes(text + b"\0\0\0")
    with pytest.raises(ValueError, match="line 3"):
        Metrics(RunFolder(tmp_path), 34, [])
    with pytest.warns(UserWarning, match="line 3"):
        Metrics(RunFolder(tmp_path), 27, [])
    assert file.read_bytes() == text
    file.write_bytes(b"\0\0\0")
    with pytest.raises(ValueError, match="line 1"):
        Metrics(RunFolder(tmp_path), 5, [])
    with pytest.warns(UserWarning, match="line 1"):
        Metrics(RunFolder(tmp_path), 0, [])  # all is computed again


def test_a_restart_drops_what_lies_beyond_its_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    records = Metrics(folder, 0, [])
    for step in (1, 2, 3):
        records.write(line(step, 1.0))
    records.write(line(2, 5.0, "validation"))
    records.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "spl')
    records = Metrics(folder, 2, [])
    assert records.had(2, "validation") and not records.had(3, "train")
    for step in (3, 4):
        records.write(line(step, 2.0))
    records.close()
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sorted((r["step"], r["split"], r["loss"]) for r in lines) == [
        (1, "train", 1.0),
        (2, "train", 1.0),
        (2, "validation", 5.0),
        (3, "train", 2.0),
        (4, "train", 2.0),
    ]
    assert [r["step"] for r in read(folder, "train")] == [1, 2, 3, 4]


def test_every_line_is_json_also_when_the_loss_is_not_a_number(tmp_path: Path) -> None:
    records = Metrics(RunFolder(tmp_path), 0, [])
    records.write(line(1, float("nan")))
    records.write(line(2, float("inf")))
    records.close()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(text, parse_constant=refuse)["loss"] for text in lines] == [None, None]


def test_the_disk_is_touched_about_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    records = Metrics(RunFolder(tmp_path), 0, [])
    for step in range(1, 101):
        records.write(line(step))
    assert not (tmp_path / "metrics.jsonl").exists()
    now[0] += 1.5
    records.write(line(101))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 101


def events(folder: Path) -> list[Event]:
    found = []
    for file in sorted(folder.glob("tensorboard/events*")):
        data, place = file.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack("<Q", data[place : place + 8])
            found.append(Event.FromString(data[place + 12 : place + 12 + length]))
            place += 16 + length
    return found


def test_tensorboard_gets_a_copy(tmp_path: Path) -> None:
    records = Metrics(RunFolder(tmp_path), 0, [TensorBoard(RunFolder(tmp_path), 0)])
    records.write(line(1, 2.5))
    records.write(line(1, 3.5, "validation"))
    records.close()
    found = {(v.tag, e.step): v.simple_value for e in events(tmp_path) for v in e.summary.value}
    assert found == {("train/loss", 1): 2.5, ("validation/loss", 1): 3.5}


def test_tensorboard_hides_what_a_restart_makes_again(tmp_path: Path) -> None:
    TensorBoard(RunFolder(tmp_path), 7).close()
    assert [e.step for e in events(tmp_path) if e.HasField("session_log")] == [8]


def test_wandb_is_asked_for_and_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    check_wandb(tiny_config())
    with pytest.raises(ValueError, match=r"pip install 'gpt_jax\[wandb\]'"):
        check_wandb(tiny_config(wandb="project"))


def test_wandb_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    run = types.SimpleNamespace(log=calls.append, finish=lambda: calls.append("finish"))
    fake = types.SimpleNamespace(init=lambda **options: (calls.append(options), run)[1])
    monkeypatch.setitem(sys.modules, "wandb", fake)
    sink = WeightsAndBiases(RunFolder(tmp_path), "project", "abc", {"seed": 1})
    sink.write(line(3))
    sink.close()
    assert calls[0]["id"] == "abc" and calls[0]["resume"] == "allow" and calls[0]["project"] == "project"
    assert calls[1:] == [{"train/loss": 1.0, "step": 3}, "finish"]
