"""The targets `slurm` and `skypilot`: a file and the command that submits it. Their schedulers do the retries."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent

from experiments.launch import tpu
from experiments.launch.description import SAVED, Launch, Slice, slices

FOLDER = "../gpt_jax_launch"  # beside the folder in which SkyPilot runs its tasks
SAVING = 300  # seconds before its end at which a job is asked to save


@dataclass(frozen=True)
class Plan:
    """What submits a launch, and what watches and ends it.

    Attributes:
      files: path → content, written first.
      submit: commands, one a slice.
    """

    files: dict[Path, str]
    submit: list[list[str]]
    status: list[list[str]]
    logs: list[list[str]]
    follow: list[list[str]]
    stop: list[list[str]]


def slurm(launch: Launch, checkout: Path, folder: Path, python: str) -> Plan:
    """A script for each slice. Options of a site, such as its partition, come from sbatch's SBATCH_… variables."""
    all_slices = slices(launch)
    scripts = {one.name: folder / f"{one.name}.sh" for one in all_slices}
    logs = [str(folder / f"{one.name}.log") for one in all_slices]
    names = ",".join(one.name for one in all_slices)
    return Plan(
        {scripts[one.name]: slurm_script(launch, one, checkout, folder, python) for one in all_slices},
        [["sbatch", str(scripts[one.name])] for one in all_slices],
        [["squeue", f"--name={names}"]],
        [["tail", "--lines=+1", *logs]],
        [["tail", "--lines=+1", "--follow", *logs]],
        [["scancel", f"--name={names}"]],
    )


def slurm_script(launch: Launch, one: Slice, checkout: Path, folder: Path, python: str) -> str:
    """One task a node, which JAX's processes find by SLURM's variables. Saved runs are requeued."""
    words = [python if word == "python" else word for word in one.command]
    limit = [] if launch.hours is None else [f"#SBATCH --time={max(1, int(launch.hours * 60))}"]
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name={one.name}",
        f"#SBATCH --nodes={launch.processes}",
        "#SBATCH --ntasks-per-node=1",
        f"#SBATCH --output={folder / one.name}.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        f"#SBATCH --signal=TERM@{SAVING}",
        *limit,
        f"cd {shlex.quote(str(checkout))} || exit 2",
        "code=0",
        f"srun {shlex.join(words)} || code=$?",
        f'if [ "$code" -eq {SAVED} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {launch.retries} ]; then',
        '  scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def skypilot(launch: Launch, checkout: Path, folder: Path) -> Plan:
    """A task file for each slice, submitted as a managed job, which SkyPilot recovers and cleans up."""
    all_slices = slices(launch)
    tasks = {one.name: folder / f"{one.name}.yaml" for one in all_slices}
    return Plan(
        {tasks[one.name]: skypilot_task(launch, one, checkout) for one in all_slices},
        [
            ["sky", "jobs", "launch", f"--name={name}", "--yes", "--detach-run", str(task)]
            for name, task in tasks.items()
        ],
        [["sky", "jobs", "queue"]],
        [["sky", "jobs", "logs", f"--name={name}", "--no-follow"] for name in tasks],
        [["sky", "jobs", "logs", f"--name={name}", "--follow"] for name in tasks],
        [["sky", "jobs", "cancel", f"--name={name}", "--yes"] for name in tasks],
    )


def skypilot_task(launch: Launch, one: Slice, checkout: Path) -> str:
    """A task file. JSON's strings are YAML's too, so any character of a command is safe in it."""
    assert launch.type is not None
    extra = "tpu" if launch.type.startswith("tpu-") else "cuda,gcs"
    install = [shlex.join(word.replace("%(folder)s", FOLDER) for word in words) for words in tpu.install(extra)]
    lines = [
        f"name: {one.name}",
        f"workdir: {json.dumps(str(checkout))}",
        f"num_nodes: {launch.processes}",
        "resources:",
    ]
    if launch.zone is not None:
        lines += ["  cloud: gcp", f"  zone: {launch.zone}"]
    lines += [f"  accelerators: {json.dumps(launch.type)}"]
    if launch.runtime_version is not None:
        lines += ["  accelerator_args:", f"    runtime_version: {launch.runtime_version}"]
    lines += [f"  use_spot: {json.dumps(launch.spot)}", "  job_recovery:", f"    recover_on_exit_codes: [{SAVED}]"]
    lines += ["setup: |", indent("\n".join(["set -e", *install]), "  ")]
    path = f'export PATH="$PWD/{FOLDER}/venv/bin:$PATH" PYTHONUNBUFFERED=1'
    # Indented as a whole: a word may hold the end of a line.
    lines += ["run: |", indent(f"{path}\nexec {_run(launch, one)}", "  ", lambda line: True)]
    return "\n".join(lines) + "\n"


def _run(launch: Launch, one: Slice) -> str:
    """The command for a shell: asked to save at the end of its hours, and told where the other nodes are."""
    text = shlex.join(one.command)
    if launch.hours is not None:
        text = f"timeout --preserve-status --signal=TERM --kill-after={SAVING} {round(launch.hours * 3600)} {text}"
    if launch.processes > 1:
        text += ' --coordinator="$(head -n1 <<< "$SKYPILOT_NODE_IPS"):8476"'
        text += ' --num_processes="$SKYPILOT_NUM_NODES" --process_id="$SKYPILOT_NODE_RANK"'
    return text
