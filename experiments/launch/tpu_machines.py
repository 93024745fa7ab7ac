"""Slices of TPUs as the supervisor sees them."""

from __future__ import annotations

import json
import uuid
from typing import Any

from experiments.launch import tpu
from experiments.launch.clock import Clock, Timing
from experiments.launch.description import Launch, Slice
from experiments.launch.gcloud import CloudError, Gcloud, kind_of
from experiments.launch.outcome import Observation, Record
from experiments.launch.store import checked_state
from gpt_jax.config.errors import UserError
from gpt_jax.config.foreign import parse_json, well_formed

# State of a queued resource → what it means to us. Those that are not named wait for resources.
STATES = {"ACTIVE": "running", "SUSPENDING": "lost", "SUSPENDED": "lost", "DELETING": "absent"}
REMOVAL = 1800.0  # seconds for which the launcher tries to delete a slice


class TpuMachines:
    """Makes, watches and deletes slices; see `supervise.Machines`."""

    margin = 600.0  # covers what a worker takes to save, and to tell

    def __init__(
        self, launch: Launch, place: tpu.Place, bundle: str, gcloud: Gcloud, clock: Clock, timing: Timing
    ) -> None:
        self._launch, self._place, self._bundle = launch, place, bundle
        self._gcloud, self._clock, self._timing = gcloud, clock, timing
        self._id = uuid.uuid4().hex

    def start(self, slice_: Slice, attempt: int, seconds: float | None) -> None:
        job = tpu.job(self._launch, slice_, self._place, attempt, self._bundle, seconds) | {"launcher": self._id}
        tpu.write_job(self._place, slice_.name, job)
        try:
            self._gcloud.call(tpu.create(self._launch, slice_, self._place))
        except CloudError as error:
            if error.kind != "taken" or not self._is_ours(slice_, job["records"]):
                raise

    def _is_ours(self, slice_: Slice, records: str) -> bool:
        """Whether a slice of this name is the one that this launcher asked for, in a call that got no answer."""
        try:
            found = self._gcloud.json(tpu.describe(slice_.name, self._place))
            job = json.loads(found["tpu"]["nodeSpec"][0]["node"]["metadata"][tpu.JOB])
        except (CloudError, LookupError, ValueError):
            return False
        return (job["launcher"], job["records"]) == (self._id, records)

    def look(self, slice_: Slice, attempt: int) -> Observation:
        machine, reason = self._state(slice_.name)
        return Observation(machine, reason, self._records(slice_.name, attempt))  # type: ignore[arg-type]

    def _state(self, name: str) -> tuple[str, str]:
        try:
            state = self._gcloud.json(tpu.describe(name, self._place))["state"]
        except CloudError as error:
            if error.kind == "missing":
                return "absent", ""
            raise
        if state["state"] != "FAILED":
            return (STATES[state["state"]] if state["state"] in STATES else "waiting"), state["state"]
        reason = _failure(state)
        return ("refused" if _is_final(reason) else "failed"), reason

    def _records(self, name: str, attempt: int) -> tuple[Record, ...]:
        try:
            text = self._gcloud.call(tpu.records(name, self._place, attempt))
        except CloudError as error:
            if error.kind == "missing":
                return ()
            raise
        source = tpu.records(name, self._place, attempt)[-1]
        with well_formed(source):
            return tuple(Record.from_json(parse_json(line, source)) for line in text.splitlines() if line.strip())

    def remove(self, slice_: Slice) -> None:
        limit = self._clock.now() + REMOVAL
        while True:
            try:
                self._gcloud.call(tpu.delete(slice_.name, self._place))
            except CloudError as error:
                if error.kind == "missing":
                    return
                reason, is_hopeless = str(error), error.kind == "refused"
            else:
                reason, is_hopeless = "it is still being deleted", False
            self._clock.sleep(self._timing.poll / 2)
            try:
                self._gcloud.call(tpu.describe(slice_.name, self._place))
            except CloudError as error:
                if error.kind == "missing":
                    return
            if is_hopeless or self._clock.now() > limit:
                command = " ".join(tpu.delete(slice_.name, self._place))
                raise UserError(f"{slice_.name} may still run and cost money ({reason}): delete it by {command}")

    def log(self, slice_: Slice, attempt: int, worker: int, start: int) -> str:
        return read_log(self._gcloud, tpu.log(slice_.name, self._place, attempt, worker), start)

    def read_state(self, slice_: Slice) -> dict[str, Any] | None:
        return read_state(self._gcloud, self._place, slice_.name)

    def write_state(self, slice_: Slice, state: dict[str, Any]) -> None:
        self._gcloud.call(tpu.upload("-", self._place.state(slice_.name)), json.dumps(state))


def read_log(gcloud: Gcloud, url: str, start: int) -> str:
    """A log from byte `start` on; "" if there is none. It asks for the byte before too: none at all is an error."""
    try:
        text = gcloud.call(tpu.read(url, max(0, start - 1)))
    except CloudError as error:
        if error.kind == "missing":
            return ""
        raise
    return text[1:] if start > 0 else text


def read_state(gcloud: Gcloud, place: tpu.Place, name: str) -> dict[str, Any] | None:
    """What the launcher of a slice last wrote; None if there is no such launch in the work folder."""
    try:
        return checked_state(parse_json(gcloud.call(tpu.read(place.state(name))), place.state(name)), place.state(name))
    except CloudError as error:
        if error.kind == "missing":
            return None
        raise


def _failure(state: dict[str, Any]) -> str:
    try:
        return " ".join(str(state["failedData"]["error"]["message"]).split())
    except LookupError:
        return "the cloud gives no reason"


def _is_final(reason: str) -> bool:
    """Whether a request that failed for this reason would fail again."""
    return kind_of(reason) in ("quota", "refused", "missing")
