"""What is checked before anything is rented. Each check that fails is one sentence, and the exit code is 2."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TypeVar

from experiments.cli import UsageError
from experiments.launch import tpu
from experiments.launch.description import Launch, slices
from experiments.launch.gcloud import CloudError, Gcloud
from gpt_jax.config.errors import nearest

Answer = TypeVar("Answer")
CONTINENTS = {"US": "us-", "EU": "europe-", "ASIA": "asia-"}  # multi-regions of buckets
UNSHARED = ("/tmp", "/var/tmp", "/dev/shm", "/run")  # folders that each machine has for itself

AUTH = ["gcloud", "auth", "list", "--filter=status:ACTIVE", "--format=value(account)"]
PROJECT = ["gcloud", "config", "get-value", "project"]


def types_in(zone: str, project: str) -> list[str]:
    return [*tpu.GCLOUD, "accelerator-types", "list", f"--zone={zone}", f"--project={project}", "--format=value(type)"]


def bucket(workdir: str) -> list[str]:
    root = "/".join(workdir.split("/")[:3])
    return ["gcloud", "storage", "buckets", "describe", root, "--format=value(location)"]


def project_of(launch: Launch, gcloud: Gcloud) -> str:
    """The project, after a check that gcloud is there and logged in.

    Raises:
      UsageError: it is not, or no project is set.
    """
    if not gcloud.is_installed():
        raise UsageError("gcloud is missing: install the Google Cloud CLI (cloud.google.com/sdk/docs/install)")
    if not _asked("the login cannot be read", lambda: gcloud.call(AUTH)).strip():
        raise UsageError("gcloud is not logged in: run gcloud auth login")
    project = launch.project or _asked("the project cannot be read", lambda: gcloud.call(PROJECT)).strip()
    if project in ("", "(unset)"):
        raise UsageError("gcloud has no project: run gcloud config set project PROJECT, or give --project")
    return project


def check_tpu(launch: Launch, place: tpu.Place, gcloud: Gcloud, adopt: bool, any_region: bool) -> None:
    """Checks that the zone has the type, that the bucket is there and near, and that the name is free.

    Raises:
      UsageError: one of them is not so.
    """
    assert launch.type is not None
    offered = _asked(
        f"the zone {place.zone} cannot be used", lambda: gcloud.call(types_in(place.zone, place.project))
    ).split()
    if launch.type not in offered:
        hint = nearest(launch.type, offered) if offered else ""
        raise UsageError(f"{place.zone} does not offer {launch.type}: choose another --zone or --type{hint}")
    root, region = "/".join(launch.workdir.split("/")[:3]), place.zone.rpartition("-")[0]
    try:
        location = gcloud.call(bucket(launch.workdir)).strip().upper()
    except CloudError as error:
        if error.kind != "missing":
            raise UsageError(f"the bucket {root} cannot be used: {error}") from None
        raise UsageError(
            f"there is no bucket {root}: make it by gcloud storage buckets create {root} --location={region} "
            f"--project={place.project}"
        ) from None
    if not any_region and not is_near(location, place.zone):
        raise UsageError(
            f"the bucket {root} is in {location} and the zone is {place.zone}, so that every checkpoint would cross "
            "regions, which is slow and costs: use a bucket near the zone, or give --any_region"
        )
    if not adopt:
        for one in slices(launch):
            _check_free(one.name, place, gcloud)


def is_near(location: str, zone: str) -> bool:
    """Whether a bucket's location holds a zone. Pairs of regions, such as NAM4, count as near."""
    if location in CONTINENTS:
        return zone.startswith(CONTINENTS[location])
    return "-" not in location or location == zone.rpartition("-")[0].upper()


def check_shared(launch: Launch) -> None:
    """Checks that several machines can see the work folder.

    Raises:
      UsageError: they cannot.
    """
    several = launch.processes > 1 or launch.shards > 1
    if launch.target == "slurm" and several and "://" not in launch.workdir:
        if any(launch.workdir == place or launch.workdir.startswith(f"{place}/") for place in UNSHARED):
            raise UsageError(
                f"--workdir={launch.workdir} is on each machine's own disk: choose a folder that they share"
            )


def check_installed(program: str, hint: str) -> None:
    """Checks that a program is on PATH.

    Raises:
      UsageError: it is not.
    """
    if shutil.which(program) is None:
        raise UsageError(f"{program} is missing: {hint}")


def _check_free(name: str, place: tpu.Place, gcloud: Gcloud) -> None:
    try:
        gcloud.call(tpu.describe(name, place))
    except CloudError as error:
        if error.kind == "missing":
            return
        raise UsageError(f"{name} cannot be looked up: {error}") from None
    raise UsageError(
        f"{name} is already launched in {place.zone}: watch it with logs -f, end it with stop, go on with it by "
        "--adopt, or choose another --name"
    )


def _asked(what: str, ask: Callable[[], Answer]) -> Answer:
    try:
        return ask()
    except CloudError as error:
        raise UsageError(f"{what}: {error}") from None
