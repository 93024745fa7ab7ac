"""The target `local`: real processes, real signals, and the launcher as a command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.launch import local, store
from experiments.launch.clock import SystemClock, Timing
from experiments.launch.start import Options, start
from gpt_jax.config.errors import UserError
from tests.experiments.launch.conftest import described
from tests.experiments.test_train_cli import CONFIG

ROOT = Path(__file__).resolve().parents[3]
FAST = Timing(poll=0.05, grace=0.5, silent=60, starting=60, first_wait=0.05, longest_wait=0.1)
# A stand-in for training: writes its arguments, and ends with a code that depends on the attempt and the process.
STAND_IN = """
import json, os, sys, time
from pathlib import Path
process = next((arg[-1] for arg in sys.argv if arg.startswith("--process_id=")), "0")
mark = Path(sys.argv[1], "seen-" + process)
mark.write_text(mark.read_text() + "x" if mark.exists() else "x")
print(json.dumps(sys.argv[2:]))
sys.exit(int(sys.argv[2].split(",")[len(mark.read_text()) - 1].split("/")[int(process)]))
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    return ("python", str(tmp_path / "stand_in.py"), str(tmp_path))


def run(*command: str, processes: int = 1, **changes: Any) -> int:
    launch = described(
        target="local", command=command, workdir="w", zone=None, type=None, processes=processes, **changes
    )
    return start(launch, Options(), SystemClock(), FAST)


def test_one_process_gets_no_flags_and_its_words_as_they_are(launches: Path, stand_in: tuple[str, ...]) -> None:
    odd = ["it's", 'a "b"', "$HOME", "a\nb", ""]
    assert run(*stand_in, "0", *odd) == 0
    assert json.loads((launches / "run/attempt-1/worker-0.log").read_text()) == ["0", *odd]


def test_several_processes_get_the_coordinator_and_their_number(launches: Path, stand_in: tuple[str, ...]) -> None:
    assert run(*stand_in, "0/0/0", processes=3) == 0
    words = [json.loads((launches / f"run/attempt-1/worker-{i}.log").read_text()) for i in range(3)]
    assert [one[-1] for one in words] == [f"--process_id={i}" for i in range(3)]
    assert {one[-2] for one in words} == {"--num_processes=3"}
    [coordinator] = {one[-3] for one in words}
    assert coordinator.startswith("--coordinator=localhost:") and int(coordinator.rpartition(":")[2]) > 1000


def test_what_was_saved_goes_on(stand_in: tuple[str, ...], capsys: pytest.CaptureFixture) -> None:
    assert run(*stand_in, "75/75,75/75,0/0", processes=2) == 0
    assert capsys.readouterr().out.count("interrupted and saved") == 2


def test_a_users_error_stops_all(stand_in: tuple[str, ...], capsys: pytest.CaptureFixture) -> None:
    sleeper = "import sys, time\nif sys.argv[-1] == '--process_id=1': print('no such key'); sys.exit(2)\ntime.sleep(60)"
    began = time.monotonic()
    assert run("python", "-c", sleeper, processes=2) == 2
    shown = capsys.readouterr().out
    assert time.monotonic() - began < 20 and "worker 1 failed first" in shown and "  no such key" in shown


def test_crashes_are_given_up(stand_in: tuple[str, ...]) -> None:
    assert run(*stand_in, "134,134,134,0") == 1


def test_the_limit_lets_the_command_save(capsys: pytest.CaptureFixture, launches: Path) -> None:
    saves = "import signal, sys, time\nsignal.signal(15, lambda *_: (print('saved'), sys.exit(75)))\ntime.sleep(60)"
    assert run("python", "-c", saves, max_hours=1 / 3600) == 75
    assert "saved" in (launches / "run/attempt-1/worker-0.log").read_text()


def test_a_second_launch_of_the_name_is_refused(launches: Path) -> None:
    with local.only_one(launches / "run", "run"), pytest.raises(UserError, match="run is already launched"):
        run("python", "-c", "")


def command(folder: Path, *words: str, **options: Any) -> subprocess.Popen[str]:
    variables = {"GPT_JAX_LAUNCHES": str(folder / "launches"), "GPT_JAX_CACHE": str(folder / "cache"), "XLA_FLAGS": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.launch", *words],
        cwd=ROOT,
        env=os.environ | variables | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


@pytest.mark.slow
def test_training_is_launched_interrupted_and_launched_again(tmp_path: Path) -> None:
    """Real training: Ctrl-C of the launcher saves it, and the same command finishes it."""
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    (tmp_path / "tiny.py").write_text(CONFIG.format(path=str(tmp_path / "text.txt")))
    words = ["--name=run", "--target=local", f"--workdir={tmp_path / 'run'}", "--"]
    words += ["python", "-m", "experiments.train", f"--config={tmp_path / 'tiny.py'}", "--config.train.steps=1000"]
    words += ["--config.evaluation.every=1000", "--config.checkpoint.every=1000"]
    first = command(tmp_path, *words, start_new_session=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    limit = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 5):
        assert time.monotonic() < limit and first.poll() is None, first.communicate()[0]
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGINT)
    told, _ = first.communicate(timeout=120)
    assert first.returncode == 130 and "ending run; please wait" in told, told
    assert list((tmp_path / "run" / "checkpoints").iterdir()), "it was saved"
    again = command(tmp_path, *words)
    told, _ = again.communicate(timeout=200)
    assert again.returncode == 0 and "step 1,000/1,000" in told, told
    steps = [row["step"] for row in map(json.loads, metrics.read_text().splitlines()) if row["split"] == "train"]
    assert steps == sorted(set(steps)) and steps[-1] == 1000, "every step once"


@pytest.mark.slow
def test_a_detached_launch_is_seen_followed_and_stopped(tmp_path: Path) -> None:
    saves = (
        "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(75))\nprint('up', flush=True)\ntime.sleep(300)"
    )
    words = ["--name=run", "--target=local", "--workdir=w", "--detach", "--", "python", "-c", saves]
    one = command(tmp_path, *words)
    told, _ = one.communicate(timeout=60)
    assert one.returncode == 0 and "goes on in the background" in told, told
    limit = time.monotonic() + 60
    while "up" not in (told := command(tmp_path, "logs", "run").communicate(timeout=60)[0]):
        assert time.monotonic() < limit, told
    while not (told := command(tmp_path, "status", "run").communicate(timeout=60)[0]).startswith("run: running"):
        assert time.monotonic() < limit, told
    assert "attempt 1" in told
    refused = command(tmp_path, *words)
    assert "already launched" in refused.communicate(timeout=60)[0] and refused.returncode == 1
    stopped = command(tmp_path, "stop", "run")
    assert stopped.communicate(timeout=60)[0] == "run: stopped\n" and stopped.returncode == 0
    assert not local.is_running(tmp_path / "launches" / "run")
    state = json.loads((tmp_path / "launches" / "run" / store.STATE).read_text())
    assert state["state"] == "stopped"
