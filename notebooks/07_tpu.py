# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # gpt_jax: many devices
#
# See which devices there are, lay a mesh over them, look at what each one holds, estimate a run on TPUs before renting any, and train on all local devices.
#
# On Colab, `Runtime ▸ Change runtime type` selects a TPU. Everything works on a CPU too: one CPU device then stands for four.

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
import json

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import treescope
from jax.extend.backend import clear_backends
from rich.console import Console

from gpt_jax import config as c
from gpt_jax.analysis.plan import plan_train_step
from gpt_jax.config.errors import UserError
from gpt_jax.training.partition import shardings
from gpt_jax.training.sharding import make_mesh, settled

# %% [markdown]
# ## Devices
#
# A TPU v5e of Colab has one chip or eight. A CPU is one device for jax, until it is told to be more: what a program does on several is then the same as on chips, only not faster.

# %%
if jax.default_backend() == "cpu" and jax.device_count() == 1:
    clear_backends()  # nothing has been computed yet
    jax.config.update("jax_num_cpu_devices", 4)
if jax.default_backend() == "cpu":
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # CPU devices that wait for each other, one at a time
devices = jax.devices()
for device in devices:
    print(device.id, device.platform, device.device_kind, f"process {device.process_index}")
n = len(devices)
assert n > 1 or jax.default_backend() != "cpu"

# %% [markdown]
# ## A mesh
#
# A mesh arranges the devices along named axes. `data` divides the rows of a batch, and each device has a copy of the model. `fsdp` divides rows and parameters. `tensor` divides heads and hidden units, `sequence` the positions of a row. A configuration spells it, such as `mesh="data=2,fsdp=2"`; −1 takes what is left.

# %%
spelled = "data=2,fsdp=-1" if n % 2 == 0 else "data=1,fsdp=-1"
mesh = make_mesh(axes=spelled)
grid = np.vectorize(lambda device: device.id)(mesh.devices)
plt.figure(figsize=(4, 2.5))
plt.imshow(grid, cmap="Pastel1", aspect="auto")
for (row, column), number in np.ndenumerate(grid):
    plt.text(column, row, f"device {number}", ha="center", va="center")
plt.xlabel("fsdp"), plt.ylabel("data"), plt.xticks(range(grid.shape[1])), plt.yticks(range(grid.shape[0]))
plt.show()
assert dict(mesh.shape) == {"data": grid.shape[0], "fsdp": grid.shape[1]} and grid.size == n

# %% [markdown]
# ## What each device holds
#
# One function says where every array lies, for training, restoring and decoding alike. Parameters are computed in their place: no device ever has all of them.

# %%
width = 64 if SMOKE else 256
block = c.BlockConfig(c.Attention(heads=4, position=c.Rope()), c.GatedMlp(width=4 * width))
model_config = c.ModelConfig(vocab_size=257, context_length=64 if SMOKE else 128, width=width, blocks=(block,) * 2)
model, tokens = gpt_jax.GPT(model_config), jnp.zeros((1, 8), int)
shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
places = shardings(model_config, mesh, shapes)
params = settled(jax.jit(model.init, out_shardings=places)(jax.random.key(0), tokens), mesh)
kernel = params["params"]["blocks"]["0"]["mlp"]["up"]["kernel"]
jax.debug.visualize_array_sharding(kernel)

# %% [markdown]
# The picture above is one kernel: its columns or rows are divided along `fsdp`, and devices along `data` have copies. treescope draws the same for arrays of any number of axes.

# %%
treescope.render_array_sharding(kernel)

# %%
held = {device.id: 0 for device in devices}
for leaf in jax.tree.leaves(params):
    for shard in leaf.addressable_shards:
        held[shard.device.id] += shard.data.nbytes
whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
plt.figure(figsize=(6, 2.5))
plt.bar([str(i) for i in held], [size / 1e6 for size in held.values()]), plt.axhline(whole / 1e6, ls="--", color="grey")
plt.xlabel("device"), plt.ylabel("MB of parameters"), plt.title("dashed: a whole copy")
plt.show()

# %% [markdown]
# You should see equal bars, of about the whole divided by the size of `fsdp`.

# %%
assert len(set(held.values())) == 1
assert whole / mesh.shape["fsdp"] <= held[devices[0].id] < 1.1 * whole / mesh.shape["fsdp"]

# %% [markdown]
# ## Plan
#
# libtpu compiles the very step of a run for a slice that is not here. What it needs of memory, and how long a step takes by the compiler's own cycles, is known before anything is rented. `python -m experiments.plan` prints more, on a page.

# %%
config = c.Config(
    model=dataclasses.replace(model_config, vocab_size=None),  # filled in from the tokenizer
    data=c.Text(corpus="python", validation_tokens=8_192 if SMOKE else 65_536),
    optimizer=c.Adamw(learning_rate=3e-3),
    schedule=c.WarmupCosine(warmup=10),
    train=c.Train(steps=20 if SMOKE else 100, batch_size=2 * n),
    evaluation=c.Evaluation(every=10 if SMOKE else 50),
    checkpoint=c.Checkpoint(every=10 if SMOKE else 50),
)
planned = dataclasses.replace(config, model=model_config, mesh="data=2,fsdp=2", train=c.Train(steps=200, batch_size=64))
try:
    forecast = plan_train_step(planned, "v5e:2x2")
except UserError as error:
    forecast = None
    print(f"No plan: {error}")

# %%
if forecast is not None:
    print(f"{forecast.chips} × {forecast.chip}: a step of {1e6 * forecast.seconds:.0f} µs, by estimate")
    plt.figure(figsize=(7, 2.5))
    plt.barh(list(forecast.memory), [size / 1e6 for size in forecast.memory.values()])
    plt.xlabel(f"MB on each chip, of {forecast.usable / 1e9:.1f} GB")
    plt.show()
    assert forecast.fits and forecast.chips == 4 and forecast.seconds >= forecast.roofline

# %% [markdown]
# ## Train on all of them
#
# Two runs: one divides the rows alone, one divides the parameters too. A mesh changes where numbers are computed; the losses agree up to rounding.

# %%
curves = {}
for name, axes in {"data": "data=-1", "data and fsdp": spelled}.items():
    folder = runs / f"tpu_{n}_{name.replace(' ', '_')}"
    gpt_jax.train(dataclasses.replace(config, mesh=axes), str(folder), console=Console(quiet=True))
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    curves[name] = [line["loss"] for line in lines if line["split"] == "train"]
for style, (name, losses) in zip(("-", "--"), curves.items(), strict=True):
    plt.plot(losses, style, label=name)
plt.xlabel("line of the log"), plt.ylabel("training loss (nats per token)"), plt.legend()
plt.show()

# %% [markdown]
# You should see one curve on top of the other. The order in which devices add changes last digits, and training makes such differences grow: the first steps agree to a thousandth, the last ones by their mean.

# %%
apart = np.abs(np.subtract(*curves.values()))
late = np.round([np.mean(losses[-10:]) for losses in curves.values()], 3)
print(f"apart: {apart[:10].max():.1e} nats in the first ten steps, {apart.max():.1e} at most; late means: {late}")
assert curves["data"][-1] < curves["data"][0] and apart[:10].max() < 1e-3 and abs(late[0] - late[1]) < 0.1

# %% [markdown]
# ## Next
#
# A slice with several hosts runs the same program on each of them: [From an empty project to a curve on TPUs](../docs/tpu.md).
