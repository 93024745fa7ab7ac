"""Work folders in a bucket, the whole way: the commands, the real clients, and a server that stands in for the bucket.

etils and gcsfs write records, tensorstore writes arrays; both speak Google's protocol to fake-gcs-server here. What
only a real bucket has, such as permissions, latency and limits of requests, is not in it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bucket import serve_bucket
from tests.experiments.test_train_cli import CONFIG

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
STEPS = ["--config.train.steps=1500", "--config.evaluation.every=1500", "--config.checkpoint.every=500"]
STUDY = """
from gpt_jax.ablation.combine import vary
from gpt_jax.ablation.study import Study
from gpt_jax.config import Checkpoint, Evaluation
from gpt_jax.config.conversion import to_config_dict
from tests.tiny import tiny_config

def get_config():
    return to_config_dict(tiny_config(12, evaluation=Evaluation(6, 8), checkpoint=Checkpoint(6)))

def get_study(base):
    knob = "model.attention.kv_heads"
    return Study("Fewer?", base, vary(knob, mha=2, mqa=1), "mha", (knob,), 0.01, seeds=(0, 1), fresh_seeds=1)
"""


class Bucket:
    """gs://bucket on a server of this machine."""

    def __init__(self, url: str, place: Path) -> None:
        self.url, self.place = url, place

    def names(self, prefix: str) -> list[str]:
        with urllib.request.urlopen(f"{self.url}/storage/v1/b/bucket/o?prefix={prefix}", timeout=30) as answer:
            found = json.loads(answer.read())
        return [item["name"] for item in found["items"]] if "items" in found else []

    def read(self, name: str) -> bytes:
        with urllib.request.urlopen(f"{self.url}/storage/v1/b/bucket/o/{name.replace('/', '%2F')}?alt=media") as answer:
            return answer.read()

    def write(self, name: str, content: bytes) -> None:
        url = f"{self.url}/upload/storage/v1/b/bucket/o?uploadType=media&name={name.replace('/', '%2F')}"
        urllib.request.urlopen(urllib.request.Request(url, content), timeout=30).close()

    def start(self, name: str, *flags: str) -> subprocess.Popen[str]:
        variables = {
            "STORAGE_EMULATOR_HOST": self.url,  # gcsfs
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GPT_JAX_CACHE": str(self.place / "cache"),
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": "",
        }
        return subprocess.Popen(
            [sys.executable, "-m", f"experiments.{name}", *flags],
            cwd=ROOT,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, name: str, *flags: str) -> str:
        process = self.start(name, *flags)
        told = process.communicate(timeout=400)[0]
        assert process.returncode == 0, told
        return told


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    pytest.importorskip("gcsfs", reason="needs gcsfs: pip install -c constraints.txt -e '.[test]'")
    with serve_bucket() as url:
        place = tmp_path_factory.mktemp("place")
        (place / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
        (place / "tiny.py").write_text(CONFIG.format(path=str(place / "text.txt")))
        (place / "study.py").write_text(STUDY)
        yield Bucket(url, place)


def losses(lines: str) -> list[tuple[Any, ...]]:
    rows = [row for row in map(json.loads, lines.splitlines()) if row["split"] != "goodput"]
    return [(row["step"], row["split"], row["loss"]) for row in rows]


def test_training_is_interrupted_resumed_and_evaluated(bucket: Bucket) -> None:
    """The losses are those of a run on a disk that nothing interrupts, bit for bit."""
    flags = [f"--config={bucket.place / 'tiny.py'}", *STEPS]
    first = bucket.start("train", *flags, "--workdir=gs://bucket/run")
    limit = time.monotonic() + 200
    while "run/checkpoints/500/commit_success.txt" not in bucket.names("run/checkpoints/500/commit"):
        assert first.poll() is None and time.monotonic() < limit, first.communicate()[0]
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    told = first.communicate(timeout=200)[0]
    assert first.returncode == 75 and "to continue" in told, told
    assert "run/lease.json" not in bucket.names("run/lease"), "the lock is given back"
    bucket.run("train", *flags, "--workdir=gs://bucket/run")
    bucket.run("train", *flags, f"--workdir={bucket.place / 'run'}")
    assert losses(bucket.read("run/metrics.jsonl").decode()) == losses((bucket.place / "run/metrics.jsonl").read_text())
    assert len(json.loads(bucket.read("run/environment.json"))["starts"]) == 2
    kept = {name.split("/")[2] for name in bucket.names("run/checkpoints/")}
    assert kept == {"1500"}, "older checkpoints are deleted"
    bucket.run("evaluate", "--workdir=gs://bucket/run")
    bucket.run("evaluate", f"--workdir={bucket.place / 'run'}")
    assert bucket.read("run/evaluation.json") == (bucket.place / "run" / "evaluation.json").read_bytes()
    assert bucket.read("run/loss.png").startswith(b"\x89PNG")
    told = bucket.run("sample", "--workdir=gs://bucket/run", "--prompt=the quick", "--max_new_tokens=8", "--top_k=1")
    assert "the quick brown" in told


def test_a_run_whose_folder_is_taken_over_stops_and_writes_nothing_more(bucket: Bucket) -> None:
    flags = [f"--config={bucket.place / 'tiny.py'}", *STEPS, "--config.train.steps=1000000"]
    run = bucket.start("train", *flags, "--workdir=gs://bucket/taken")
    limit = time.monotonic() + 200
    while "taken/checkpoints/500/commit_success.txt" not in bucket.names("taken/checkpoints/500/commit"):
        assert run.poll() is None and time.monotonic() < limit, run.communicate()[0]
        time.sleep(0.05)
    bucket.write("taken/lease.json", b'{"id": "another"}')
    told = run.communicate(timeout=100)[0]
    assert run.returncode == 75 and "Traceback" not in told, told
    assert [line for line in told.splitlines() if "another run has taken over gs://bucket/taken" in line]
    saved = [json.loads(bucket.read("taken/metrics.jsonl").splitlines()[-1])["step"]]
    assert bucket.read("taken/lease.json") == b'{"id": "another"}'
    begun = {int(name.split("/")[2].split(".")[0]) for name in bucket.names("taken/checkpoints/")}
    assert max(begun) <= saved[0], "no checkpoint is ahead of the records"


def test_two_shards_of_a_study_at_once_make_one_report(bucket: Bucket) -> None:
    flags = [f"--config={bucket.place / 'study.py'}", "--workdir=gs://bucket/study"]
    shards = [bucket.start("ablate", *flags, f"--shard={i}/2") for i in (1, 2)]
    told = [shard.communicate(timeout=500)[0] for shard in shards]
    assert [shard.returncode for shard in shards] == [0, 0], told
    starts = [json.loads(line) for line in bucket.read("study/log.jsonl").decode().splitlines()]
    assert sum(event["what"] == "start" for event in starts) == 2, "neither has lost the other's line"
    bucket.run("report", "--workdir=gs://bucket/study")
    results = json.loads(bucket.read("study/results.json"))
    runs = {name.split("/")[2] for name in bucket.names("study/runs/") if name.endswith("/outcome.json")}
    assert len(runs) == 7 and "mqa" in json.dumps(results)
    assert b"<html" in bucket.read("study/report.html")
