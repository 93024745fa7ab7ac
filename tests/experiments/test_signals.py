"""Signals and vanished outputs in every phase of a command: a code, a sentence, no traceback, nothing lost."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.experiments.test_train_cli import CONFIG, ROOT, environment, lines

# One process imports the packages once; in a fork for each case it patches a place, and calls the command there.
DRIVER = """
import json, os, signal, sys, threading, time, warnings
warnings.filterwarnings("ignore", message="os.fork")
from experiments import cli, train
from gpt_jax.data import Data
from gpt_jax.runs import interrupt, session
from gpt_jax.runs.checkpoint import Checkpoints
from gpt_jax.runs.display import Display
from gpt_jax.training.programs import Programs

PLACES = {"parse": (cli, "config_from_flags"), "data": (session, "open_data"), "compile": (Programs, "step"),
          "banner": (session, "show_banner"), "evaluate": (Display, "evaluated"), "save": (Checkpoints, "save"),
          "write": (Checkpoints, "wait"), "end": (train, "show_end"), "batch": (Data, "batch")}

def at(place, call):
    owner, name = PLACES[place]
    given = getattr(owner, name)
    def patched(*args, **kwargs):
        call()
        return given(*args, **kwargs)
    setattr(owner, name, patched)

def close(number):
    reads, writes = os.pipe()
    os.dup2(writes, number)
    os.close(reads)

def hang():
    interrupt.STUCK_SECONDS = 1.0
    threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGTERM]).start()
    threading.Event().wait()

def later(call, count):
    left = iter([None] * count)
    return lambda: next(left, True) and call()

results = []
for i, (place, what, arguments) in enumerate(json.loads(sys.argv[1])):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        for stream, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(f"{sys.argv[2]}/{i}.{stream}", os.O_CREAT | os.O_WRONLY), number)
        exec("act = lambda: " + what)
        at(place, act if place != "batch" else later(act, 3))
        sys.argv = ["experiments/train.py", *arguments]
        cli.run(train.main, train.PAGE)
    _, status = os.waitpid(child, 0)
    written = [open(f"{sys.argv[2]}/{i}.{stream}").read() for stream in ("out", "err")]
    results.append([os.waitstatus_to_exitcode(status), *written])
print(json.dumps(results))
"""


class Ended(NamedTuple):
    code: int
    out: str
    err: str
    folder: Path

    def check(self, code: int, sentence: str) -> None:
        told = self.out + self.err
        assert self.code == code, told
        assert sentence in told and "Traceback" not in told and "Exception ignored" not in told, told
        assert len(self.err.strip().splitlines()) <= 1, self.err

    def saved(self) -> list[int]:
        checkpoints = self.folder / "checkpoints"
        return sorted(int(path.name) for path in checkpoints.iterdir()) if checkpoints.is_dir() else []

    def recorded(self) -> int:
        return max(record["step"] for record in lines(self.folder)) if (self.folder / "metrics.jsonl").exists() else 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    (folder / "tiny.py").write_text(CONFIG.format(path=str(folder / "text.txt")))
    return folder


def run(place: Path, folder: Path, cases: Sequence[tuple[str, str]]) -> list[Ended]:
    """What happens when Python code runs at a place, for each (place, code)."""
    flags = [f"--config={place}/tiny.py", "--config.checkpoint.every=2"]
    arguments = [[at, what, [*flags, f"--workdir={folder}/run{i}"]] for i, (at, what) in enumerate(cases)]
    script = [sys.executable, "-c", DRIVER, json.dumps(arguments), str(folder)]
    done = subprocess.run(script, cwd=ROOT, env=environment(place), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return [Ended(*result, folder / f"run{i}") for i, result in enumerate(json.loads(done.stdout))]


def send(number: signal.Signals) -> str:
    return f"os.kill(os.getpid(), {int(number)})"


def test_a_signal_before_the_first_step_ends_with_its_code(place: Path, tmp_path: Path) -> None:
    phases = [(at, n) for at in ("parse", "data") for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    cases = [(at, send(number)) for at, number in phases]
    twice, gone = f"[{send(signal.SIGTERM)}, {send(signal.SIGTERM)}]", "close(1) or close(2) or print(1, flush=True)"
    *ended, again, cut = run(place, tmp_path, [*cases, ("data", twice), ("data", gone)])
    for (at, number), one in zip(phases, ended, strict=True):
        one.check(128 + number, "interrupted")
        assert not one.folder.exists() or not list(one.folder.rglob("*.json*")), at
    again.check(143, "interrupted")
    cut.check(141, "")


def test_a_signal_while_packages_are_imported_ends_with_its_code() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        code = f"import os, sys; sys.argv = ['-m']; import experiments; {send(number)}; import jax"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "\ninterrupted\n")


@pytest.mark.slow
def test_a_signal_while_it_trains_saves_whatever_it_does(place: Path, tmp_path: Path) -> None:
    """The newest checkpoint is of the last step that is recorded, in whichever phase the signal comes."""
    hup, gone = send(signal.SIGHUP), "close(1)"
    cases = {
        ("compile", send(signal.SIGTERM)): (75, "stopping"),
        ("evaluate", send(signal.SIGINT)): (75, "stopping"),
        ("save", hup): (129, "stopping"),
        ("write", send(signal.SIGTERM)): (0, "stopping"),  # the run was over
        ("end", send(signal.SIGTERM)): (143, "interrupted"),
        ("batch", f"close(1) or close(2) or {hup}"): (129, ""),  # a terminal that is closed
        ("batch", f"signal.signal(signal.SIGHUP, signal.SIG_IGN) and {hup}"): (0, "checkpoint"),  # nohup
        ("evaluate", gone): (141, "stopping"),
        ("evaluate", "close(1) or close(2)"): (141, ""),
    }
    for (case, (code, sentence)), one in zip(cases.items(), run(place, tmp_path, list(cases)), strict=True):
        one.check(code, sentence)
        assert one.saved()[-1] == one.recorded() > 0, case
        assert (one.recorded() == 12) == (code in (0, 143)), case


@pytest.mark.slow
def test_what_is_stuck_does_not_outlive_a_signal(place: Path, tmp_path: Path) -> None:
    data, save, start = run(place, tmp_path, [("batch", "hang()"), ("write", "hang()"), ("data", "hang()")])
    data.check(143, "stopped by SIGTERM, but the batch of step")
    assert "the newest checkpoint is of step" in data.err or "no checkpoint is complete" in data.err
    save.check(143, "stopped by SIGTERM, but the checkpoint of step 12 has not ended for 1 seconds; the newest")
    assert save.saved()
    start.check(143, "interrupted")
