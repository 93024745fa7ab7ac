"""What a launch would run, for --dry_run: nothing here runs or writes anything."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence

from experiments.launch import checks, local, start, store, tpu
from experiments.launch.description import Launch, slices
from experiments.launch.tpu_machines import TpuMachines


def dry_run(launch: Launch, options: start.Options, digest: str) -> Iterator[str]:
    """The lines of all commands in the order of a launch that finishes, and the files that they read."""
    if launch.target == "tpu":
        yield from _tpu(launch, options, digest)
    elif launch.target == "local":
        for one in slices(launch):
            yield "# processes"
            yield from map(shlex.join, local.commands(one, launch.processes, "PORT"))
    else:
        plan = start.batch_plan(launch, digest)
        for path, content in plan.files.items():
            yield from (f"# {path}", *content.splitlines(), "")
        for title in ("submit", "status", "logs", "follow", "stop"):
            yield from (f"# {title}", *map(shlex.join, getattr(plan, title)))


def _tpu(launch: Launch, options: start.Options, digest: str) -> Iterator[str]:
    place = tpu.Place.of(launch, launch.project or "PROJECT", store.folder(launch.name))
    bundle = options.bundle or place.bundle(digest)
    first = [checks.AUTH, checks.PROJECT, checks.types_in(place.zone, place.project), checks.bucket(launch.workdir)]
    free = [] if options.adopt else [tpu.describe(one.name, place) for one in slices(launch)]
    yield from _titled("checks", first + free)
    yield from _titled("the bundle", [tpu.upload(str(place.files / "bundle.tar.gz"), bundle)])
    if options.detach:
        yield f"# {tpu.job_file(place, tpu.launcher(launch))}"
        yield json.dumps(tpu.launcher_job(launch, place, bundle, start.detached(launch, options, bundle)), indent=2)
        title = "the launcher's machine, which goes on with all that follows"
        yield from _titled(title, [tpu.create_launcher(launch, place)])
    hours = launch.hours
    seconds = None if hours is None else hours * 3600 - TpuMachines.margin
    for one in slices(launch):
        yield f"# {tpu.job_file(place, one.name)}"
        yield json.dumps(tpu.job(launch, one, place, 1, bundle, seconds), indent=2)
        yield from _titled(f"{one.name}: start", [tpu.create(launch, one, place)])
        state = tpu.upload("-", place.state(one.name))
        log = tpu.read(tpu.log(one.name, place, 1, 0))
        yield from _titled(
            f"{one.name}: watch", [tpu.describe(one.name, place), tpu.records(one.name, place, 1), log, state]
        )
        yield from _titled(f"{one.name}: end", [tpu.delete(one.name, place), tpu.describe(one.name, place)])


def _titled(title: str, commands: Sequence[Sequence[str]]) -> list[str]:
    return [f"# {title}", *map(shlex.join, commands)]
