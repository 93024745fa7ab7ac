# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A small study of attention
#
# How far back must attention look? You could train two models, one with attention to everything and one with a short
# window, and compare their losses. But train the first one again with another seed, and its loss changes too. Is the
# difference between the models larger than that?
#
# This notebook asks the question as a **study**: it states what would count as a difference, finds out how many seeds
# are needed to see it, runs all arms in pairs, and reads the answer off an interval. About 8 minutes on a CPU.

# %%
# @title Set up gpt_jax: run this cell first {display-mode: "form"}
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import subprocess
import sys
import tempfile


def install(*source):
    """numpy keeps its version; so does jax, unless gpt_jax needs a newer one, then with the accelerator's plugin."""
    found = {d.name.lower().replace("_", "-"): d.version.split("+")[0] for d in importlib.metadata.distributions()}
    kept = {name: version for name, version in found.items() if name.startswith(("jax", "libtpu", "numpy"))}
    plugins = {"jax-cuda12-plugin": "cuda12", "jax-cuda13-plugin": "cuda13", "libtpu": "tpu"}
    newer = [f"jax[{extra}]" for name, extra in plugins.items() if name in found]
    for sign, also in (("==", []), (">=", newer)):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.writelines(f"{name}{'==' if name == 'numpy' else sign}{kept[name]}\n" for name in kept)
            file.flush()
            command = [sys.executable, "-m", "pip", "install", "-q", "-c", file.name, *source, *also]
            pip = subprocess.run(command, capture_output=True, text=True)
        if pip.returncode == 0:
            return
    raise SystemExit(pip.stderr)


if importlib.util.find_spec("gpt_jax") is None:
    here = pathlib.Path.cwd()
    checkout = next((p for p in (here, *here.parents) if (p / "gpt_jax" / "__init__.py").is_file()), None)
    source = ["-e", str(checkout)] if checkout else os.environ.get("GPT_JAX_SOURCE", "").split()
    if not source:
        raise SystemExit("Set os.environ['GPT_JAX_SOURCE'] to a pip requirement, such as a path; run this cell again.")
    install(*source)
    if checkout:
        sys.path.insert(0, str(checkout))  # the kernel sees an editable install only after a restart

import jax

import gpt_jax

if jax.__version__ != importlib.metadata.version("jax"):
    raise SystemExit("A newer jax was installed after this session had loaded its own: restart the runtime once.")
SMOKE = os.environ.get("SMOKE") == "1"  # the small size, which the tests run
drive = pathlib.Path("/content/drive/MyDrive")
home = drive if drive.is_dir() else pathlib.Path.cwd()
runs = pathlib.Path(os.environ.get("GPT_JAX_RUNS") or home / "gpt_jax_runs")
print(
    f"gpt_jax {importlib.metadata.version('gpt_jax')} | jax {jax.__version__} | Python {platform.python_version()}"
    f" | {jax.device_count()} × {jax.devices()[0].device_kind}"
    f" | runs go to {runs}, {'on' if runs.is_relative_to(drive) else 'not on'} a mounted Drive"
)

# %%
from dataclasses import replace
from html import escape

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from rich.console import Console

from gpt_jax import config as c
from gpt_jax.ablation import judge
from gpt_jax.ablation.judging import Rule
from gpt_jax.ablation.power import power
from gpt_jax.ablation.run_study import run_study
from gpt_jax.ablation.study import Arm, Study
from gpt_jax.training.programs import Programs

console = Console(force_jupyter=False, force_terminal=False)  # plain lines
# Both studies share compiled programs, and train one seed after the other (a GPU may prefer several together).
options = {"console": console, "programs": Programs(), "together": 1}

# %% [markdown]
# ## The question
#
# The base is a tiny GPT that reads rows of 64 bytes of Python code. Three **arms** differ in one setting, the mask.
# `full` attention sees all earlier bytes. `window 32` sees the last 32. `window 1` sees its own byte alone, so it can
# learn which byte follows which, and no more. `full` is the baseline.
#
# Before anything runs, say what would matter: for less than **0.05 nats** per byte, we would not change our model.
# This number is the yardstick of everything below.

