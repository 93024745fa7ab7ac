"""The target `tpu`: the commands that make, watch and delete a slice. All of it through gcloud; no ssh is needed.

A slice is a queued resource whose startup script is `worker.py`. The workers write their records and logs to
`launch/NAME/attempt-K/` in the work folder, where the launcher reads them, and anyone else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.launch import hardware
from experiments.launch.description import Launch, Slice

LABEL = "gpt-jax-launch"
JOB = "gpt-jax-job"  # the metadata key that worker.py reads
WORKER = Path(__file__).with_name("worker.py")
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
GCLOUD = ("gcloud", "compute", "tpus")

# TPU images have a Python that is too old for gpt_jax; uv brings one.
INSTALL: tuple[tuple[str, ...], ...] = (
    ("bash", "-c", "python3 -m pip --version || (apt-get update && apt-get install --yes python3-pip)"),
    ("python3", "-m", "pip", "install", "--quiet", "--target=%(folder)s/tools", "uv"),
    ("%(folder)s/tools/bin/uv", "venv", "--quiet", "--clear", "--python=>=3.11", "%(folder)s/venv"),
)


def install(extra: str) -> list[list[str]]:
    """The commands that install the bundle with an extra, in its folder."""
    python = "--python=%(folder)s/venv/bin/python"
    last = [
        "%(folder)s/tools/bin/uv",
        "pip",
        "install",
        "--quiet",
        python,
        "-c",
        "constraints.txt",
        "-e",
        f".[{extra}]",
    ]
    return [*(list(command) for command in INSTALL), last]


@dataclass(frozen=True)
class Place:
    """Where a launch lives in the cloud, and the folder on this machine for the files that gcloud reads."""

    project: str
    zone: str
    root: str
    files: Path

    @classmethod
    def of(cls, launch: Launch, project: str, files: Path) -> Place:
        assert launch.zone is not None
        return cls(project, launch.zone, f"{launch.workdir.rstrip('/')}/launch", files)

    @property
    def flags(self) -> tuple[str, ...]:
        return f"--zone={self.zone}", f"--project={self.project}"

    def folder(self, name: str) -> str:
        return f"{self.root}/{name}"

    def attempt(self, name: str, attempt: int) -> str:
        return f"{self.folder(name)}/attempt-{attempt}"

    def state(self, name: str) -> str:
        return f"{self.folder(name)}/state.json"

    def bundle(self, digest: str) -> str:
        return f"{self.root}/bundles/{digest}.tar.gz"


def job(
    launch: Launch, slice_: Slice, place: Place, attempt: int, bundle: str, seconds: float | None
) -> dict[str, Any]:
    """What `worker.py` is told. A command after `seconds` is asked to save."""
    parent = f"projects/{place.project}/locations/{place.zone}"
    return {
        "records": place.attempt(slice_.name, attempt),
        "bundle": bundle,
        "install": install("tpu"),
        "command": list(slice_.command),
        "seconds": None if seconds is None else round(seconds),
        "delete": f"https://tpu.googleapis.com/v2/{parent}/queuedResources/{slice_.name}?force=true",
    }


def job_file(place: Place, name: str) -> Path:
    return place.files / f"{name}.job.json"


def create(launch: Launch, slice_: Slice, place: Place) -> list[str]:
    """Asks for a slice. The metadata come from files, so that no shell and no list of gcloud's splits them."""
    assert launch.type is not None
    runtime = launch.runtime_version or hardware.runtime_version(launch.type)
    return [
        *(*GCLOUD, "queued-resources", "create", slice_.name),
        *place.flags,
        f"--node-id={slice_.name}",
        f"--accelerator-type={launch.type}",
        f"--runtime-version={runtime}",
        *(["--spot"] if launch.spot else []),
        f"--metadata-from-file=startup-script={WORKER},{JOB}={job_file(place, slice_.name)}",
        f"--labels={LABEL}={launch.name}",
        f"--scopes={SCOPE}",
        "--async",
        "--quiet",
    ]


def describe(name: str, place: Place) -> list[str]:
    return [*GCLOUD, "queued-resources", "describe", name, *place.flags, "--format=json"]


def delete(name: str, place: Place) -> list[str]:
    return [*GCLOUD, "queued-resources", "delete", name, *place.flags, "--force", "--async", "--quiet"]


def list_all(zone: str, project: str) -> list[str]:
    return [*GCLOUD, "queued-resources", "list", f"--zone={zone}", f"--project={project}", "--format=json"]


def upload(source: str, target: str) -> list[str]:
    """Copies a file, or the standard input if `source` is "-"."""
    return ["gcloud", "storage", "cp", source, target]


def read(url: str, start: int = 0) -> list[str]:
    """Prints objects, from a byte on."""
    return ["gcloud", "storage", "cat", *([f"--range={start}-"] if start else []), url]


def records(name: str, place: Place, attempt: int) -> list[str]:
    return read(f"{place.attempt(name, attempt)}/worker-*.json")


def log(name: str, place: Place, attempt: int, worker: int) -> str:
    return f"{place.attempt(name, attempt)}/worker-{worker}.log"


def launcher(launch: Launch) -> str:
    """The name of the small machine that runs the launcher of a detached launch."""
    return f"{launch.name}-launcher"


def launcher_job(launch: Launch, place: Place, bundle: str, command: Sequence[str]) -> dict[str, Any]:
    """What `worker.py` is told on the launcher's machine."""
    parent = f"projects/{place.project}/zones/{place.zone}"
    return {
        "records": place.folder(launcher(launch)),
        "bundle": bundle,
        "install": install("gcs"),
        "command": list(command),
        "seconds": None,
        "delete": f"https://compute.googleapis.com/compute/v1/{parent}/instances/{launcher(launch)}",
    }


def create_launcher(launch: Launch, place: Place) -> list[str]:
    name = launcher(launch)
    return [
        *("gcloud", "compute", "instances", "create", name),
        *place.flags,
        "--machine-type=e2-small",
        "--image-family=debian-12",
        "--image-project=debian-cloud",
        "--boot-disk-size=20GB",
        f"--metadata-from-file=startup-script={WORKER},{JOB}={job_file(place, name)}",
        f"--labels={LABEL}={launch.name}",
        f"--scopes={SCOPE}",
        "--quiet",
    ]


def delete_launcher(name: str, place: Place) -> list[str]:
    return ["gcloud", "compute", "instances", "delete", f"{name}-launcher", *place.flags, "--quiet"]


def write_job(place: Place, name: str, values: dict[str, Any]) -> None:
    place.files.mkdir(parents=True, exist_ok=True)
    job_file(place, name).write_text(json.dumps(values, indent=2) + "\n")
