"""A cloud that lies in a folder, a clock that does not wait, and a small checkout to bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.launch import start as starting
from experiments.launch.clock import Timing
from experiments.launch.description import Launch
from experiments.launch.start import Options, start

FAKE = Path(__file__).with_name("fake_gcloud.py")
# Real time passes only in calls of the fake gcloud that hang.
TIMING = Timing(poll=20, grace=60, silent=300, starting=600, first_wait=30, longest_wait=600, call=1.0, finish=1.0)
COMMAND = ("python", "-m", "experiments.train", "--config=configs/quickstart.py")

WAITS = {"state": "WAITING_FOR_RESOURCES"}
RUNS = {"state": "ACTIVE", "records": {"0": {}}}
PREEMPTED = {"state": "SUSPENDED"}
GONE = {"state": "GONE"}  # the slice has deleted itself


def ends(code: int, state: str = "ACTIVE", log: str = "the end\n") -> dict[str, Any]:
    return {"state": state, "records": {"0": {"code": code, "ended": 5.0}}, "log": {"0": log}}


class FakeClock:
    """Time passes by waiting only."""

    def __init__(self) -> None:
        self.time = 1_000_000.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds
        assert len(self.slept) < 400, "the launcher waits for ever"


class Cloud:
    """The fake gcloud's folder, and a launcher that uses it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock = folder, FakeClock()
        self.script: dict[str, Any] = {"rules": [], "lives": {}}

    def live(self, *attempts: list[dict[str, Any]], name: str = "run") -> None:
        """What the slice `name` goes through in each attempt."""
        self.script["lives"][name] = list(attempts)

    def rule(self, match: str, then: dict[str, Any], skip: int = 0, times: int = 10**9) -> None:
        self.script["rules"].append({"match": match, "then": then, "skip": skip, "times": times})

    def fail(self, match: str, stderr: str, skip: int = 0, times: int = 10**9) -> None:
        self.rule(match, {"code": 1, "stderr": stderr}, skip, times)

    def start(self, launch: Launch, timing: Timing = TIMING, **options: Any) -> int:
        (self.folder / "script.json").write_text(json.dumps(self.script))
        return start(launch, Options(**options), self.clock, timing)

    def load(self, name: str, default: Any) -> Any:
        path = self.folder / name
        return json.loads(path.read_text()) if path.exists() else default

    def calls(self, *words: str) -> list[list[str]]:
        """The calls whose words hold all of `words`."""
        lines = (self.folder / "calls").read_text().splitlines() if (self.folder / "calls").exists() else []
        return [call for call in map(json.loads, lines) if set(words) <= set(call)]

    @property
    def running(self) -> list[str]:
        """What would cost money now."""
        return [*self.load("resources.json", {}), *self.load("instances.json", [])]

    @property
    def objects(self) -> dict[str, str]:
        return self.load("objects.json", {})

    def state(self, name: str = "run") -> dict[str, Any]:
        return json.loads(self.objects[f"gs://bucket/dir/launch/{name}/state.json"])


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git checkout of one commit."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "code.py").write_text("print(1)\n")
    (folder / ".gitignore").write_text("ignored\n")
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return folder


@pytest.fixture
def launches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's state folder."""
    monkeypatch.setenv("GPT_JAX_LAUNCHES", str(tmp_path / "launches"))
    return tmp_path / "launches"


@pytest.fixture
def cloud(tmp_path: Path, launches: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    programs, folder = tmp_path / "programs", tmp_path / "cloud"
    programs.mkdir()
    folder.mkdir()
    (programs / "gcloud").write_text(f"#!{sys.executable} -IS\n{FAKE.read_text()}")
    (programs / "gcloud").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("FAKE_GCLOUD", str(folder))
    monkeypatch.setattr(starting, "CHECKOUT", checkout)
    return Cloud(folder)


def described(**changes: Any) -> Launch:
    """A launch on one slice."""
    values: dict[str, Any] = dict(
        name="run",
        target="tpu",
        command=COMMAND,
        workdir="gs://bucket/dir",
        zone="us-west4-a",
        type="v5litepod-16",
        runtime_version=None,
        project=None,
        spot=True,
        processes=1,
        retries=5,
        max_hours=None,
        price=None,
        max_cost=None,
        shards=1,
    )
    return Launch(**values | changes)