# %%
block = c.BlockConfig(c.Attention(heads=2, position=c.Rope()), c.GatedMlp(width=32 if SMOKE else 128))
base = c.Config(
    model=c.ModelConfig(vocab_size=None, context_length=64, width=16 if SMOKE else 64, blocks=(block,) * 2),
    data=c.Text(corpus="python", validation_tokens=2048 if SMOKE else 32_768),
    optimizer=c.Adamw(learning_rate=1.5e-3),
    schedule=c.WarmupCosine(warmup=5 if SMOKE else 20),
    train=c.Train(steps=12 if SMOKE else 300, batch_size=16),
    evaluation=c.Evaluation(every=6 if SMOKE else 150),
    checkpoint=c.Checkpoint(every=300),
)
MATTERS = 0.05  # nats per byte
mask = "model.attention.mask"
arms = (Arm("full"), Arm("window 32", {mask: c.Window(32)}), Arm("window 1", {mask: c.Window(1)}))
study = Study(
    question="How far back must attention look, in rows of 64 bytes of Python?",
    base=base,
    arms=arms,
    baseline="full",
    knobs=(mask,),  # the only setting in which the arms may differ
    smallest_difference=MATTERS,
)

# %% [markdown]
# ## A pilot: how noisy is a difference?
#
# In one seed, all arms start from the same initial values and read the same text in the same order. What we compare
# is the difference within each seed, which usually varies less than the losses themselves. A pilot of four seeds,
# which the study will not use, shows how much.

# %%
pilot_seeds = tuple(range(1000, 1002 if SMOKE else 1004))
pilot = replace(study, arms=arms[:2], seeds=pilot_seeds, most_seeds=len(pilot_seeds), fresh_seeds=0, aa=False)
ended = run_study(pilot, runs / "windows_pilot", **options)
assert ended.status == "finished"
losses = np.array([[arm.losses[str(seed)] for seed in pilot_seeds] for arm in ended.results.arms])  # (arms, seeds)
noise = float(np.std(losses[1] - losses[0], ddof=1))
print(f"losses vary by {losses[0].std(ddof=1):.4f} nats between seeds, paired differences by {noise:.4f}")

plt.figure(figsize=(6, 2.8))
plt.plot(losses, "o-"), plt.xticks([0, 1], [arm.name for arm in ended.results.arms]), plt.ylabel("loss (nats per byte)")
plt.title("The pilot: one line for each seed")
plt.show()

# %% [markdown]
# ## The design: how many seeds?
#
# With this noise, what would `n` seeds find? The library answers by judging 4,000 simulated studies with the very
# rules that will judge ours: two arms are compared with the baseline, so the intervals are made wider until both hold
# together in 95% of studies. We want two things, each in 80% of studies: to see a difference of 0.05 nats, and to say
# *no difference that matters* where there is none. The second takes at least 14 seeds, because fewer do not rule out
# that a fifth of all seeds fail.

# %%
counts = (2, 3) if SMOKE else (3, 5, 8, 14, 16, 18)
table = {}
for n in counts:
    rule = Rule(MATTERS, comparisons=len(arms) - 1, planned=n, most=n)  # one look: no seeds are added later
    table[n] = power(noise, n, rule)
    finds = "nothing" if table[n].detectable is None else f"a difference of {table[n].detectable:.4f}"
    print(f"{n:3} seeds: 80% of studies find {finds}; equal arms are found equal in {table[n].alike:.0%}")


def is_enough(found):
    return found.detectable is not None and found.detectable <= MATTERS and found.alike >= 0.8


seeds = next((n for n in counts if is_enough(table[n])), counts[-1])
print(f"the study takes {seeds} seeds")
if not is_enough(table[seeds]):
    print("which is all that we can pay for, so it may end undecided")

plt.figure(figsize=(6, 2.8))
plt.plot(counts, [np.nan if table[n].detectable is None else table[n].detectable for n in counts], "o-")
plt.axhline(MATTERS, color="grey", linestyle=":", label="what matters"), plt.yscale("log")
plt.xlabel("seeds"), plt.ylabel("difference found (nats)"), plt.legend()
plt.show()

# %% [markdown]
# ## Run it
#
# `run_study` freezes the claim in `claim.json` before the first run. It repeats one run of the baseline and checks
# that the copy is equal to the last bit: otherwise no difference could be trusted. If you stop it, run the cell
# again: finished runs are kept.

# %%
study = replace(study, seeds=tuple(range(seeds)), most_seeds=seeds, fresh_seeds=0, is_smoke=SMOKE)
ended = run_study(study, runs / "windows", **options)
results = ended.results
assert ended.status == "finished"
assert results.aa is not None and results.aa.equal

# %% [markdown]
# ## The finding
#
# One sentence, with the intervals that hold for both arms together:

# %%
print(results.verdict)
for mark in results.marks:
    print("note:", mark)
