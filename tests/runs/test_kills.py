"""SIGKILL at random moments, also inside a save: nothing is lost and nothing differs from a run that nobody killed.

`pytest -m slow tests/runs/test_kills.py --kills=20 -s` kills twenty times, and five times where two processes compute.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gpt_jax.config import Checkpoint, Evaluation, Text, WarmupCosine
from gpt_jax.config.conversion import to_dict
from gpt_jax.data import open_data
from gpt_jax.runs.load import load_run
from tests.experiments.test_train_cli import ROOT, environment, lines
from tests.tiny import tiny_config

pytestmark = pytest.mark.slow
# One process imports the packages once. Each life of the run is a fork of it, or two that compute together.
DRIVER = r"""
import json, os, random, signal, socket, sys, time, traceback, warnings
from pathlib import Path
warnings.filterwarnings("ignore", message="os.fork")
from rich.console import Console
from gpt_jax.config import Config
from gpt_jax.config.conversion import from_dict
from gpt_jax.runs import processes
from gpt_jax.runs.interrupt import Interrupts
from gpt_jax.runs.train import train

place, kills, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
config = from_dict(Config, json.loads((place / "config.json").read_text()))
chance, given = random.Random(count), Interrupts.requested

def slowly(self, step):
    time.sleep(0.02)
    return given(self, step)

def live(folder, port, i):
    log = os.open(f"{folder}.log{i}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    try:
        if count > 1:
            processes.join("kills", f"localhost:{port}", count, i)
        train(config, folder, console=Console(quiet=True))
        processes.end()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)

def start(folder):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = []
    for i in range(count):
        child = os.fork()
        if child == 0:
            live(folder, port, i)
        children.append(child)
    return children

def ended(children):
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

def names(folder):
    try:
        return set(os.listdir(folder / "checkpoints"))
    except FileNotFoundError:
        return set()

def wait(children, condition):
    limit = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < limit, "no checkpoint came"
        if os.waitid(os.P_PID, children[0], os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.0005)

unharmed, killed = place / "unharmed", place / "killed"
assert ended(start(unharmed)) == [0] * count
Interrupts.requested = slowly
report = {"kills": 0, "start": 0, "step": 0, "save": 0, "inside a save": 0}
while report["kills"] < kills:
    when = ["save", "step", "save", "start"][report["kills"] % 4]
    before, children = names(killed), start(killed)
    if when == "start":
        time.sleep(chance.uniform(0.0, 4.0))
    elif when == "step":
        wait(children, lambda: any(name.isdigit() and name not in before for name in names(killed)))
        time.sleep(chance.uniform(0.0, 0.3))
    else:
        wait(children, lambda: any(not name.isdigit() and name not in before for name in names(killed)))
        time.sleep(chance.uniform(0.0, 0.02))
    victims = children if count == 1 or chance.random() < 0.5 else [chance.choice(children)]
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    codes = ended(children)
    assert 0 not in codes, "the run has ended before it could be killed: give it more steps"
    assert all(code == -9 or len(victims) < count and code == 75 for code in codes), codes
    report["kills"] += 1
    report[when] += 1
    report["inside a save"] += any(not name.isdigit() for name in names(killed))
codes = ended(start(killed))
assert codes == [0] * count, codes
print(json.dumps(report))
"""


def measured(folder: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines(folder)]


def write_texts(place: Path) -> Text:
    """About 20 rows to train on, so that an epoch ends after about 3 steps."""
    generator = np.random.default_rng(0)
    for number in range(9):
        words = generator.choice(["alpha", "beta", "gamma", "delta\n"], 20)
        (place / f"{number}.txt").write_text(" ".join(words))
    return Text(path=str(place / "*.txt"), validation_fraction=0.2, validation_tokens=100)


@pytest.mark.optimized
@pytest.mark.parametrize("count", [1, 2])
def test_a_run_that_is_killed_again_and_again_equals_one_that_is_not(
    count: int, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT_JAX_CACHE", str(tmp_path / "cache"))
    asked = request.config.getoption("--kills")
    kills = asked if count == 1 else max(1, asked // 4)
    steps = 20 + 8 * kills
    config = tiny_config(
        steps=steps,
        data=write_texts(tmp_path),
        schedule=WarmupCosine(warmup=4),
        evaluation=Evaluation(every=5, batch_size=8),
        checkpoint=Checkpoint(every=3),
    )
    rows = open_data(config.data, config.model.context_length, 0).train_rows
    assert rows is not None and steps * config.train.batch_size > 3 * rows, "at least three epochs"
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    variables = environment(tmp_path) | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={2 // count}"}
    command = [sys.executable, "-c", DRIVER, str(tmp_path), str(kills), str(count)]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    logs = "".join(path.read_text()[-2000:] for path in tmp_path.glob("*.log?"))
    assert done.returncode == 0, done.stderr[-2000:] + logs
    print(f"\n{count} processes, {steps} steps, {steps * config.train.batch_size / rows:.0f} epochs: {done.stdout}")
    killed, unharmed = tmp_path / "killed", tmp_path / "unharmed"
    assert measured(killed) == measured(unharmed)
    prints = [path / "checkpoints" / str(steps) / "record" / "metadata" for path in (killed, unharmed)]
    assert json.loads(prints[0].read_text()) == json.loads(prints[1].read_text())
    (_, ours, _), (_, theirs, _) = load_run(killed), load_run(unharmed)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
