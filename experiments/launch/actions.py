"""The subcommands that look at launches and end them: status, logs, stop, list."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

from experiments.launch import checks, local, start, store, tpu
from experiments.launch.clock import Clock, Timing
from experiments.launch.description import BATCH, SAVED, Launch, Slice, slices
from experiments.launch.gcloud import CloudError, Gcloud
from experiments.launch.supervise import Machines, whole_lines
from experiments.launch.tpu_machines import TpuMachines
from gpt_jax.config.errors import UserError


class Actions:
    """What can be done with the launch of a name.

    Args:
      launch: as this machine remembers it, or as flags describe it.
      memory: all that is remembered of it.
    """

    def __init__(
        self, launch: Launch, memory: dict[str, Any], clock: Clock, timing: Timing, show: Callable[[str], None]
    ) -> None:
        self._launch, self._memory, self._clock, self._timing, self._show = launch, memory, clock, timing, show
        self._gcloud = Gcloud(clock, timing)

    def status(self) -> int:
        """Prints a line for each slice and each of its workers."""
        if self._is_batch:
            return self._run(start.batch_plan(self._launch, self._memory["digest"]).status)
        machines = self._machines()
        for one in slices(self._launch):
            state = machines.read_state(one)
            if state is None:
                self._show(f"{one.name}: not started")
                continue
            spent = f"attempt {state['attempt']}, {self._spent(state['used'])}"
            reason = f" ({state['reason']})" if state["reason"] else ""
            if state["code"] is None and self._launch.target == "local" and not local.is_running(self._folder):
                reason = " (its launcher is gone: start it again, or stop it)"
            self._show(f"{one.name}: {state['state']}{reason}, {spent}")
            if self._launch.target == "tpu":
                self._show_cloud(machines, one, state["attempt"])
        return 0

    def _show_cloud(self, machines: Machines, one: Slice, attempt: int) -> None:
        seen = machines.look(one, attempt)
        self._show(f"  in the cloud: {seen.reason or seen.machine}")
        for record in seen.records:
            how = "running" if record.code is None else f"ended with the exit code {record.code}"
            self._show(f"  worker {record.worker} of {record.hosts}: {how}")

    def logs(self, worker: int, follow: bool) -> int:
        """Prints what a worker of each slice has written, of its newest attempt; `follow` goes on until its end."""
        if self._is_batch:
            plan = start.batch_plan(self._launch, self._memory["digest"])
            return self._run(plan.follow if follow else plan.logs)
        machines, all_ = self._machines(), slices(self._launch)
        shown = {one.name: (0, 0) for one in all_}
        left = list(all_)
        while left:
            for one in list(left):
                state = machines.read_state(one)
                if state is None or not self._show_log(machines, one, state, worker, shown) or not follow:
                    left.remove(one)
            if left:
                self._clock.sleep(self._timing.poll)
        return 0

    def _show_log(
        self, machines: Machines, one: Slice, state: dict[str, Any], worker: int, shown: dict[str, tuple[int, int]]
    ) -> bool:
        """Prints what is new; whether more may come."""
        attempt, place = shown[one.name]
        place = place if attempt == state["attempt"] else 0
        text = whole_lines(machines.log(one, state["attempt"], worker, place))
        shown[one.name] = state["attempt"], place + len(text.encode(errors="surrogateescape"))
        for line in text.splitlines():
            self._show(line if self._launch.shards == 1 else f"[{one.name}] {line}")
        return state["code"] is None

    def stop(self) -> int:
        """Ends the launcher first, so that it starts nothing again, then its machines."""
        if self._is_batch:
            return self._run(start.batch_plan(self._launch, self._memory["digest"]).stop)
        machines = self._machines()
        if self._launch.target == "local":
            return self._stop_local(machines)
        place = self._place()
        try:
            self._gcloud.call(tpu.delete_launcher(self._launch.name, place))
        except CloudError as error:
            if error.kind != "missing":
                raise
        for one in slices(self._launch):
            machines.remove(one)
            state = machines.read_state(one)
            if state is not None and state["code"] is None:
                machines.write_state(one, state | {"state": "stopped", "reason": "by stop", "code": SAVED})
            self._show(f"{one.name}: stopped")
        return 0

    def _stop_local(self, machines: Machines) -> int:
        state = machines.read_state(slices(self._launch)[0])
        if state is None or not local.is_running(self._folder):
            self._show(f"{self._launch.name}: not running")
            return 0
        os.kill(state["launcher"], signal.SIGTERM)
        limit = self._clock.now() + 2 * local.SAVING
        while local.is_running(self._folder):
            if self._clock.now() > limit:
                raise UserError(f"{self._launch.name} does not end: its launcher is the process {state['launcher']}")
            self._clock.sleep(0.2)
        self._show(f"{self._launch.name}: stopped")
        return 0

    @property
    def _is_batch(self) -> bool:
        return self._launch.target in BATCH

    @property
    def _folder(self) -> Any:
        return store.folder(self._launch.name)

    def _place(self) -> tpu.Place:
        return tpu.Place.of(self._launch, checks.project_of(self._launch, self._gcloud), self._folder)

    def _machines(self) -> Machines:
        if self._launch.target == "local":
            return local.LocalMachines(self._launch, self._folder, self._clock)
        return TpuMachines(self._launch, self._place(), "", self._gcloud, self._clock, self._timing)

    def _spent(self, seconds: float) -> str:
        hours, hourly = seconds / 3600, self._launch.hourly
        return f"{hours:.2f} hours" + ("" if hourly is None else f", ${hours * hourly:,.2f}")

    def _run(self, commands: list[list[str]]) -> int:
        codes = [subprocess.run(command).returncode for command in commands]
        return next((code for code in codes if code), 0)


def list_launches(zone: str | None, project: str | None, gcloud: Gcloud, show: Callable[[str], None]) -> int:
    """Prints the launches that this machine remembers and, of a zone, every slice that a launch of gpt_jax made."""
    for name in store.names():
        launch, _ = store.recall(name)
        where = "" if launch.zone is None else f" {launch.type} in {launch.zone}"
        show(f"{name}: {launch.target}{where}, {launch.workdir}")
    if zone is None:
        return 0
    if project is None:
        project = gcloud.call(checks.PROJECT).strip()
    for found in gcloud.json(tpu.list_all(zone, project)):
        for spec in found["tpu"]["nodeSpec"]:
            labels = spec["node"]["labels"] if "labels" in spec["node"] else {}
            if tpu.LABEL in labels:
                name = found["name"].rpartition("/")[2]
                show(f"{zone}: {name} of {labels[tpu.LABEL]}, {found['state']['state']}")
    return 0
