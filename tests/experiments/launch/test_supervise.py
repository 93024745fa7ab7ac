"""A launch on TPUs from start to end, against a gcloud that fails, hangs, preempts and loses its zone."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace

import pytest

from experiments.cli import UsageError
from experiments.launch import store
from experiments.launch.actions import Actions, list_launches
from experiments.launch.gcloud import Gcloud
from experiments.launch.start import show
from experiments.launch.supervise import Supervisor
from gpt_jax.config.errors import UserError
from tests.experiments.launch.conftest import COMMAND, GONE, PREEMPTED, RUNS, TIMING, WAITS, Cloud, described, ends


def test_a_launch_waits_runs_shows_the_log_and_deletes(cloud: Cloud, capsys: pytest.CaptureFixture) -> None:
    first, both = "step 1\nstep", "step 1\nstep 2\n"
    cloud.live([WAITS, WAITS, RUNS | {"log": {"0": first}}, RUNS | {"log": {"0": both}}, ends(0, log=both + "done\n")])
    assert cloud.start(described()) == 0
    shown = capsys.readouterr().out
    log = [line for line in shown.splitlines() if not re.match("run: |bundle ", line)]
    assert log == ["step 1", "step 2", "done"], "every line once"
    assert "without" not in shown and "bundle" in shown
    assert cloud.running == [] and cloud.state()["state"] == "finished"
    assert cloud.state()["used"] == 40, "from the first look at which it ran; waiting for resources costs nothing"
    assert len(cloud.calls("create")) == 1


def test_a_slice_that_has_deleted_itself_has_finished_if_its_workers_say_so(cloud: Cloud) -> None:
    cloud.live([RUNS, ends(0, "GONE")])
    assert cloud.start(described()) == 0


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (PREEMPTED, "preempted"),
        ({"state": "SUSPENDING", "records": {"0": {"code": 1, "ended": 1.0}}}, "preempted"),
        (ends(75), "interrupted and saved"),
        (ends(139), "crashed with the exit code 139"),
        ({"state": "FAILED", "message": "There is no more capacity in the zone us-west4-a"}, "no more capacity"),
    ],
)
def test_what_a_new_machine_cures_starts_again(
    cloud: Cloud, end: dict, told: str, capsys: pytest.CaptureFixture
) -> None:
    cloud.live([RUNS, end], [ends(0)])
    assert cloud.start(described()) == 0
    assert told in capsys.readouterr().out
    assert len(cloud.calls("create")) == 2 and cloud.running == [] and cloud.state()["attempt"] == 2
    assert set(cloud.clock.slept) <= {20, 10}, "it waits by polling, so that other shards go on"


@pytest.mark.parametrize("code", [1, 2])
def test_a_users_error_stops_and_shows_the_worker_that_failed_first(
    cloud: Cloud, code: int, capsys: pytest.CaptureFixture
) -> None:
    records = {
        "0": {"hosts": 2, "code": 1, "ended": 9.0},
        "1": {"hosts": 2, "code": code, "ended": 8.0},
    }
    lines = "".join(f"line {i}\n" for i in range(60)) + "ConfigError: no such key\n"
    cloud.live([RUNS, {"state": "ACTIVE", "records": records, "log": {"0": "a host is missing\n", "1": lines}}])
    assert cloud.start(described()) == code
    shown = capsys.readouterr().out
    assert "worker 1 failed first" in shown and "  ConfigError: no such key" in shown and "line 10\n" not in shown
    assert cloud.running == [] and len(cloud.calls("create")) == 1
    assert cloud.state()["reason"].endswith(f"exit code {code}")


def test_a_host_that_is_lost_is_no_users_error(cloud: Cloud, capsys: pytest.CaptureFixture) -> None:
    """Worker 1 says nothing more, and the others fail because of it."""
    silent = {"hosts": 2, "beat": 7}
    cloud.live(
        [RUNS, *[{"state": "ACTIVE", "records": {"0": {"hosts": 2, "code": 1, "ended": 1.0}, "1": silent}}] * 9],
        [ends(0)],
    )
    assert cloud.start(described(), replace(TIMING, poll=60)) == 0
    assert "worker 1 is lost" in capsys.readouterr().out


def test_a_machine_without_a_sign_of_life_is_made_again(cloud: Cloud, capsys: pytest.CaptureFixture) -> None:
    cloud.live(
        [{"state": "ACTIVE"}], [{"state": "ACTIVE", "records": {"0": {"beat": 3}}}], [{"state": "ACTIVE"}, ends(0)]
    )
    assert cloud.start(described(), replace(TIMING, poll=300)) == 0
    shown = capsys.readouterr().out
    assert "no worker has started" in shown and "worker 0 gives no sign of life" in shown


def test_a_command_that_always_crashes_is_given_up(cloud: Cloud) -> None:
    cloud.live(*[[ends(134, log="Aborted\n")]] * 9)
    assert cloud.start(described(retries=8)) == 1
    assert len(cloud.calls("create")) == 3 and cloud.running == []


def test_retries_end_and_a_further_launch_goes_on(cloud: Cloud, capsys: pytest.CaptureFixture) -> None:
    cloud.live(*[[RUNS, PREEMPTED]] * 2, [ends(0)])
    assert cloud.start(described(retries=1)) == 75
    assert "1 retries are used up" in capsys.readouterr().out
    assert cloud.start(described(retries=1)) == 0
    jobs = [url for url in cloud.objects if url.endswith("worker-0.json")]
    assert len(jobs) == 3, "no attempt writes where an earlier one has"


def test_waits_grow_and_are_spread(cloud: Cloud) -> None:
    cloud.live(*[[PREEMPTED]] * 3, [ends(0)])
    assert cloud.start(described()) == 0
    assert cloud.clock.time - 1_000_000 > (30 + 60 + 120) / 2
    waits = [TIMING.wait(n, random.Random(n)) for n in range(1, 12)]
    assert all(30 * 2 ** (n - 1) / 2 <= wait for n, wait in enumerate(waits[:4], 1)) and max(waits) <= 600


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("Quota limit 'TPUV5sPreemptible' has been exceeded. Limit: 0", "Quota limit"),
        ("PERMISSION_DENIED: Permission denied on 'locations/us-west4-a' (or it may not exist)", "may not exist"),
    ],
)
def test_a_request_that_can_never_be_met_stops(
    cloud: Cloud, message: str, told: str, capsys: pytest.CaptureFixture
) -> None:
    cloud.live([{"state": "FAILED", "message": message}])
    assert cloud.start(described()) == 1
    assert told in capsys.readouterr().out and cloud.running == [] and len(cloud.calls("create")) == 1


def test_a_zone_that_is_lost_at_creation_stops(cloud: Cloud, capsys: pytest.CaptureFixture) -> None:
    cloud.live([PREEMPTED], [])
    cloud.fail("queued-resources create", "INVALID_ARGUMENT: us-west4-a is not a zone of this service", skip=1)
    assert cloud.start(described()) == 1
    assert "not a zone" in capsys.readouterr().out and cloud.running == []


def test_gcloud_that_fails_and_hangs_is_asked_again(cloud: Cloud) -> None:
    cloud.live([WAITS, RUNS, ends(0)])
    cloud.rule("describe", {"hang": 30}, skip=2, times=1)
    cloud.fail("storage cat.*json", "HTTPError 503: backend error", times=2)
    cloud.fail("resources delete", "UNAVAILABLE: connection reset", times=1)
    assert cloud.start(described()) == 0
    assert cloud.running == []


def test_a_network_that_is_away_for_hours_costs_no_try(cloud: Cloud, capsys: pytest.CaptureFixture) -> None:
    cloud.live([RUNS, ends(0)])
    cloud.fail("describe", "Failed to resolve 'tpu.googleapis.com'", skip=2, times=12)
    assert cloud.start(described()) == 0
    assert "cannot be seen" in capsys.readouterr().out and len(cloud.calls("create")) == 1


def test_a_creation_without_an_answer_is_recognised_as_our_own(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request arrives, its answer does not, and the next request finds the name taken."""
    cloud.live([RUNS, ends(0)])
    program = cloud.folder.parent / "programs" / "gcloud"
    late = "    save('resources.json', resources)\n    if WORDS[3] == 'create' and not (HOME / 'late').exists():\n"
    late += "        (HOME / 'late').touch(); fail('DEADLINE_EXCEEDED')\n\n\ndef main"
    program.write_text(program.read_text().replace('    save("resources.json", resources)\n\n\ndef main', late))
    assert cloud.start(described()) == 0
    assert len(cloud.calls("create")) == 2


