"""Runs and studies that earlier code wrote still open, evaluate, go on and report, with the numbers they had then.

`fixtures/earlier/runs.tar.xz` holds what the earlier code wrote, `golden.json` what it computed from it and from some
models; the README beside them says how both were made. On the processor and the versions that `golden.json` names,
every bit must agree. Elsewhere compilers round otherwise: numbers agree to a tolerance, fingerprints aren't compared.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import gpt_jax
from gpt_jax.ablation.compare import write_comparison
from gpt_jax.config import ModelConfig
from gpt_jax.config.conversion import from_dict, to_dict
from gpt_jax.config.upgrade import upgraded
from gpt_jax.runs.checkpoint import fingerprints
from gpt_jax.runs.evaluate import evaluate_run
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.record import recorded

pytestmark = pytest.mark.optimized

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures" / "earlier"
RTOL, ATOL = 2e-5, 1e-5
# A run → the steps to which the test takes it.
LONGER = {"text": 6, "task": 6, "adapter": 4}


def machine() -> dict[str, str]:
    """What decides whether two processes compute the same bits: the kind of processor and the packages' versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    kind = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "processor": hashlib.sha256("\n".join([platform.machine(), *kind]).encode()).hexdigest()[:16],
        **{name: importlib.metadata.version(name) for name in packages},
    }


GOLDEN: dict[str, Any] = json.loads((FIXTURES / "golden.json").read_text())
IS_SAME_MACHINE = GOLDEN["machine"] == machine()


def assert_golden(found: Any, golden: Any, path: str = "") -> None:
    """Requires the same structure and numbers: equal on the machine of the golden numbers, else to a tolerance. What
    stands under the key `bits` is compared on that machine only.
    """
    if isinstance(golden, dict):
        assert found.keys() == golden.keys(), path
        for key in golden:
            if key != "bits" or IS_SAME_MACHINE:
                assert_golden(found[key], golden[key], f"{path}/{key}")
    elif isinstance(golden, list):
        assert len(found) == len(golden), path
        for i, (left, right) in enumerate(zip(found, golden, strict=True)):
            assert_golden(left, right, f"{path}/{i}")
    elif isinstance(golden, float) and not IS_SAME_MACHINE:
        assert math.isclose(found, golden, rel_tol=RTOL, abs_tol=ATOL), (path, found, golden)
    else:
        assert found == golden, path


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy of what the earlier code wrote, as the working directory: its paths are relative to it."""
    return unpacked(tmp_path, monkeypatch)


def unpacked(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with tarfile.open(FIXTURES / "runs.tar.xz") as archive:
        archive.extractall(place, filter="data")
    monkeypatch.setenv("GPT_JAX_CACHE", str(place / "cache"))
    monkeypatch.chdir(place)
    return place


# ── what is measured, by the earlier code for golden.json and by the tests ───────────────────────────────────────────


def tokens(model: gpt_jax.GPT) -> jax.Array:
    assert model.config.vocab_size is not None
    return jnp.asarray(np.arange(24).reshape(2, 12) * 7 % model.config.vocab_size, jnp.int32)


def described(params: Any, logits: Any) -> dict[str, Any]:
    """Fingerprints of the parameters and the logits, and some logits of a row's last position."""
    bits = {"params": fingerprints(params), "logits": fingerprints(logits)[""]}
    return {"logits": np.asarray(logits)[1, -1, :8].astype(float).tolist(), "bits": bits}


def opened(folder: str) -> dict[str, Any]:
    """What `load_run` and `evaluate_run` give of a run."""
    model, params, tokenizer = gpt_jax.load_run(folder)
    step, metrics = evaluate_run(folder)
    text = tokenizer.decode(list(range(min(8, tokenizer.vocab_size))))
    logits = jax.jit(model.apply)(params, tokens(model))
    return described(params, logits) | {"step": step, "loss": metrics["loss"], "text": text}


