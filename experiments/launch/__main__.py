"""Launches a command on machines: `python -m experiments.launch --help`."""

from __future__ import annotations

import sys

from experiments import cli
from experiments.launch import store
from experiments.launch.actions import Actions, list_launches
from experiments.launch.bundle import make_bundle
from experiments.launch.clock import SystemClock, Timing
from experiments.launch.command_line import FLAGS, launch_from_flags, options_from_flags, split
from experiments.launch.dry import dry_run
from experiments.launch.gcloud import Gcloud
from experiments.launch.start import CHECKOUT, show, start

PAGE = """
Launch a command on a TPU slice, a cluster or this machine, and keep it running to its end.

  python -m experiments.launch --name=NAME --zone=ZONE --type=v5litepod-16 [--spot] --workdir=gs://BUCKET/DIR \\
      -- python -m experiments.train --config=FILE.py
  python -m experiments.launch status|logs|stop NAME [-f]
  python -m experiments.launch list [--zone=ZONE]

  --name=NAME            What the launch is called (required). One name runs once at a time.
  --workdir=DIR          The folder of the run or the study (required), which is added to commands of experiments.
                         Machines of TPUs keep nothing, so theirs is in a bucket: gs://BUCKET/DIR.
  --target=TARGET        tpu       a slice of TPUs in Google Cloud, through gcloud (default)
                         skypilot  a managed job of SkyPilot
                         slurm     a job of SLURM; a site's options come from sbatch's SBATCH_… variables
                         local     processes on this machine
  --zone=ZONE --type=T   Where, and which slice (tpu): v5litepod-16, v4-32, v5p-8, v6e-8 …
  --project=PROJECT      The project, in place of gcloud's own.
  --runtime_version=V    The image of its machines, in place of the usual one for the type.
  --spot                 Cheaper machines, which may be taken away at any time.
  --processes=N          N processes (local) or nodes (slurm, skypilot).
  --shards=N             N independent slices of one study, NAME-1 to NAME-N; each runs a part of the seeds.
  --retries=N            Start a command that did not end by itself N times more (default 20).
  --max_hours=H          Hours that each slice may run, installation included: over all its tries (tpu, local), or in
                         each of them (slurm, skypilot).
  --max_cost=D --price=P Stop at D dollars in all, at P dollars per chip and hour.
  --detach               Return at once. On tpu, a small machine (e2-small) in the zone launches in place of this one
                         and deletes itself at the end.
  --adopt                Go on with a slice whose launcher is gone.
  --any_region           Accept a bucket that is not near the zone.
  --dry_run              Print every command and file, and run none.
  -f, --worker=I         For logs: go on until the end; the worker to read (default 0).
  --helpfull             All flags, those of the libraries too.

It checks gcloud, its login, the project, the zone, the bucket and its region first. It sends the tracked files of this
checkout as they are on the disk, with changes that are not committed, and no other file. Each machine installs them,
without Docker, and runs the command. A slice that is preempted, lost, or saved itself (exit code 75) is deleted and
made again after a wait; a command that fails by itself (exit codes 1 and 2) ends the launch, and the last lines of the
worker that failed first are shown. At the end, after Ctrl-C too, no machine is left; should this machine die, the
slice deletes itself when its command ends.

Exit codes: 0 finished, 1 failed, 2 wrong command line, configuration or a failed check, 75 stopped at a limit (run it
again to go on), 130 interrupted.
"""


def main(command: list[str]) -> int:
    clock = SystemClock()
    if FLAGS.action == "list":
        return list_launches(FLAGS.zone, FLAGS.project, Gcloud(clock, Timing()), show)
    if FLAGS.action is not None:
        name = cli.required("name", "the launch")
        is_described = FLAGS.workdir is not None
        launch, memory = (launch_from_flags(["unknown"]), {}) if is_described else store.recall(name)
        actions = Actions(launch, memory, clock, Timing.of(launch.target), show)
        match FLAGS.action:
            case "status":
                return actions.status()
            case "logs":
                return actions.logs(FLAGS.worker, FLAGS.follow)
        return actions.stop()
    launch, options = launch_from_flags(command), options_from_flags(sys.argv[1:])
    if FLAGS.dry_run:
        print("\n".join(dry_run(launch, options, make_bundle(CHECKOUT).digest)))
        return 0
    return start(launch, options)


def run() -> None:
    """Answers the command line of this process, and exits."""
    sys.argv, command = split(sys.argv)
    cli.run(lambda: main(command), PAGE)


if __name__ == "__main__":
    run()