def test_two_launches_of_one_name(cloud: Cloud) -> None:
    cloud.live([RUNS, ends(0)])
    cloud.folder.joinpath("resources.json").write_text(
        json.dumps({"run": {"name": "run", "attempt": 0, "looks": 0, "records": "r", "labels": {}, "metadata": {}}})
    )
    with pytest.raises(UsageError, match="run is already launched in us-west4-a: watch it"):
        cloud.start(described())
    assert cloud.running == ["run"], "the other one goes on"


def test_a_name_taken_between_the_check_and_the_start(cloud: Cloud) -> None:
    cloud.live([RUNS])
    cloud.fail("create", "ALREADY_EXISTS: Resource already exists")
    with pytest.raises(UserError, match="already launched"):
        cloud.start(described())
    assert not cloud.calls("delete") and "gs://bucket/dir/launch/run/state.json" not in cloud.objects


# A pattern of the call in which the signal comes, and how many such calls pass before.
STAGES = {
    "the login": ("auth list", 0),
    "the zone": ("accelerator-types", 0),
    "the bundle": ("storage cp /", 0),
    "the request": ("resources create", 0),
    "the state": ("storage cp -", 0),
    "a look": ("resources describe", 1),
    "the records": ("storage cat.*json", 1),
    "the log": ("storage cat.*log", 0),
    "the deletion": ("resources delete", 0),
}


