"""The commands of every target, as golden files; and whether the real gcloud reads ours.

A golden file is what `--dry_run` prints, with this checkout's folder, the user's and the bundle's hash left out.
After a change that is meant, `python tests/experiments/launch/test_commands.py` writes them again: read the difference.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.launch import checks, description, dry, hardware, start, tpu
from experiments.launch.clock import SystemClock, Timing
from experiments.launch.description import Launch
from experiments.launch.gcloud import CloudError, Gcloud
from experiments.launch.start import Options
from experiments.launch.tpu_machines import TpuMachines
from tests.bucket import serve_bucket
from tests.experiments.launch.conftest import described

PAGE = Path(__file__).resolve().parents[3] / "docs" / "tpu.md"
GOLDEN = Path(__file__).with_name("golden")
ROOT = Path(__file__).resolve().parents[3]
ODD = ("python", "-m", "experiments.train", "--config=a b.py", '--config.prompt=it\'s "$HOME" `x`; é\n2')
STUDY = ("python", "-m", "experiments.ablate", "--config=configs/ablations/kv_heads.py")
WORDS = ("--name=run", "--zone=us-west4-a", "--detach")

CASES: dict[str, tuple[dict[str, Any], Options]] = {
    "tpu": (dict(command=ODD, project="p", price=1.2, max_cost=40.0), Options()),
    "tpu_shards": (dict(command=STUDY, project="p", shards=2, spot=False, type="v4-8"), Options()),
    "tpu_detached": (dict(project="p", max_hours=24.0), Options(detach=True, words=WORDS)),
    "local": (dict(target="local", command=ODD, workdir="w", zone=None, type=None, processes=2), Options()),
    "slurm": (dict(target="slurm", command=ODD, workdir="/shared/w", zone=None, processes=4, max_hours=1.5), Options()),
    "skypilot": (dict(target="skypilot", command=ODD, type="tpu-v6e-8", max_hours=2.0), Options()),
    "skypilot_gpus": (
        dict(target="skypilot", command=STUDY, type="H100:8", zone=None, processes=2, shards=2, spot=False),
        Options(),
    ),
}


def printed(name: str) -> str:
    changes, options = CASES[name]
    text = "\n".join(dry.dry_run(described(**changes), options, "DIGEST")) + "\n"
    # the interpreter first: in a checkout with an environment of its own it lies below the checkout
    names = {sys.executable: "PYTHON", str(ROOT): "CHECKOUT", str(start.store.home()): "HOME"}
    for path, word in names.items():
        text = text.replace(path, word)
    return text


@pytest.mark.parametrize("name", CASES)
def test_the_commands_are_the_golden_ones(name: str) -> None:
    assert printed(name) == (GOLDEN / f"{name}.txt").read_text()


def commands(name: str) -> list[list[str]]:
    """The command lines of a golden file that start with gcloud."""
    text = PAGE.read_text().replace("\\\n", " ") if name == "page" else printed(name)
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("gcloud ")]
    return [shlex.split(line) for line in lines if not line.startswith("gcloud auth login")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tpu", "tpu_detached", "page"])
def test_gcloud_reads_every_command(name: str, tmp_path: Path) -> None:
    """The real one, where it is installed, without an account: it stops at the login, after it has read the words."""
    if shutil.which("gcloud") is None:
        pytest.skip("needs the Google Cloud CLI")
    file = tmp_path / "file"
    file.write_text("{}")
    variables = os.environ | {"CLOUDSDK_CONFIG": str(tmp_path), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}
    for words in {tuple(words[:6]): words for words in commands(name)}.values():
        words = [re.sub(r"(startup-script|gpt-jax-job)=[^,]+", rf"\1={file}", word) for word in words]
        words = [word.replace("PROJECT", "some-project").replace("BUCKET", "some-bucket") for word in words]
        answer = subprocess.run(words, env=variables, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert "unrecognized arguments" not in answer.stderr and "Invalid choice" not in answer.stderr, answer.stderr
        assert answer.returncode == 0 or "credential" in answer.stderr or "account" in answer.stderr, answer.stderr


@pytest.mark.slow
def test_the_real_gcloud_reads_and_writes_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """States, records and logs, and the messages by which the launcher knows that there are none."""
    if shutil.which("gcloud") is None:
        pytest.skip("needs the Google Cloud CLI")
    with serve_bucket() as url:
        monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
        monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE", f"{url}/storage/v1/")
        monkeypatch.setenv("CLOUDSDK_AUTH_DISABLE_CREDENTIALS", "true")
        gcloud, launch = Gcloud(SystemClock(), Timing()), described(workdir="gs://bucket/dir")
        place, [one] = tpu.Place.of(launch, "p", tmp_path), description.slices(launch)
        machines = TpuMachines(launch, place, "", gcloud, SystemClock(), Timing())
        assert machines.read_state(one) is None and machines.log(one, 1, 0, 0) == ""
        assert machines._records("run", 1) == ()
        state = {"state": "running", "reason": "", "attempt": 1, "used": 0, "tries": 0, "code": None, "command": ["x"]}
        machines.write_state(one, state)
        assert machines.read_state(one) == state
        for worker in (0, 1):
            record = {"worker": worker, "hosts": 2, "beat": 1, "code": None, "ended": None}
            gcloud.call(tpu.upload("-", f"{place.attempt('run', 1)}/worker-{worker}.json"), json.dumps(record) + "\n")
        assert [record.worker for record in machines._records("run", 1)] == [0, 1]
        gcloud.call(tpu.upload("-", tpu.log("run", place, 1, 0)), "step 1\nstep 2\n")
        assert machines.log(one, 1, 0, 7) == "step 2\n" and machines.log(one, 1, 0, 14) == ""
        assert gcloud.call(checks.bucket("gs://bucket/dir")).strip() == "US-CENTRAL1"
        with pytest.raises(CloudError) as error:
            gcloud.call(checks.bucket("gs://no-such-bucket/dir"))
        assert error.value.kind == "missing"


@pytest.mark.parametrize("name", ["slurm", "skypilot", "skypilot_gpus"])
def test_a_shell_gives_the_command_its_words_back(name: str, tmp_path: Path) -> None:
    """The generated script runs, with stand-ins for what a cluster has, and the command gets the words it was given."""
    changes, _ = CASES[name]
    launch = described(**changes)
    script = shell_script(launch, tmp_path)
    programs = tmp_path / "programs"
    programs.mkdir()
    for program in ("srun", "timeout"):  # timeout's own flags come first
        skip = "while [[ $1 != python ]]; do shift; done; " if program == "timeout" else ""
        (programs / program).write_text(f'#!/bin/bash\n{skip}exec "$@"\n')
    (programs / "python").write_text('#!/bin/bash\nprintf "%s\\0" "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    variables = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(tmp_path), **nodes}
    out = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, text=True, check=True).stdout
    expected = list(description.slices(launch)[0].command[1:])
    if name == "skypilot_gpus":
        expected += ["--coordinator=10.0.0.1:8476", "--num_processes=2", "--process_id=1"]
    assert out.split("\0")[:-1] == expected


def shell_script(launch: Launch, folder: Path) -> str:
    plan = start.batch_plan(launch, "DIGEST")
    text = next(iter(plan.files.values()))
    if launch.target == "skypilot":
        return yaml.safe_load(text)["run"]
    return text.replace(f"cd {start.checkout_of(launch, 'DIGEST')}", f"cd {folder}").replace(sys.executable, "python")


def test_a_slurm_job_that_saved_is_queued_again_as_often_as_retries_say(tmp_path: Path) -> None:
    launch = described(target="slurm", command=("bash", "-c", "exit 75"), workdir="/shared/w", zone=None, retries=2)
    script = shell_script(launch, tmp_path)
    (tmp_path / "srun").write_text('#!/bin/bash\nexec "$@"\n')
    (tmp_path / "scontrol").write_text('#!/bin/bash\necho "$@"\n')
    for program in ("srun", "scontrol"):
        (tmp_path / program).chmod(0o755)
    for restarts, told in (("1", "requeue 7\n"), ("2", "")):
        variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": restarts}
        answer = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, text=True)
        assert (answer.returncode, answer.stdout) == (75, told)


def test_a_skypilot_task_installs_beside_its_checkout() -> None:
    task = yaml.safe_load(next(iter(start.batch_plan(described(**CASES["skypilot"][0]), "DIGEST").files.values())))
    assert "$" not in task["setup"], "nothing in it is for the shell to fill in: it is quoted"
    assert "../gpt_jax_launch/tools/bin/uv venv" in task["setup"] and task["setup"].startswith("set -e\n")
    assert task["resources"]["job_recovery"] == {"recover_on_exit_codes": [75]}


@pytest.mark.parametrize(
    ("type_", "chips", "runtime"),
    [
        ("v5litepod-16", 16, "v2-alpha-tpuv5-lite"),
        ("v4-32", 16, "tpu-ubuntu2204-base"),
        ("v5p-8", 4, "v2-alpha-tpuv5"),
        ("v6e-64", 64, "v2-alpha-tpuv6e"),
        ("v3-8", 4, "tpu-ubuntu2204-base"),
    ],
)
def test_chips_and_images_of_slices(type_: str, chips: int, runtime: str) -> None:
    assert (hardware.chips(type_), hardware.runtime_version(type_)) == (chips, runtime)


@pytest.mark.parametrize("type_", ["v5e-16", "v4-7", "v4-0", "H100:8", "v5litepod"])
def test_types_that_do_not_exist(type_: str) -> None:
    with pytest.raises(ValueError, match="not a type of TPU slice"):
        hardware.chips(type_)


if __name__ == "__main__":
    for case in CASES:
        (GOLDEN / f"{case}.txt").write_text(printed(case))
