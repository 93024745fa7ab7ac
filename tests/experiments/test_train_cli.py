"""The commands as people and scripts call them: help, mistakes, interrupts, exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gpt_jax.runs.goodput import GOODPUT

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
from gpt_jax.config import *
from gpt_jax.config.conversion import to_config_dict

def get_config(arg=""):
    block = BlockConfig(Attention(heads=2, position=Rope()), Mlp(32))
    return to_config_dict(Config(
        model=ModelConfig(vocab_size=None, context_length=32, width=16, blocks=(block,) * 2),
        data=Text(path={path!r}, validation_fraction=0.2),
        optimizer=Adamw(learning_rate=1e-2),
        train=Train(steps=12, batch_size=8),
        evaluation=Evaluation(every=6, batch_size=8),
        checkpoint=Checkpoint(every=6),
        prompt="the ",
    ))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and a configuration for it."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    (folder / "tiny.py").write_text(CONFIG.format(path=str(folder / "text.txt")))
    (folder / "broken.py").write_text("def get_config():\n    return 5\n")
    return folder


def environment(place: Path) -> dict[str, str]:
    return dict(os.environ) | {"GPT_JAX_CACHE": str(place / "cache"), "COLUMNS": "200"}


def command(place: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *arguments],
        cwd=ROOT,
        env=environment(place),
        capture_output=True,
        text=True,
        timeout=300,
    )


# One process imports the packages once and answers many command lines, each in a fork of its own.
MANY = """
import json, os, sys, warnings
warnings.filterwarnings("ignore", message="os.fork")
from experiments import cli, {name} as command
results = []
for i, arguments in enumerate(json.loads(sys.argv[1])):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        for stream, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(f"{{sys.argv[2]}}/{{i}}.{{stream}}", os.O_CREAT | os.O_WRONLY), number)
        sys.argv = ["experiments/{name}.py", *arguments]
        cli.run(command.main, command.PAGE)
    _, status = os.waitpid(child, 0)
    written = [open(f"{{sys.argv[2]}}/{{i}}.{{stream}}").read() for stream in ("out", "err")]
    results.append([os.waitstatus_to_exitcode(status), *written])