BEFORE = ("the login", "the zone", "the bundle")  # nothing is rented yet: only Ctrl-C is more than the system's default
INTERRUPTS = [(stage, "SIGINT") for stage in STAGES]
INTERRUPTS += [(stage, name) for stage in ("the request", "a look", "the deletion") for name in ("SIGTERM", "SIGHUP")]


@pytest.mark.parametrize(("stage", "name"), INTERRUPTS)
def test_an_interrupt_at_any_stage_leaves_nothing_running(cloud: Cloud, stage: str, name: str) -> None:
    cloud.live([WAITS, RUNS, RUNS | {"log": {"0": "x\n"}}, ends(0), ends(0)])
    pattern, skip = STAGES[stage]
    cloud.rule(pattern, {"signal": name}, skip=skip, times=1)
    with pytest.raises(KeyboardInterrupt):
        cloud.start(described())
    assert cloud.running == []
    if stage not in BEFORE:
        assert cloud.state()["state"] == "stopped"
        assert cloud.load("attempts.json", {}) == {"run": 0}, "a request on its way arrives before it is undone"


def test_a_second_interrupt_does_not_stop_the_cleaning(cloud: Cloud, capsys: pytest.CaptureFixture) -> None:
    cloud.live([RUNS] * 9)
    cloud.rule("storage cat.*json", {"signal": "SIGINT"}, skip=1, times=1)
    cloud.rule("resources delete", {"signal": "SIGINT"}, times=1)
    with pytest.raises(KeyboardInterrupt):
        cloud.start(described())
    assert "still ending run: without it" in capsys.readouterr().out and cloud.running == []


def test_what_cannot_be_deleted_is_said_loudly(cloud: Cloud) -> None:
    cloud.live([RUNS, ends(0)])
    cloud.fail("resources delete", "PERMISSION_DENIED: tpu.nodes.delete")
    with pytest.raises(
        UserError, match=r"may still run and cost money.*gcloud compute tpus queued-resources delete run"
    ):
        cloud.start(described())


def test_hours_and_cost_end_a_launch(cloud: Cloud, capsys: pytest.CaptureFixture) -> None:
    """16 chips at 1 dollar: 32 dollars are 2 hours, over all attempts; 10 minutes are kept for saving."""
    launch = described(price=1.0, max_cost=32.0, max_hours=5.0)
    assert launch.hours == 2.0
    cloud.live([*[RUNS] * 7, PREEMPTED], [RUNS])
    assert cloud.start(launch, replace(TIMING, poll=600)) == 75
    assert "limit of hours or cost" in capsys.readouterr().out and cloud.running == []
    assert cloud.state()["used"] == 7200
    job = json.loads((cloud.folder.parent / "launches" / "run" / "run.job.json").read_text())
    assert job["seconds"] == 7200 - 7 * 600 - 600, "the command itself is asked to save ten minutes before"