found = {arm.name: arm.versus_baseline for arm in results.arms[1:]}
assert SMOKE or found["window 1"].verdict == "worse"

# %% [markdown]
# The verdict is read off the interval by fixed rules, which fit in a few lines. An interval within ± what matters
# shows *no difference that matters*. That holds even if it excludes 0: the difference is real then, and too small to
# change our model for. Any other interval that excludes 0 shows a difference. The rest is **undecided**, which says
# something about the study and nothing about the arms.


# %%
def verdict(versus):
    low, high = versus.interval
    if -MATTERS <= low and high <= MATTERS and versus.n >= 14:
        return "no difference that matters"
    if low > 0 or high < 0:
        size = "" if abs(versus.mean) >= MATTERS else "slightly "
        return size + ("worse" if versus.mean > 0 else "better")
    return "undecided"


figure, axis = plt.subplots(figsize=(8, 2.4))
for row, (name, versus) in enumerate(found.items()):
    assert verdict(versus) == versus.verdict
    axis.plot(versus.interval, [row, row], lw=3), axis.plot(versus.mean, row, "ko")
    axis.text(versus.interval[1], row + 0.15, f"  {name}: {versus.verdict}")
axis.axvspan(-MATTERS, MATTERS, color="grey", alpha=0.2), axis.axvline(0, color="grey", lw=0.5)
axis.set_yticks([]), axis.set_ylim(-0.5, 1.7), axis.margins(x=0.4)
axis.set_title("Differences and their intervals (grey: does not matter)")
axis.set_xlabel("loss − loss of full attention (nats per byte)")
plt.show()

# %% [markdown]
# ## What a window saves
#
# The loss is one side of the choice. The other is the memory that decoding needs: a window of `W` keeps `W` keys and
# values, however long the text grows. Every run of a study is an ordinary one, which `load_run` opens.

# %%
for arm, slots in zip(results.arms, (64, 32, 1), strict=True):
    model, params, tokenizer = gpt_jax.load_run(str(runs / "windows" / arm.runs[0].folder))
    cache = gpt_jax.init_cache(model.config, batch_size=1, length=64)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(cache.layers))
    assert kept == 2 * 2 * slots * model.config.width * 4  # layers, keys and values, slots, numbers, bytes of a number
    print(f"{arm.name:>10}: {kept:7,} bytes of cache, loss {arm.mean:.4f}")

# %% [markdown]
# ## What too few seeds would have said
#
# Here are the same runs, but the first three seeds only. They are enough to see that a byte alone is not enough. They
# cannot say that 32 bytes are enough, however small the difference looks: with three seeds, the interval is several
# times as wide, and a setting that fails in every fifth run would often go unnoticed.

# %%
few = range(2 if SMOKE else 3)
losses = {arm.name: {seed: arm.losses[str(seed)] for seed in few} for arm in results.arms}
small = judge(losses, baseline="full", smallest_difference=MATTERS, planned=len(few), most=len(few))
for name in found:
    for versus in (small[name], found[name]):
        low, high = versus.interval
        print(f"{name:>10}, {versus.n:2} seeds: {versus.mean:+.4f} ({low:+.4f} to {high:+.4f}) {versus.verdict}")
assert small["window 32"].verdict != "no difference that matters"
assert SMOKE or small["window 1"].verdict == "worse"

# %% [markdown]
# *Undecided* is an honest answer, and it is not *no difference*. The second needs evidence of its own: an interval
# that is narrow enough.
#
# ## The report
#
# `report.html` is one file that opens without a network. It has the sentence at the top, what weakens it, the curves,
# the costs of the arms (look at the bytes of cache), and what is needed to repeat the study.

# %%
page = escape(pathlib.Path(ended.report).read_text(encoding="utf-8"))
HTML(f'<div><iframe srcdoc="{page}" width="100%" height="800"></iframe></div>')

# %% [markdown]
# ## Your own question
#
# Change the arms and run the cells again, in another folder. `gpt_jax.ablation.combine.vary` makes arms from the
# values of one setting: `vary("model.attention.kv_heads", mha=2, mqa=1)`. Two things make a study better than this
# one:
#
# - **A fair budget.** `match="params"` with `free="model.mlp.width"` gives each arm an equal number of parameters.
# - **A fair learning rate.** `tuning=Tuning(rates=(1e-3, 3e-3, 1e-2))` lets each arm find its own first. Without it,
#   an arm may lose by its learning rate alone, and the report says so.
#
# `docs/studies.md` leads through the choices, and `docs/statistics.md` states the rules and how often they are wrong.
