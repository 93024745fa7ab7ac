"""Starts a launch on its target, or prints what it would do."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from experiments.launch import batch, checks, local, store, tpu
from experiments.launch.bundle import Bundle, make_bundle
from experiments.launch.clock import Clock, SystemClock, Timing
from experiments.launch.description import Launch
from experiments.launch.gcloud import Gcloud
from experiments.launch.supervise import Supervisor
from experiments.launch.tpu_machines import TpuMachines

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Options:
    """How a launch is started; nothing here changes what it runs.

    Attributes:
      detach: do not wait for its end.
      adopt: go on with what a launcher that is gone left behind.
      bundle: the bundle, already in the bucket.
      words: the flags of this command, for the launcher of a detached launch.
    """

    detach: bool = False
    adopt: bool = False
    any_region: bool = False
    bundle: str | None = None
    words: tuple[str, ...] = ()


def start(launch: Launch, options: Options, clock: Clock | None = None, timing: Timing | None = None) -> int:
    """Runs a launch, or submits it; returns the exit code."""
    clock, timing = clock or SystemClock(), timing or Timing.of(launch.target)
    match launch.target:
        case "tpu":
            return _start_tpu(launch, options, Gcloud(clock, timing), clock, timing)
        case "local":
            return _start_local(launch, options, clock, timing)
    return _submit(launch)


def _start_tpu(launch: Launch, options: Options, gcloud: Gcloud, clock: Clock, timing: Timing) -> int:
    place = tpu.Place.of(launch, checks.project_of(launch, gcloud), store.folder(launch.name))
    checks.check_tpu(launch, place, gcloud, options.adopt, options.any_region)
    if (bundle := options.bundle) is None:
        made = make_bundle(CHECKOUT)
        show(made.note)
        bundle = place.bundle(made.digest)
        place.files.mkdir(parents=True, exist_ok=True)
        archive = place.files / "bundle.tar.gz"
        archive.write_bytes(made.content)
        gcloud.call(tpu.upload(str(archive), bundle))
    store.remember(launch, project=place.project, detached=options.detach)
    if options.detach:
        name = tpu.launcher(launch)
        tpu.write_job(place, name, tpu.launcher_job(launch, place, bundle, detached(launch, options, bundle)))
        gcloud.call(tpu.create_launcher(launch, place))
        show(f"{launch.name} goes on without this machine, launched from {name}")
        show(f"to follow it:\n  python -m experiments.launch logs {launch.name} -f")
        return 0
    machines = TpuMachines(launch, place, bundle, gcloud, clock, timing)
    return Supervisor(launch, machines, clock, timing, show, options.adopt).run()


def detached(launch: Launch, options: Options, bundle: str) -> list[str]:
    """The command of the launcher's machine: this one, with the bundle that is there already."""
    kept = [
        word for word in options.words if word.split("=")[0].lstrip("-") not in ("detach", "adopt", "bundle", "dry_run")
    ]
    return [*("python", "-m", "experiments.launch"), *kept, "--adopt", f"--bundle={bundle}", "--", *launch.command]


def _start_local(launch: Launch, options: Options, clock: Clock, timing: Timing) -> int:
    folder = store.folder(launch.name)
    if options.detach:
        with local.only_one(folder, launch.name):
            pass
        command = [word for word in options.words if word.split("=")[0].lstrip("-") != "detach"]
        with (folder / "launcher.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "experiments.launch", *command, "--", *launch.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        store.remember(launch, detached=True)
        show(f"{launch.name} goes on in the background, launched by the process {process.pid}")
        return 0
    with local.only_one(folder, launch.name):
        store.remember(launch, detached=False)
        machines = local.LocalMachines(launch, folder, clock)
        return Supervisor(launch, machines, clock, timing, show, options.adopt).run()


def _submit(launch: Launch) -> int:
    program, hint = {
        "slurm": ("sbatch", "run this on a machine of the cluster"),
        "skypilot": ("sky", "install SkyPilot (pip install 'skypilot[gcp]')"),
    }[launch.target]
    checks.check_installed(program, hint)
    checks.check_shared(launch)
    made = make_bundle(CHECKOUT)
    show(made.note)
    plan = batch_plan(launch, made.digest)
    _unpack(made, checkout_of(launch, made.digest))
    for path, content in plan.files.items():
        path.write_text(content)
    store.remember(launch, digest=made.digest)
    for command in plan.submit:
        if code := subprocess.run(command).returncode:
            return code
    show(f"submitted; to follow it:\n  python -m experiments.launch logs {launch.name} -f")
    return 0


def batch_plan(launch: Launch, digest: str) -> batch.Plan:
    """What submits and watches a launch on `slurm` or `skypilot`."""
    folder, checkout = batch_folder(launch), checkout_of(launch, digest)
    if launch.target == "slurm":
        return batch.slurm(launch, checkout, folder, sys.executable)
    return batch.skypilot(launch, checkout, folder)


def batch_folder(launch: Launch) -> Path:
    """Where scripts and logs are: in the work folder, or for one in a bucket in the user's state folder."""
    is_bucket = "://" in launch.workdir
    return store.folder(launch.name) if is_bucket else Path(launch.workdir).expanduser().absolute() / "launch"


def checkout_of(launch: Launch, digest: str) -> Path:
    return batch_folder(launch) / f"checkout-{digest}"


def _unpack(bundle: Bundle, folder: Path) -> None:
    if not folder.is_dir():
        with tarfile.open(fileobj=BytesIO(bundle.content)) as archive:
            archive.extractall(folder, filter="data")


def show(text: str) -> None:
    """Prints; bytes of a log that are no text become question marks."""
    print(text.encode(errors="replace").decode(), flush=True)