def test_shards_are_slices_of_their_own(cloud: Cloud, capsys: pytest.CaptureFixture) -> None:
    """One is preempted and starts again, while the others finish; none has another's folder."""
    command = ("python", "-m", "experiments.ablate", "--config=configs/ablations/kv_heads.py")
    cloud.live([RUNS, ends(0)], name="run-1")
    cloud.live([RUNS, PREEMPTED], [RUNS, ends(0, log="second\n")], name="run-2")
    cloud.live([RUNS, ends(0)], name="run-3")
    assert cloud.start(described(command=command, shards=3)) == 0
    assert sorted(call[4] for call in cloud.calls("create")) == ["run-1", "run-2", "run-2", "run-3"]
    assert "[run-2] second" in capsys.readouterr().out and cloud.running == []
    jobs = {path.name: json.loads(path.read_text())["command"] for path in cloud.folder.parent.rglob("*.job.json")}
    assert jobs["run-2.job.json"] == [*command, "--workdir=gs://bucket/dir", "--shard=2/3"]


def test_one_shards_error_ends_with_its_code_and_lets_the_others_finish(cloud: Cloud) -> None:
    command = ("python", "-m", "experiments.ablate")
    cloud.live([ends(2)], name="run-1")
    cloud.live([RUNS, RUNS, RUNS, ends(0)], name="run-2")
    assert cloud.start(described(command=command, shards=2)) == 2
    assert cloud.state("run-2")["state"] == "finished" and cloud.running == []


def test_a_detached_launch_goes_on_from_a_small_machine(cloud: Cloud) -> None:
    words = ("--name=run", "--spot", "--detach", "--zone=us-west4-a")
    assert cloud.start(described(command=(*COMMAND, "--config.prompt=a 'b' $c")), detach=True, words=words) == 0
    assert cloud.running == ["run-launcher"] and not cloud.calls("queued-resources", "create")
    job = json.loads((cloud.folder.parent / "launches" / "run" / "run-launcher.job.json").read_text())
    assert job["command"][:3] == ["python", "-m", "experiments.launch"] and "--detach" not in job["command"]
    assert job["command"][-8:-5] == ["--adopt", f"--bundle={job['bundle']}", "--"]
    assert job["command"][-5:] == [*COMMAND, "--config.prompt=a 'b' $c"]
    assert job["delete"].endswith("/instances/run-launcher")


