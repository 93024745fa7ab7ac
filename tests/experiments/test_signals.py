"""Signals and vanished outputs in every phase of a command: a code, a sentence, no traceback, nothing lost."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.interrupt import Interrupts
from tests.experiments.test_train_cli import ROOT
from tests.places import run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


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
    hup = send(signal.SIGHUP)
    cases = {
        ("compile", send(signal.SIGTERM)): (75, "stopping"),
        ("evaluate", send(signal.SIGINT)): (75, "stopping"),
        ("save", hup): (129, "stopping"),
        ("write", send(signal.SIGTERM)): (0, "stopping"),  # the run was over
        ("end", send(signal.SIGTERM)): (143, "interrupted"),
        ("batch", f"close(1) or close(2) or {hup}"): (129, ""),  # a terminal that is closed
        ("nohup", hup): (0, "checkpoint"),
        ("evaluate", "close(1)"): (141, "stopping"),  # train | head
    }
    for (case, (code, sentence)), one in zip(cases.items(), run(place, tmp_path, list(cases)), strict=True):
        one.check(code, sentence)
        assert one.saved()[-1] == one.recorded() > 0, case
        assert (one.recorded() == 12) == (code in (0, 143)), case


def test_a_checkpoint_that_grows_is_progress(tmp_path: Path) -> None:
    loop = Interrupts([RunFolder(tmp_path)])
    assert "no checkpoint is complete yet" in loop.remaining() and loop.progress() == loop.progress()
    partial = tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp" / "params"
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    partial.mkdir(parents=True)
    assert "the newest checkpoint is of step 3" in loop.remaining()
    seen = [loop.progress()]
    for content in ("", "1", "12"):
        (partial / "0").write_text(content)
        seen.append(loop.progress())
    assert len(set(map(repr, seen))) == 4


@pytest.mark.slow
def test_what_is_stuck_does_not_outlive_a_signal(place: Path, tmp_path: Path) -> None:
    data, save, start = run(place, tmp_path, [("batch", "hang()"), ("write", "hang()"), ("data", "hang()")])
    data.check(143, "stopped by SIGTERM, but the batch of step 4 has not ended for ")
    assert "; the newest checkpoint is of step 2: the same command goes on from there" in data.err
    save.check(143, "stopped by SIGTERM, but the checkpoint of step 12 has not ended for ")
    assert save.saved()
    start.check(143, "stopped by SIGTERM, but the command has not ended for 1 seconds")