def gone_on(folder: str, steps: int) -> dict[str, Any]:
    """Goes on to `steps`; the records of the further steps, and the parameters at their end."""
    found = recorded(RunFolder(folder))
    assert found is not None
    before = lines(folder)
    config = dataclasses.replace(found[0], train=dataclasses.replace(found[0].train, steps=steps))
    outcome = gpt_jax.train(config, folder, console=Console(quiet=True))
    assert (outcome.status, outcome.step) == ("finished", steps)
    after = lines(folder)
    assert after[: len(before)] == before, "what the earlier code recorded stays"
    keys = ("split", "step", "loss", "grad_norm", "learning_rate")
    records = [{key: line[key] for key in keys if key in line} for line in after[len(before) :]]
    return {"records": records, "bits": fingerprints(gpt_jax.load_run(folder)[1])}


def lines(folder: str) -> list[dict[str, Any]]:
    found = map(json.loads, Path(folder, "metrics.jsonl").read_text().splitlines())
    return [record for record in found if record["split"] != "goodput"]  # which holds times; earlier code had none


def begun(configs: dict[str, Any]) -> dict[str, Any]:
    """Initial parameters and logits of models from their configurations as the earlier code spelled them; of those
    whose context has room, the tokens that they decode greedily from their caches. All models share two programs
    that LLVM does not optimize, which halves the time to compile.
    """
    models = {name: gpt_jax.GPT(from_dict(ModelConfig, upgraded(config))) for name, config in configs.items()}

    def init(key: Any) -> dict[str, Any]:
        return {name: model.init(key, jnp.zeros((1, 12), jnp.int32)) for name, model in models.items()}

    def apply(params: Any) -> dict[str, Any]:
        return {name: model.apply(params[name], tokens(model)) for name, model in models.items()}

    unoptimized = {"xla_backend_optimization_level": 0}
    params = jax.jit(init, compiler_options=unoptimized)(jax.random.key(0))
    logits = jax.jit(apply, compiler_options=unoptimized)(params)
    found = {name: described(params[name], logits[name]) for name in models}
    for name, model in models.items():
        if model.config.context_length > 16:
            options: Any = {"key": jax.random.key(1), "max_new_tokens": 10, "sampler": gpt_jax.Greedy()}
            prompts = [[1, 2, 3, 4, 5, 6], [7, 8]]
            found[name]["decoded"] = gpt_jax.generate(model, params[name], prompts, **options).tokens.tolist()
    return found


def concluded(results: dict[str, Any]) -> dict[str, Any]:
    """What a study says, without the addresses of its runs and without clocks."""
    arms = {}
    for arm in results["arms"]:
        versus = arm["versus_baseline"]
        arms[arm["name"]] = {
            "losses": arm["losses"],
            "parameters": arm["parameters"],
            "versus_baseline": None if versus is None else {key: versus[key] for key in ("mean", "verdict")},
        }
    return {"aa": {"equal": results["aa"]["equal"]}, "arms": arms}


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", GOLDEN["opened"])
def test_a_run_opens_and_evaluates(name: str, earlier: Path) -> None:
    assert_golden(opened(f"runs/{name}"), GOLDEN["opened"][name])


@pytest.mark.parametrize("name", LONGER)
def test_a_run_goes_on(name: str, earlier: Path) -> None:
    assert_golden(gone_on(f"runs/{name}", LONGER[name]), GOLDEN["gone on"][name])


@pytest.fixture(scope="module")
def all_begun() -> dict[str, Any]:
    return begun({name: golden["config"] for name, golden in GOLDEN["begun"].items()})


@pytest.mark.parametrize("name", GOLDEN["begun"])
def test_a_model_begins_with_the_same_values(name: str, all_begun: dict[str, Any]) -> None:
    golden = dict(GOLDEN["begun"][name])
    config = from_dict(ModelConfig, upgraded(golden.pop("config")))
    assert from_dict(ModelConfig, to_dict(config)) == config
    assert_golden(all_begun[name], golden)


# ── studies ──────────────────────────────────────────────────────────────────────────────────────────────────────────