def test_a_launcher_that_starts_again_goes_on_with_its_slice(
    cloud: Cloud, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The small machine restarts, or the laptop's battery was empty: the slice is not made twice."""
    cloud.live([RUNS, RUNS, RUNS, RUNS, RUNS, RUNS, ends(0)])
    die_without_cleaning(cloud, monkeypatch)
    assert cloud.running == ["run"] and cloud.state()["code"] is None
    with pytest.raises(UsageError, match="--adopt"):
        cloud.start(described())
    with pytest.raises(UserError, match="runs another command"):
        cloud.start(described(command=("python", "other.py")), adopt=True)
    assert cloud.running == ["run"]
    assert cloud.start(described(), adopt=True) == 0
    assert len(cloud.calls("queued-resources", "create")) == 1 and cloud.running == []
    assert "goes on with attempt 1" in capsys.readouterr().out


def test_a_slice_that_finished_while_no_launcher_watched_is_not_made_again(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.live([RUNS, RUNS, RUNS, ends(0, "GONE")])
    die_without_cleaning(cloud, monkeypatch)
    for _ in range(3):
        assert actions(cloud).status() == 0
    assert cloud.running == []
    assert cloud.start(described(), adopt=True) == 0
    assert len(cloud.calls("queued-resources", "create")) == 1


def test_what_costs_while_it_cannot_be_seen_is_counted(cloud: Cloud, capsys: pytest.CaptureFixture) -> None:
    """A message of gcloud's that nobody knows must not let a slice run for ever."""
    cloud.live([RUNS] * 3)
    cloud.fail("resources describe", "a message that nobody knows", skip=3, times=20)
    assert cloud.start(described(max_hours=1.0), replace(TIMING, poll=600)) == 75
    assert "cannot be seen" in capsys.readouterr().out and cloud.running == []
    assert 3600 <= cloud.state()["used"] < 3600 + 3000


def test_a_state_that_cannot_be_written_does_not_end_the_launch(cloud: Cloud, capsys: pytest.CaptureFixture) -> None:
    cloud.live([RUNS, ends(0)])
    cloud.fail("storage cp -", "HTTPError 403: no access", times=1)
    assert cloud.start(described()) == 0
    assert "its state cannot be written" in capsys.readouterr().out


def test_a_new_launch_of_an_ended_name_counts_anew(cloud: Cloud) -> None:
    cloud.live([RUNS, PREEMPTED], [PREEMPTED], [RUNS, PREEMPTED], [ends(0)])
    assert cloud.start(described(retries=1)) == 75
    assert cloud.start(described(retries=1), adopt=True) == 0
    assert cloud.state()["tries"] == 1


def die_without_cleaning(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts a launch whose launcher dies once the slice runs, as by kill -9."""

    def die(seconds: float) -> None:
        if cloud.objects.get("gs://bucket/dir/launch/run/attempt-1/worker-0.json"):
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Supervisor, "_clean", lambda self: None)
        patch.setattr(cloud.clock, "sleep", die)
        with pytest.raises(RuntimeError, match="killed"):
            cloud.start(described())


def actions(cloud: Cloud) -> Actions:
    launch, memory = store.recall("run")
    return Actions(launch, memory, cloud.clock, TIMING, show)


def test_status_logs_and_list_from_another_process(
    cloud: Cloud, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.live([RUNS | {"log": {"0": "step 1\n"}}] * 9)
    die_without_cleaning(cloud, monkeypatch)
    capsys.readouterr()
    assert actions(cloud).status() == 0
    shown = capsys.readouterr().out
    assert "run: running, attempt 1" in shown and "in the cloud: ACTIVE" in shown and "worker 0 of 1: running" in shown
    assert actions(cloud).logs(worker=0, follow=False) == 0
    assert capsys.readouterr().out == "step 1\n"
    assert list_launches("us-west4-a", None, Gcloud(cloud.clock, TIMING), show) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["run: tpu v5litepod-16 in us-west4-a, gs://bucket/dir", "us-west4-a: run of run, ACTIVE"]


def test_logs_follow_to_the_end(cloud: Cloud, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.live([RUNS | {"log": {"0": "step 1\n"}}] * 9)
    die_without_cleaning(cloud, monkeypatch)
    capsys.readouterr()
    url = "gs://bucket/dir/launch/run"
    steps = [
        (f"{url}/attempt-1/worker-0.log", "step 1\nstep 2\n"),
        (f"{url}/attempt-1/worker-0.log", "step 1\nstep 2\n3\n"),
    ]

    def sleep(seconds: float) -> None:
        changed = cloud.objects
        if steps:
            changed |= [steps.pop(0)]
        else:
            changed[f"{url}/state.json"] = json.dumps(cloud.state() | {"code": 0})
        (cloud.folder / "objects.json").write_text(json.dumps(changed))

    monkeypatch.setattr(cloud.clock, "sleep", sleep)
    assert actions(cloud).logs(worker=0, follow=True) == 0
    assert capsys.readouterr().out == "step 1\nstep 2\n3\n"


def test_stop_ends_the_launcher_first_then_its_slices(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.live([RUNS] * 9)
    die_without_cleaning(cloud, monkeypatch)
    (cloud.folder / "instances.json").write_text('["run-launcher"]')
    assert actions(cloud).stop() == 0
    assert cloud.running == [] and cloud.state()["code"] == 75
    deleted = [call[1] for call in cloud.calls("delete")]
    assert deleted[:2] == ["instances", "tpus"] and set(deleted[2:]) <= {"tpus"}


def test_a_launcher_learns_that_its_slice_was_stopped(cloud: Cloud, capsys: pytest.CaptureFixture) -> None:
    cloud.live([RUNS, RUNS | GONE])
    assert cloud.start(described()) == 75
    assert "it was deleted" in capsys.readouterr().out


def test_an_unknown_name_is_answered(cloud: Cloud) -> None:
    with pytest.raises(UserError, match="this machine has launched no run, it knows: none"):
        store.recall("run")
