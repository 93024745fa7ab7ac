"""What happens to checkpoints from outside: restarts, damaged records, renamed folders, fast writers, failing disks."""

import json
from pathlib import Path

from gpt_jax.runs.checkpoint import Checkpoints
from gpt_jax.runs.folder import RunFolder
from tests.runs.test_checkpoint import REST, TEMPLATES, assert_same_bits, params, saved


def record_file(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / str(step) / "record" / "metadata"


def as_an_earlier_version_saved(folder: Path, step: int) -> None:
    """Versions before the digest wrote the step and the fingerprints alone."""
    content = json.loads(record_file(folder, step).read_text())
    record_file(folder, step).write_text(json.dumps({"step": step, "fingerprints": content["fingerprints"]}))


def go_on(folder: Path, step: int, loss: float | None) -> list[int]:
    """Opens a folder again, saves one more checkpoint, and returns the steps that stay."""
    with Checkpoints(RunFolder(folder)) as checkpoints:
        checkpoints.save(step, params(step), REST, {}, loss)
        checkpoints.wait()
        return checkpoints.steps()


# ── the best one ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_best_stays_when_the_run_goes_on(tmp_path: Path) -> None:
    with saved(tmp_path, [3.0, 1.0, 2.0]):
        pass
    assert go_on(tmp_path, 4, 2.5) == [4, 2]
    assert go_on(tmp_path, 5, None) == [5, 2]
    with Checkpoints(RunFolder(tmp_path), read_only=True) as reader:
        assert_same_bits(reader.restore(2, TEMPLATES).trees["params"], params(2))
    assert go_on(tmp_path, 6, 0.5) == [6], "a better one takes its place, and the newest is never deleted"
    assert go_on(tmp_path, 7, float("inf")) == [7, 6]


def test_the_best_of_an_earlier_version_is_known_from_its_metrics(tmp_path: Path) -> None:
    with saved(tmp_path, [3.0, 1.0, 2.0]):
        pass
    for step in (2, 3):
        as_an_earlier_version_saved(tmp_path, step)
    rows = [{"step": step, "split": "validation", "loss": loss} for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0))]
    rows += [{"step": 3, "split": "train", "loss": 0.1}, {"step": 4, "split": "validation", "loss": 0.1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert go_on(tmp_path, 5, 2.5) == [5, 2]


def test_an_evaluation_after_the_save_counts(tmp_path: Path) -> None:
    with saved(tmp_path, [None]) as checkpoints:
        checkpoints.evaluated(1, 1.0)
        checkpoints.save(2, params(2), REST, {}, 2.0)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 1]