# The base is read from the study's own record, as the earlier code spelled it.
STUDY = """
import json
from pathlib import Path
from gpt_jax.ablation.combine import vary
from gpt_jax.ablation.study import Study
from gpt_jax.config import Config
from gpt_jax.config.conversion import from_dict, to_config_dict
from gpt_jax.config.upgrade import upgraded

def get_config():
    written = json.loads((Path(__file__).parent / "before.json").read_text())
    return to_config_dict(from_dict(Config, upgraded(written["arms"][0]["config"])))

def get_study(base):
    knob = "model.attention.kv_heads"
    return Study("Fewer?", base, vary(knob, mha=2, mqa=1), "mha", (knob,), 0.01, seeds=(0, 1), fresh_seeds=0)
"""

# One process imports the packages; each command runs in a fork, because each module defines flags of its own.
COMMANDS = """
import importlib, json, os, sys, warnings
warnings.filterwarnings("ignore", message="os.fork")
from experiments import cli
for name, *arguments in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        command = importlib.import_module(f"experiments.{name}")
        sys.argv = [f"experiments/{name}.py", *arguments]
        cli.run(command.main, command.PAGE)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != 0:
        sys.exit(code)
    if name == "report":
        os.rename("study/results.json", "reported.json")
"""


def studied(place: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reports on the unfinished study in `place`, then goes on with it; the results of both."""
    (place / "study.py").write_text(STUDY)
    (place / "before.json").write_bytes((place / "study" / "study.json").read_bytes())
    ablate = ["ablate", f"--config={place / 'study.py'}", "--workdir=study", "--together=1"]
    script = [sys.executable, "-c", COMMANDS, json.dumps([["report", "--workdir=study"], ablate])]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        script, cwd=place, env=dict(os.environ) | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads((place / "reported.json").read_text()), json.loads((place / "study/results.json").read_text())


def assert_contains(found: Any, expected: Any, path: str = "") -> None:
    """Requires all that `expected` has; groups of `found` may have more keys."""
    if isinstance(expected, dict):
        assert expected.keys() <= found.keys(), path
        for key in expected:
            assert_contains(found[key], expected[key], f"{path}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), path
        for i, (left, right) in enumerate(zip(found, expected, strict=True)):
            assert_contains(left, right, f"{path}/{i}")
    else:
        assert found == expected, path


def as_today(results: dict[str, Any]) -> dict[str, Any]:
    """The results with today's names and sentence. The statistics of a comparison have others in their place, but the
    mean and the verdict.
    """
    said = results.pop("verdict")
    assert said == "So far (4 of 5 runs are done): against mha, mqa is undecided: +0.0040 nats."
    for arm in results["arms"]:
        arm["learning_rate"] = arm.pop("best_learning_rate")
        assert not arm.pop("learning_rate_at_edge") and len(arm.pop("by_learning_rate")) == 1
        if arm["versus_baseline"] is not None:
            arm["versus_baseline"] = {name: arm["versus_baseline"][name] for name in ("mean", "verdict")}
    return results | {
        "metric": "final validation loss",
        "verdict": said.replace("undecided", "undecided, 1 of 2 planned seeds done"),
    }


def test_a_study_reports_and_goes_on(earlier: Path) -> None:
    """The report repeats what the earlier code collected. Whether a run that is done counts or is made again depends on
    the code's version; the losses do not.
    """
    before = json.loads((earlier / "study" / "results.json").read_text())
    reported, results = studied(earlier)
    assert_contains(reported, as_today(before))
    assert_golden(concluded(results), GOLDEN["study"])
    assert (earlier / "study" / "report.html").stat().st_size > 10_000


def test_a_comparison_shows_earlier_settings_as_they_are_spelled_today(earlier: Path) -> None:
    page = Path(write_comparison(["runs/text", "runs/task"], "both.html")).read_text()
    assert "model.attention.value.residual.initial" in page
    assert "value_residual" not in page
