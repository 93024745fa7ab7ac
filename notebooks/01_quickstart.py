# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # gpt_jax: quickstart
#
# Train a small GPT on real text, look at its loss curve, sample from it, then change one setting and compare.
#
# On Colab: `Runtime ▸ Change runtime type` selects a GPU or TPU; a CPU works too. Connect your Drive (the folder icon on the left) to keep the runs. After a disconnect, run all cells again: training resumes from its last checkpoint.

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
import dataclasses

import matplotlib.pyplot as plt

from gpt_jax import config as c

# %% [markdown]
# ## Train
#
# A configuration is one frozen object. The data is the source code of Python's standard library, which every machine has.

# %%
block = c.BlockConfig(
    attention=c.Attention(heads=4, position=c.Rope(), score=c.Score(qk_norm=c.RmsNorm())),
    mlp=c.GatedMlp(width=64 if SMOKE else 384),
)
model_config = c.ModelConfig(
    vocab_size=None,  # filled in from the tokenizer
    context_length=64 if SMOKE else 256,
    width=32 if SMOKE else 128,
    blocks=(block,) * (2 if SMOKE else 4),
)
config = c.Config(
    model=model_config,
    data=c.Text(corpus="python", validation_tokens=8_192 if SMOKE else 65_536),
    optimizer=c.Adamw(learning_rate=3e-3),
    schedule=c.WarmupCosine(warmup=10),
    train=c.Train(steps=20 if SMOKE else 400, batch_size=8),
    evaluation=c.Evaluation(every=10 if SMOKE else 100),
    checkpoint=c.Checkpoint(every=10 if SMOKE else 100),
)

# %%
from rich.console import Console

outcome = gpt_jax.train(config, str(runs / "baseline"), console=Console(force_jupyter=False))
outcome

# %% [markdown]
# ## The curve
#
# `metrics.jsonl` has one line for each step and one for each evaluation. The tokens are bytes, and a uniform guess among all 257 has a loss of ln 257 = 5.55 nats: the curve starts there and falls far below.

# %%
import json
import math


def losses(run, split):
    lines = [json.loads(line) for line in (runs / run / "metrics.jsonl").read_text().splitlines()]
    return zip(*[(line["step"], line["loss"]) for line in lines if line["split"] == split], strict=True)


def plot(*names):
    for i, name in enumerate(names):
        plt.plot(*losses(name, "train"), color=f"C{i}", alpha=0.3)
        plt.plot(*losses(name, "validation"), "o-", color=f"C{i}", label=f"{name}, validation")
    plt.xlabel("step"), plt.ylabel("loss, nats per token"), plt.legend(), plt.show()


plot("baseline")
assert outcome.validation["loss"] < math.log(257) - 0.5

# %% [markdown]
# ## Sample
#
# `generate` is one prefill and one scan over a functional key/value cache. It compiles once for each shape.

# %%
model, params, tokenizer = gpt_jax.load_run(str(runs / "baseline"))
prompt = tokenizer.encode("def ")
sampler = gpt_jax.Sampler(temperature=0.8, top_k=40)
new_tokens = 32 if SMOKE else 200
out = gpt_jax.generate(
    model, params, [prompt, prompt], key=jax.random.key(0), max_new_tokens=new_tokens, sampler=sampler
)
for row, length in zip(out.tokens, out.lengths, strict=True):
    print("def " + tokenizer.decode(row[:length].tolist()), end="\n" + 60 * "─" + "\n")

# %% [markdown]
# ## Look inside
#
# `capture` returns intermediate values by name: here the attention probabilities of the first layer, one picture per head. Each row of a picture belongs to a token, and shows how it divides its attention among itself and the tokens before it: its weights sum to 1, and those of later tokens, above the diagonal, are 0.

# %%
ids = jax.numpy.array([tokenizer.encode("def add(a, b):\n    return a + b")])
logits, captured = model.apply(params, ids, capture="blocks/0/attention/probabilities")
heads = captured["blocks/0/attention/probabilities"][0]  # (H, T, T)
assert jax.numpy.allclose(heads.sum(-1), 1, atol=1e-3) and (jax.numpy.triu(heads, 1) == 0).all()
figure, axes = plt.subplots(1, len(heads), figsize=(12, 3))
for axis, probabilities in zip(axes, heads, strict=True):
    axis.imshow(probabilities, cmap="magma")
plt.show()

# %% [markdown]
# ## Change a setting
#
# One key/value head for all query heads is multi-query attention, whose cache is a quarter as large here. Everything else stays the same bit for bit, including the initial values of the other parameters and the order of the data, so the two curves can be compared. Whether their difference is larger than that between two seeds is a question for [a study](04_ablate_attention.ipynb).

# %%
attention = dataclasses.replace(block.attention, kv_heads=1)
blocks = tuple(dataclasses.replace(b, attention=attention) for b in model_config.blocks)
mqa = dataclasses.replace(config, model=dataclasses.replace(model_config, blocks=blocks))
gpt_jax.train(mqa, str(runs / "mqa"), console=Console(force_jupyter=False))
plot("baseline", "mqa")

small = gpt_jax.load_run(str(runs / "mqa"))[0]
starts = [jax.tree.leaves_with_path(jax.jit(one.init)(jax.random.key(0), ids)) for one in (model, small)]
names = [jax.tree_util.keystr(path) for path, _ in starts[0]]
for name, (_, first), (_, second) in zip(names, *starts, strict=True):
    assert "'key'" in name or "'value'" in name or (first == second).all()
