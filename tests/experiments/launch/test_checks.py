"""Mistakes and missing things: one sentence each, the exit code 2, and nothing rented."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import UsageError
from experiments.launch import checks
from experiments.launch.bundle import NOTE, make_bundle
from experiments.launch.command_line import split
from experiments.launch.gcloud import kind_of, sentence
from gpt_jax.config.errors import UserError
from tests.experiments.launch.conftest import COMMAND, RUNS, Cloud, described, ends

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(name="Run_1"), "--name=Run_1 must be at most 40 lower-case letters"),
        (dict(command=()), "there is no command: write it after --"),
        (dict(zone=None), "--zone is required for --target=tpu"),
        (dict(type=None), "--type is required for --target=tpu"),
        (dict(workdir="/disk"), "--workdir must be gs://BUCKET/DIR: the disks of a TPU slice are deleted"),
        (dict(type="v5e-16"), "v5e is called v5litepod here"),
        (dict(processes=2), "--processes is for the other targets"),
        (dict(max_cost=5.0), "--max_cost and --price go together"),
        (dict(price=1.0, max_cost=5.0, target="local"), "--max_cost is for --target=tpu"),
        (
            dict(price=1.0, max_cost=5.0, type="v9-8", runtime_version="x"),
            "--max_cost needs to know the number of chips",
        ),
        (dict(shards=2), "--shards divides a study"),
        (dict(target="local", shards=2), "on one machine, experiments.ablate has --jobs"),
        (dict(target="skypilot", type=None), "an accelerator, such as tpu-v6e-8"),
        (dict(target="skypilot", workdir="w"), "SkyPilot's machines share no disk"),
        (dict(command=(*COMMAND, "--workdir=other")), "give --workdir once, before --"),
    ],
)
def test_a_description_that_cannot_be(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as error:
        described(**changes)
    assert told in str(error.value)


def test_what_must_be_there_first(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a UsageError, which is the exit code 2; nothing is made."""
    cases = [
        ("auth list", "", "gcloud is not logged in: run gcloud auth login"),
        ("config get-value", "(unset)", "gcloud has no project: run gcloud config set project"),
        (
            "accelerator-types",
            "v5litepod-8\nv4-8",
            "does not offer v5litepod-16: choose another --zone or --type; did you",
        ),
        ("buckets", "EUROPE-WEST4", "the bucket gs://bucket is in EUROPE-WEST4 and the zone is us-west4-a"),
    ]
    program = cloud.folder.parent / "programs" / "gcloud"
    plain = program.read_text()
    for words, answer, told in cases:
        early = f"    if {words!r} in LINE:\n        print({answer!r})\n        return\n    script = load"
        program.write_text(plain.replace("    script = load", early, 1))
        with pytest.raises(UsageError) as error:
            cloud.start(described())
        assert told in str(error.value)
    program.write_text(plain)
    failing = [
        (
            "accelerator-types",
            "PERMISSION_DENIED: Permission denied on 'locations/us-east9-z'",
            "cannot be used: PERMISSION",
        ),
        ("buckets", "gs://bucket not found: 404", "gcloud storage buckets create gs://bucket --location=us-west4"),
        ("buckets", "HTTPError 403: no access", "the bucket gs://bucket cannot be used"),
    ]
    for pattern, stderr, told in failing:
        cloud.script["rules"] = []
        cloud.fail(pattern, stderr)
        with pytest.raises(UsageError) as error:
            cloud.start(described())
        assert told in str(error.value)
    assert cloud.running == [] and not cloud.objects
    monkeypatch.setenv("PATH", str(cloud.folder))
    with pytest.raises(UsageError, match="gcloud is missing: install"):
        cloud.start(described())


def test_a_bucket_elsewhere_is_used_if_that_is_meant(cloud: Cloud) -> None:
    (cloud.folder / "bucket.json").write_text('"EUROPE-WEST4"')
    cloud.live([RUNS, ends(0)])
    assert cloud.start(described(), any_region=True) == 0


@pytest.mark.parametrize(
    ("location", "zone", "near"),
    [
        ("US-WEST4", "us-west4-a", True),
        ("US-WEST1", "us-west4-a", False),
        ("US", "us-west4-a", True),
        ("EU", "us-west4-a", False),
        ("EU", "europe-west4-b", True),
        ("NAM4", "us-central1-a", True),
    ],
)
def test_regions(location: str, zone: str, near: bool) -> None:
    assert checks.is_near(location, zone) == near


def test_a_folder_of_one_machine_is_no_folder_of_several() -> None:
    shared = dict(target="slurm", zone=None, processes=2)
    with pytest.raises(UsageError, match="on each machine's own disk"):
        checks.check_shared(described(workdir="/tmp/run", **shared))
    checks.check_shared(described(workdir="/tmpfiles/run", **shared))
    checks.check_shared(described(workdir="/tmp/run", **shared | {"processes": 1}))


@pytest.mark.parametrize(
    ("stderr", "kind"),
    [
        ("ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource 'x' was not found", "missing"),
        ("ERROR: (gcloud.storage.cat) The following URLs matched no objects or files:\ngs://b/x", "missing"),
        ("ERROR: (gcloud…create) ALREADY_EXISTS: Resource 'x' already exists", "taken"),
        ('ERROR: {"code": 8, "message": "There is no more capacity in the zone \\"us-west4-a\\""}', "capacity"),
        ("ERROR: (x) RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptibleLitepod' has been exceeded", "quota"),
        ("ERROR: (x) PERMISSION_DENIED: Permission 'tpu.nodes.create' denied", "refused"),
        (
            "ERROR: (x) There was a problem refreshing your current auth tokens: gcloud auth login",
            "refused",
        ),
        ("ERROR: (x) unrecognized arguments: --spott", "refused"),
        ("ERROR: gcloud crashed (ConnectionError): Max retries exceeded", "unreachable"),
        ("ERROR: (x) HTTPError 503: Service Unavailable", "unreachable"),
        ("", "unreachable"),
    ],
)
def test_messages_of_gcloud(stderr: str, kind: str) -> None:
    assert kind_of(stderr) == kind
    assert "\n" not in sentence(stderr) and not sentence(stderr).startswith("ERROR")


