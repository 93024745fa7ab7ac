"""A gcloud that answers from a folder, for tests: queued resources, objects of a bucket, and what goes wrong.

`$FAKE_GCLOUD/script.json` holds
  rules  list of {match: a regular expression on the words, skip: calls that pass first, times: calls that it answers,
         then: {code, stderr} | {hang: seconds} | {signal: a name, for the launcher}}, of which the first one answers
  lives  slice → for each attempt a list of {state, records, log, message}; each `describe` goes one further
"""

import fnmatch
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

HOME = Path(os.environ["FAKE_GCLOUD"])
WORDS = sys.argv[1:]
LINE = " ".join(WORDS)


def load(name, default):
    path = HOME / name
    return json.loads(path.read_text()) if path.exists() else default


def save(name, values):
    (HOME / name).write_text(json.dumps(values))


def fail(message, code=1):
    sys.stderr.write(f"ERROR: (gcloud.fake) {message}\n")
    sys.exit(code)


def flag(name, default=None):
    return next((word.split("=", 1)[1] for word in WORDS if word.startswith(f"--{name}=")), default)


def answer_by_rules(script):
    """Whether the call goes on to what gcloud would do."""
    counts = load("counts.json", {})
    for i, rule in enumerate(script["rules"]):
        if not re.search(rule["match"], LINE):
            continue
        seen = counts[str(i)] = counts.get(str(i), 0) + 1
        save("counts.json", counts)
        if not rule.get("skip", 0) < seen <= rule.get("skip", 0) + rule.get("times", 10**9):
            continue
        then = rule["then"]
        if "signal" in then:
            os.kill(os.getppid(), getattr(signal, then["signal"]))
            time.sleep(0.6 if WORDS[3:4] == ["create"] else 0.1)  # a request takes its time
        if "hang" in then:
            time.sleep(then["hang"])
        if "code" in then:
            fail(then["stderr"], then["code"])
        return


def put(url, content):
    objects = load("objects.json", {})
    objects[url] = content
    save("objects.json", objects)


def storage():
    if WORDS[1] == "buckets":
        print(load("bucket.json", "US-WEST4"))
    elif WORDS[1] == "cp":
        put(WORDS[3], sys.stdin.read() if WORDS[2] == "-" else f"file {WORDS[2]}")
    else:
        objects, pattern = load("objects.json", {}), WORDS[-1]
        found = [objects[url] for url in sorted(objects) if fnmatch.fnmatchcase(url, pattern)]
        if not found:
            fail(f"The following URLs matched no objects or files: {pattern}")
        start = int(flag("range", "0-")[:-1])
        whole = "".join(found).encode()
        if start >= len(whole) > 0 or start and not whole:
            fail("HTTPError 416: The requested range cannot be satisfied.")
        sys.stdout.buffer.write(whole[start:])


def live(resource, life):
    """Writes the records and the logs of this moment, and returns the resource as `describe` shows it."""
    moment = life[min(resource["looks"], len(life) - 1)]
    for worker, record in moment.get("records", {}).items():
        whole = {"worker": int(worker), "hosts": 1, "beat": resource["looks"], "code": None, "ended": None} | record
        put(f"{resource['records']}/worker-{worker}.json", json.dumps(whole) + "\n")
    for worker, text in moment.get("log", {}).items():
        put(f"{resource['records']}/worker-{worker}.log", text)
    state = {"state": moment["state"]}
    if "message" in moment:
        state["failedData"] = {"error": {"message": moment["message"]}}
    node = {"metadata": resource["metadata"], "labels": resource["labels"]}
    return {"name": f"projects/p/locations/z/queuedResources/{resource['name']}", "state": state} | {
        "tpu": {"nodeSpec": [{"node": node}]}
    }


def queued(script):
    resources, attempts, name = load("resources.json", {}), load("attempts.json", {}), WORDS[4]
    if WORDS[3] == "list":
        print(json.dumps([live(one, script["lives"][key][one["attempt"]]) for key, one in resources.items()]))
        return
    if WORDS[3] == "create":
        if name in resources:
            fail(f"ALREADY_EXISTS: Resource '{name}' already exists")
        files = dict(pair.split("=", 1) for pair in flag("metadata-from-file").split(","))
        job = Path(files["gpt-jax-job"]).read_text()
        attempt = attempts[name] = attempts.get(name, -1) + 1
        labels = dict([flag("labels").split("=", 1)])
        resources[name] = {"name": name, "attempt": attempt, "looks": -1, "records": json.loads(job)["records"]}
        resources[name] |= {"labels": labels, "metadata": {"gpt-jax-job": job}}
        save("attempts.json", attempts)
    elif name not in resources:
        fail(f"NOT_FOUND: Resource '{name}' was not found")
    elif WORDS[3] == "describe":
        resources[name]["looks"] += 1
        shown = live(resources[name], script["lives"][name][resources[name]["attempt"]])
        print(json.dumps(shown))
        if shown["state"]["state"] == "GONE":
            del resources[name]
    else:
        del resources[name]
    save("resources.json", resources)


def main():
    with (HOME / "calls").open("a") as calls:
        calls.write(json.dumps(WORDS) + "\n")
    script = load("script.json", {"rules": [], "lives": {}})
    answer_by_rules(script)
    if WORDS[0] == "auth":
        print("someone@example.com")
    elif WORDS[0] == "config":
        print("p")
    elif WORDS[0] == "storage":
        storage()
    elif WORDS[1] == "instances":
        instances = load("instances.json", [])
        if WORDS[2] == "create":
            instances.append(WORDS[3])
        elif WORDS[3] in instances:
            instances.remove(WORDS[3])
        else:
            fail(f"The resource '{WORDS[3]}' was not found")
        save("instances.json", instances)
    elif WORDS[2] == "accelerator-types":
        print("v5litepod-8\nv5litepod-16\nv4-8")
    else:
        queued(script)


main()
