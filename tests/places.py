"""Runs the training command again and again, each time with another accident at a place of it."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.experiments.test_train_cli import CONFIG, ROOT, environment, lines

# One process imports the packages once; in a fork for each case it patches a place, and calls the command there.
DRIVER = r'''
import json, os, shutil, signal, subprocess, sys, threading, time, warnings
warnings.filterwarnings("ignore", message="os.fork")
from experiments import cli, train
from gpt_jax.runs import interrupt, session
from gpt_jax.runs.checkpoint import Checkpoints
from gpt_jax.runs.display import Display
from gpt_jax.training.programs import Programs

PLACES = {"parse": (cli, "config_from_flags"), "data": (session, "open_data"), "compile": (Programs, "step"),
          "banner": (session, "show_banner"), "evaluate": (Display, "evaluated"), "save": (Checkpoints, "save"),
          "plot": (session, "plot_loss"), "end": (train, "show_end")}

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
    """A main thread that hears of no signal, as in a call of the system that does not return."""
    interrupt.STUCK_SECONDS = interrupt._deadline._seconds = 1.0
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGTERM]).start()
    threading.Event().wait()

def fill(folder):
    """Takes all that is left on the disk of a folder."""
    with open(f"{folder}/filler", "wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                pass

def before_batch(number, call):
    given = session.Session.batches
    def batches(*args):
        for i, batch in enumerate(given(*args)):
            if i == number:
                call()
            yield batch
    session.Session.batches = batches

def before_last_write(call):
    """The step 12 has been handed over, and is not known to be on disk."""
    given = Checkpoints.wait
    def wait(self):
        if self._pending == 12:
            call()
        given(self)
    Checkpoints.wait = wait

results = []
for i, (place, what, arguments) in enumerate(json.loads(sys.argv[1])):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        for stream, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(f"{sys.argv[2]}/{i}.{stream}", os.O_CREAT | os.O_WRONLY), number)
        exec("act = lambda: " + what)
        if place == "nohup":
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if place in ("batch", "nohup"):
            before_batch(3, act)
        elif place == "write":
            before_last_write(act)
        else:
            at(place, act)
        sys.argv = ["experiments/train.py", *arguments]
        cli.run(train.main, train.PAGE)
    _, status = os.waitpid(child, 0)
    written = [open(f"{sys.argv[2]}/{i}.{stream}").read() for stream in ("out", "err")]
    results.append([os.waitstatus_to_exitcode(status), *written])
print(json.dumps(results))
'''


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


def run(
    place: Path, folder: Path, cases: Sequence[tuple[str, str]], workdirs: Sequence[Path] | None = None
) -> list[Ended]:
    """What happens when Python code runs at a place, for each (place, code); WORKDIR in it is the run's folder."""
    workdirs = workdirs or [folder / f"run{i}" for i in range(len(cases))]
    flags = [f"--config={place}/tiny.py", "--config.checkpoint.every=2"]
    arguments = [
        [at, what.replace("WORKDIR", repr(str(workdir))), [*flags, f"--workdir={workdir}"]]
        for (at, what), workdir in zip(cases, workdirs, strict=True)
    ]
    (place / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    (place / "tiny.py").write_text(CONFIG.format(path=str(place / "text.txt")))
    script = [sys.executable, "-c", DRIVER, json.dumps(arguments), str(folder)]
    done = subprocess.run(script, cwd=ROOT, env=environment(place), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return [Ended(*result, workdir) for result, workdir in zip(json.loads(done.stdout), workdirs, strict=True)]