def test_the_bundle_is_the_tracked_files_as_they_are(checkout: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(checkout), str(clone)], check=True)
    clean = make_bundle(clone)
    assert clean.changed == () and clean.untracked == () and clean.content == make_bundle(clone).content
    (clone / "code.py").write_text("print(2)\n")
    (clone / "ignored").write_text("a secret")
    (clone / "notes.txt").write_text("not added")
    (clone / "odd näme.py").write_text("1")
    (clone / "run.sh").write_text("1")
    (clone / "run.sh").chmod(0o700)
    subprocess.run(["git", "add", "odd näme.py", "run.sh"], cwd=clone, check=True)
    (clone / ".gitignore").unlink()
    bundle = make_bundle(clone)
    with tarfile.open(fileobj=io.BytesIO(bundle.content)) as archive:
        files = {info.name: info for info in archive.getmembers()}
        code, note = (archive.extractfile(name) for name in ("code.py", NOTE))
        assert code is not None and code.read() == b"print(2)\n"
        assert note is not None
        told = json.loads(note.read())
    assert set(files) == {"code.py", "odd näme.py", "run.sh", NOTE}
    assert files["run.sh"].mode == 0o755 and files["code.py"].mode == 0o644
    assert told["commit"] == clean.commit and told["diff"] and "code.py" in told["changed"]
    assert bundle.digest != clean.digest and "with changes in" in bundle.note and "without ignored" in bundle.note


def test_a_folder_without_git_is_answered(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run this in a git checkout"):
        make_bundle(tmp_path)


def test_words_before_and_after_the_two_hyphens() -> None:
    words = ["/x/experiments/launch/__main__.py", "--name=a", "--", "python", "--", "b"]
    assert split(words) == (["/x/experiments/launch", "--name=a"], ["python", "--", "b"])
    assert split([words[0], "logs", "a", "-f"])[0][1:] == ["--action=logs", "--name=a", "-f"]
    assert split([words[0], "list"])[0][1:] == ["--action=list"]


LINES: list[tuple[list[str], int, str]] = [
    (["--help"], 0, "--max_cost=D --price=P"),
    (["--name=a"], 2, "launch: --workdir is required"),
    (["status", "unheard-of"], 1, "launch: this machine has launched no unheard-of"),
    (["list"], 0, ""),
    (["--name=a", "--spott"], 2, 'launch: there is no flag "--spott": did you mean "--spot"?'),
    (["--name=a", "--target=slurm", "--workdir=w", "--detach", "--", "x"], 2, "--detach is not for --target=slurm"),
    (["--name=a", "--target=skypilot", "--workdir=w", "--retries=1", "--", "x"], 2, "--retries is not for"),
    (["--name=a", "--workdir=w", "--", "python", "--restart"], 2, "would start again after every interruption"),
    (["--name=a", "--target=local", "--workdir=w", "--dry_run", "--", "python", "x", "--y"], 0, "x --y"),
]
PAGE = (ROOT / "docs" / "tpu.md").read_text().replace("\\\n", " ")
ON_THE_PAGE = [shlex.split(line) for line in re.findall(r"^\s*python -m experiments\.launch (.*)$", PAGE, re.MULTILINE)]
# One process imports the packages once and answers every line in a fork of its own.
FORKS = """
import json, os, sys, warnings
warnings.filterwarnings("ignore", message="os.fork")
from pathlib import Path
from experiments.launch import __main__ as command
command.CHECKOUT = Path(sys.argv[3])
for i, words in enumerate(json.loads(sys.argv[1])):
    if os.fork() == 0:
        for stream, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(f"{sys.argv[2]}/{i}.{stream}", os.O_CREAT | os.O_WRONLY), number)
        sys.argv = ["/x/experiments/launch/__main__.py", *words]
        command.run()
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_the_command_line_and_every_line_of_the_page(checkout: Path, tmp_path: Path) -> None:
    launching = [line for line in ON_THE_PAGE if "--" in line]
    assert len(launching) == 5
    lines = [*LINES, *((["--dry_run", *line], 0, "experiments.") for line in launching)]
    lines += [([*line, "--bogus"], 2, 'no flag "--bogus"') for line in ON_THE_PAGE if "--" not in line]
    words = json.dumps([line for line, _, _ in lines])
    variables = os.environ | {"GPT_JAX_LAUNCHES": str(tmp_path / "launches")}
    answer = subprocess.run(
        [sys.executable, "-c", FORKS, words, str(tmp_path), str(checkout)],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert answer.returncode == 0
    for i, ((line, code, told), found) in enumerate(zip(lines, answer.stdout.split(), strict=True)):
        shown = (tmp_path / f"{i}.out").read_text() + (tmp_path / f"{i}.err").read_text()
        assert int(found) == code and told in shown and "Traceback" not in shown, (line, shown)
        assert line != ["--help"] or all(len(one) <= 120 for one in shown.splitlines())
