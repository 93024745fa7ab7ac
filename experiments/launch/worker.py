#!/usr/bin/env python3
"""The program that runs on each machine of a slice, as its startup script: installs, runs the command once, tells how.

It must stand alone: the standard library only, of any Python from 3.8 on, because nothing is installed yet. The job
comes from the metadata server:

  records   gs:// folder for `worker-I.json` (a record, renewed while it lives) and `worker-I.log`
  bundle    gs:// archive of the checkout
  install   commands that install it, run in the checkout; %(folder)s is the folder beside it
  command   the command, run in the checkout
  seconds   after so many, SIGTERM asks the command to save and stop; null means no limit
  delete    worker 0 deletes this resource at the end, so that nothing is paid for if no launcher is watching
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

METADATA = "http://" + os.environ.get("GCE_METADATA_HOST", "metadata.google.internal") + "/computeMetadata/v1/instance/"
STORAGE = os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com")
FOLDER = Path(os.environ.get("GPT_JAX_LAUNCH", "/var/lib/gpt_jax_launch"))
BEAT, SAVING, OTHERS, PAUSE = (float(x) for x in os.environ.get("GPT_JAX_LAUNCH_SECONDS", "20,300,300,10").split(","))
SAVED = 75


def request(url, data=None, method=None, headers=None):
    """The body of the answer to an HTTP request; tries again for about a minute where the network fails."""
    for wait in (1, 4, 15, 40, None):
        try:
            whole = urllib.request.Request(url, data=data, method=method, headers=headers or {})
            with urllib.request.urlopen(whole, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429 or wait is None:
                raise
        except OSError:
            if wait is None:
                raise
        time.sleep(wait * PAUSE / 10)


def attribute(key, default=None):
    """A metadata attribute of this machine; `default` if it has none."""
    try:
        return request(METADATA + "attributes/" + key, headers={"Metadata-Flavor": "Google"}).decode()
    except urllib.error.HTTPError as error:
        if error.code != 404 or default is None:
            raise
        return default


def token():
    """The authorization header of the machine's service account."""
    answer = request(METADATA + "service-accounts/default/token", headers={"Metadata-Flavor": "Google"})
    return {"Authorization": "Bearer " + json.loads(answer)["access_token"]}


def split(url):
    bucket, _, name = url[len("gs://") :].partition("/")
    return bucket, urllib.parse.quote(name, safe="")


def upload(url, content):
    bucket, name = split(url)
    headers = dict(token(), **{"Content-Type": "application/octet-stream"})
    request(STORAGE + f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={name}", content, "POST", headers)


def download(url):
    bucket, name = split(url)
    return request(STORAGE + f"/storage/v1/b/{bucket}/o/{name}?alt=media", headers=token())


class Worker:
    """One worker of a slice, from its start to the end of its command."""

    def __init__(self, job):
        self.job = job
        self.worker = int(attribute("agent-worker-number", "0"))
        self.hosts = len(attribute("worker-network-endpoints", "one").split(","))
        self.folder = FOLDER / job["records"].rstrip("/").replace("gs://", "").replace("/", "_")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = (self.folder / "log").open("ab", buffering=0)
        self.beat, self.code, self.ended = int(time.time()), None, None
        self.process, self.is_stopping = None, False
        self.uploaded, self.lock, self.done = -1, threading.Lock(), threading.Event()

    def file(self, worker, suffix):
        return f"{self.job['records']}/worker-{worker}.{suffix}"

    def say(self, text):
        self.log.write(f"[launch] {text}\n".encode())

    def report(self):
        """Uploads the log if it has grown, then the record."""
        with self.lock:
            content = (self.folder / "log").read_bytes()
            if len(content) != self.uploaded:
                upload(self.file(self.worker, "log"), content)
                self.uploaded = len(content)
            self.beat += 1
            record = dict(worker=self.worker, hosts=self.hosts, beat=self.beat, code=self.code, ended=self.ended)
            upload(self.file(self.worker, "json"), (json.dumps(record) + "\n").encode())

    def renew(self):
        while not self.done.wait(BEAT):
            try:
                self.report()
            except Exception as error:
                self.say(f"no report: {error!r}")

    def stop(self, *_):
        """Hands SIGTERM on to the command, which saves."""
        self.is_stopping = True
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)

    def call(self, command, seconds=None):
        """The exit code of a command, with its output in the log; 128 + N if the signal N ended it."""
        variables = dict(os.environ, PYTHONUNBUFFERED="1", GPT_JAX_CACHE=str(self.folder / "cache"))
        variables.setdefault("HOME", "/root")
        variables["PATH"] = f"{self.folder}/venv/bin:{variables.get('PATH', os.defpath)}"
        self.process = subprocess.Popen(
            command,
            cwd=self.folder / "checkout",
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        if self.is_stopping:
            self.stop()
        for limit, number in ((seconds, signal.SIGTERM), (SAVING, signal.SIGKILL)):
            try:
                self.process.wait(limit)
                break
            except subprocess.TimeoutExpired:
                self.say(f"{limit:.0f} seconds are over: {number.name}")
                os.killpg(self.process.pid, number)
        code = self.process.wait()
        return 128 - code if code < 0 else code

    def install(self):
        """Unpacks and installs the bundle; tries three times, as registries may fail."""
        archive = self.folder / "bundle.tar.gz"
        archive.write_bytes(download(self.job["bundle"]))
        with tarfile.open(archive) as bundle:
            bundle.extractall(self.folder / "checkout")
        for command in self.job["install"]:
            command = [word.replace("%(folder)s", str(self.folder)) for word in command]
            for remaining in (2, 1, 0):
                code = self.call(command)
                if code == 0 or self.is_stopping:
                    break
                if remaining == 0:
                    raise RuntimeError(f"the installation failed with the exit code {code}: {' '.join(command)}")
                time.sleep(PAUSE)

    def run(self):
        """Runs the job and records how it ended."""
        signal.signal(signal.SIGTERM, self.stop)
        if (self.folder / "ended").exists():  # a machine that starts again runs its startup script again
            return
        threading.Thread(target=self.renew, daemon=True).start()
        try:
            self.report()
            self.install()
            self.say("installed; the command starts")
            code = SAVED if self.is_stopping else self.call(self.job["command"], self.job["seconds"])
        except Exception:
            self.say(traceback.format_exc())
            code = SAVED if self.is_stopping else 1
        self.say(f"the command ended with the exit code {code}")
        self.code, self.ended = code, time.time()
        self.done.set()
        self.report()
        (self.folder / "ended").touch()
        if self.worker == 0:
            self.delete()

    def delete(self):
        """Waits for the other workers to end, and deletes the slice."""
        limit = time.monotonic() + OTHERS
        for other in range(1, self.hosts):
            while time.monotonic() < limit and not self.has_ended(other):
                time.sleep(PAUSE)
        try:
            request(self.job["delete"], method="DELETE", headers=token())
        except OSError as error:
            self.say(f"this machine may not delete itself ({error}): the launcher must, or you")
            self.report()

    def has_ended(self, other):
        try:
            return json.loads(download(self.file(other, "json")))["code"] is not None
        except (OSError, ValueError):
            return False


if __name__ == "__main__":
    Worker(json.loads(attribute("gpt-jax-job"))).run()
    sys.exit(0)