print(json.dumps(results))
"""


def many(place: Path, folder: Path, name: str, lines: list[list[str]]) -> list[tuple[int, str, str]]:
    folder.mkdir()
    script = [sys.executable, "-c", MANY.format(name=name), json.dumps(lines), str(folder)]
    done = subprocess.run(script, cwd=ROOT, env=environment(place), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [tuple(result) for result in json.loads(done.stdout)]


def test_help_is_a_page(place: Path, tmp_path: Path) -> None:
    for name, flags in (
        ("train", ["--config", "--workdir", "--profile", "--noresume"]),
        ("evaluate", ["--workdir", "--step"]),
    ):
        for code, out, err in many(place, tmp_path / name, name, [["--help"], ["-h"], ["--workdir=x", "--help"]]):
            assert (code, err) == (0, "")
            assert f"python -m experiments.{name}" in out and "Exit codes" in out
            assert all(flag in out for flag in flags)
            assert len(out.splitlines()) < 45 and max(map(len, out.splitlines())) <= 112


MISTAKES: list[tuple[list[str], int, str]] = [
    (["--config={place}/tiny.py"], 2, "--workdir is required"),
    (["--workdir={run}"], 2, "--config is required"),
    (["--workdir={run}", "--config.train.steps=3"], 2, "--config is required"),
    (["--workdir={run}", "--config={place}/none.py"], 2, "none.py does not exist"),
    (["--workdir={run}", "--config={place}/broken.py"], 2, "must return a ConfigDict"),
    (["--workdri={run}", "--config={place}/tiny.py"], 2, 'did you mean "--workdir"?'),
    (["--workdir={run}", "--config={place}/tiny.py", "more"], 2, '"more" is not a flag'),
    (["--workdir={run}", "--config={place}/tiny.py", "--config.train.step=3"], 2, 'did you mean "steps"?'),
    (["--workdir={run}", "--config={place}/tiny.py", "--config.trian.steps=3"], 2, 'Did you mean "train"'),
    (["--workdir={run}", "--config={place}/tiny.py", "--config.trian.steps=None"], 2, 'Did you mean "train"'),
    (["--workdir={run}", "--config={place}/tiny.py", "--config.train.steps=abc"], 2, "config.train.steps=abc"),
    (
        ["--workdir={run}", "--config={place}/tiny.py", "--config.train.steps=None"],
        2,
        "train.steps must be of type int",
    ),
    (["--workdir={run}", "--config={place}/tiny.py", "--config.train.steps=0"], 2, "train.steps must be positive"),
    (["--workdir={run}", "--config={place}/tiny.py", "--config.model.mlp.type=GatdMlp"], 2, 'did you mean "GatedMlp"?'),
    (
        ["--workdir={run}", "--config={place}/tiny.py", "--config.model.width=15"],
        2,
        "is no multiple of attention.heads",
    ),
    (["--workdir={run}", "--config={place}/tiny.py", "--config.data.path=/no/such"], 1, "/no/such"),
    (["--workdir=/proc/run", "--config={place}/tiny.py"], 1, "choose another --workdir"),
]


def test_a_mistake_is_answered_in_one_sentence(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    lines = [[part.format(place=place, run=run) for part in arguments] for arguments, _, _ in MISTAKES]
    results = many(place, tmp_path / "output", "train", lines)
    for (arguments, expected_code, expected), (code, _, err) in zip(MISTAKES, results, strict=True):
        assert expected in err, (arguments, err)
        assert code == expected_code, (arguments, err)
        assert len(err.splitlines()) == 1 and "Traceback" not in err, (arguments, err)
    assert not run.exists() or not list(run.rglob("*.json*"))


def test_mistakes_of_evaluate(place: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    lines = [[], [f"--workdir={tmp_path}/none"], [f"--workdir={tmp_path}/empty"]]
    results = many(place, tmp_path / "output", "evaluate", lines)
    for (code, _, err), (expected_code, expected) in zip(
        results, [(2, "--workdir is required"), (1, "there is no folder"), (1, "there is no run in")], strict=True
    ):
        assert (code, len(err.splitlines())) == (expected_code, 1) and expected in err


OVERRIDES = """
import sys
from absl import flags
from experiments import cli
cli.define_config()
flags.FLAGS(cli._parse(sys.argv) and sys.argv[:1])
c = cli.config_from_flags()
block = c.model.blocks[1]
shown = (c.optimizer.learning_rate, c.train.clip_norm, block.mlp, block.attention.kv_heads)
print(shown, c.data.path, c.data.seed)
"""


def test_settings_change_on_the_command_line(place: Path) -> None:
    """An int where a float belongs, None for a number, another type with its own settings, a field that was None."""
    arguments = [
        f"--config={place}/tiny.py",
        "--config.optimizer.learning_rate=1",
        "--config.train.clip_norm=None",
        "--config.model.mlp.type=GatedMlp",
        "--config.model.mlp.width=24",
        "--config.model.attention.kv_heads=1",
        "--config.data.path=other.txt",
        "--config.data.seed=7",
    ]
    done = subprocess.run([sys.executable, "-c", OVERRIDES, *arguments], cwd=ROOT, capture_output=True, text=True)
    expected = "(1.0, None, GatedMlp(width=24, activation='gelu_tanh', bias=False), 1) other.txt 7\n"
    assert done.stdout == expected, done.stderr


def lines(folder: Path) -> list[dict[str, Any]]:
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record for record in found if record["split"] != GOODPUT]


@pytest.fixture(scope="module")
def trained(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("trained") / "run"
    return folder, command(place, "train", f"--config={place}/tiny.py", f"--workdir={folder}")


def test_train_ends_with_what_one_wants_to_know(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = trained
    assert (done.returncode, done.stderr) == (0, "")
    loss = lines(folder)[-1]["loss"]
    for expected in (
        f"{loss:.4f}",
        "bits per byte",
        "the ",
        f"checkpoint: {folder}/checkpoints/12",
        f"loss curve: {folder}/loss.png",
        f"python -m experiments.sample --workdir={folder}",
        f"python -m experiments.evaluate --workdir={folder}",
        f"--workdir={folder} --config.train.steps=24",
        "--config.model.attention.kv_heads=1",
    ):
        assert expected in done.stdout, expected
    assert not [line for line in done.stdout.splitlines() if "Traceback" in line or "none: " in line]


def test_metrics_carry_what_scripts_rely_on(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    found = lines(trained[0])
    assert [r["step"] for r in found if r["split"] == "train"] == list(range(1, 13))
    validation = [r for r in found if r["split"] == "validation"]
    assert [r["step"] for r in validation] == [6, 12]
    assert all({"step", "split", "loss"} <= r.keys() for r in found)
    for r in validation:
        assert {"bits_per_byte", "tokens", "perplexity", "accuracy"} <= r.keys()
        assert {f"{name}_standard_error" for name in ("loss", "bits_per_byte", "perplexity", "accuracy")} <= r.keys()


def test_a_finished_run_says_so(place: Path, trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    done = command(place, "train", f"--config={place}/tiny.py", f"--workdir={trained[0]}")
    assert done.returncode == 0 and "already finished" in done.stdout
    assert len(lines(trained[0])) == 14


def test_another_configuration_is_refused(place: Path, trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    done = command(place, "train", f"--config={place}/tiny.py", f"--workdir={trained[0]}", "--config.seed=3")
    assert done.returncode == 2 and "seed: 0 → 3" in done.stderr and len(done.stderr.splitlines()) == 1


def test_evaluate_prints_and_writes(place: Path, trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder = trained[0]
    before = (folder / "metrics.jsonl").read_bytes()
    done = command(place, "evaluate", f"--workdir={folder}")
    assert (done.returncode, done.stderr) == (0, "")
    written = json.loads((folder / "evaluation.json").read_text())
    last = lines(folder)[-1]
    assert written["step"] == 12 and written["loss"] == pytest.approx(last["loss"], rel=1e-6)
    assert f"{last['loss']:.4f}" in done.stdout and "standard error" in done.stdout
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_verify_tells_good_from_damaged(
    place: Path, trained: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    run, damaged = trained[0], tmp_path / "damaged"
    shutil.copytree(run, damaged)
    (damaged / "checkpoints" / "12").rename(damaged / "checkpoints" / "11")
    flags = [["--help"], [], [f"--workdir={tmp_path}/none"], ["--workdir", str(run)]]
    flags += [[f"--workdir={run}", f"--workdir={damaged}", "--json"], [f"--workdir={damaged}"]]
    helped, missing, none, good, both, bad = many(place, tmp_path / "output", "verify", flags)
    assert helped[0] == 0 and "python -m experiments.verify" in helped[1]
    assert max(map(len, helped[1].splitlines())) <= 112
    assert missing[0] == 2 and "--workdir is required" in missing[2] and len(missing[2].splitlines()) == 1
    assert none[0] == 1 and "there is no folder" in none[2] and len(none[2].splitlines()) == 1
    assert (good[0], good[2]) == (0, "") and "checkpoints/12" in good[1] and "NO" not in good[1]
    found = json.loads(both[1])
    assert both[0] == 1 and all(check["trusted"] is not False for check in found[str(run)])
    (wrong,) = [check for check in found[str(damaged)] if check["trusted"] is False]
    assert wrong["part"] == "checkpoints/11" and "renamed or copied" in wrong["found"]
    assert bad[0] == 1 and f"checkpoints/11: {wrong['advice']}" in bad[1] and bad[2] == ""


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_saves_and_exits_with_its_own_code(place: Path, tmp_path: Path, number: signal.Signals) -> None:
    arguments = [f"--config={place}/tiny.py", f"--workdir={tmp_path}/run", "--config.train.steps=1000000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *arguments],
        cwd=ROOT,
        env=environment(place),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    # While it runs, nobody else gets in.
    refused = command(place, "train", *arguments)
    assert (
        refused.returncode == 1 and "another run is writing" in refused.stderr and len(refused.stderr.splitlines()) == 1
    )
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert "interrupted after step" in out and "stopping" in err and "Traceback" not in err
    steps = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert max(r["step"] for r in lines(tmp_path / "run")) == max(steps)


def test_a_second_ctrl_c_ends_at_once(place: Path) -> None:
    script = (
        "import signal, sys, time\n"
        "from gpt_jax.runs.interrupt import Interrupts\n"
        "with Interrupts() as interrupts:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    assert interrupts.requested(1)\n"
        "    print('saving', flush=True)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print('survived', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGINT and done.stdout == "saving\n" and "Ctrl-C again" in done.stderr
