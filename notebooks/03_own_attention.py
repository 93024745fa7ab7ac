# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # gpt_jax: an attention of your own
#
# Define a kind of attention in a cell, train it beside the package's softmax attention on a task that needs recall, compare the two, and decode with it from its own cache. Nothing in the package changes.
#
# This one lets each token see only the token before it: enough to copy a neighbour, too little to look anything up.

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
from dataclasses import dataclass, replace

import jax.numpy as jnp
import matplotlib.pyplot as plt
from flax import linen as nn
from rich.console import Console

from gpt_jax import config as c
from gpt_jax.model.linear import Linear

# %% [markdown]
# ## Settings and module
#
# The settings are a frozen dataclass under `AttentionConfig`; its name is the `type` in configuration files and on the command line. The module is a `Mixer`: it takes `x (B, T, C)` and, in decoding, the cache that `cache_shapes` describes. It passes on `shared`, which carries values from layer to layer. `row` holds the positions of the tokens. Run this cell again before you load a run in another session.

# %%
@dataclass(frozen=True)
class Previous(c.AttentionConfig):
    width: int = 32


@gpt_jax.register_attention(Previous)
class PreviousToken(gpt_jax.Mixer):
    @nn.compact
    def __call__(self, x, row, cache, shared, train):
        std, dtype = self.model.init.kernel_std, self.model.param_dtype
        value = Linear(self.config.width, False, std, dtype, name="value")(x)
        last = jnp.zeros_like(value[:, :1]) if cache is None else cache["last"]
        before = jnp.concatenate([last, value[:, :-1]], axis=1)
        if row.padding is not None:  # nothing stands before a row's first token
            before = jnp.where((row.steps > row.padding[:, None])[..., None], before, 0)
        y = Linear(x.shape[-1], False, std, dtype, self.output_scale, name="output")(before)
        return y, None if cache is None else {**cache, "last": value[:, -1:]}, shared

    @staticmethod
    def cache_shapes(config, model, length):
        return {"last": jax.ShapeDtypeStruct((1, config.width), jnp.dtype(model.dtype))}

    @staticmethod
    def mixing_flops(config, model, context):
        return 0  # beside the products with kernels


# %% [markdown]
# ## Three stacks, one task
#
# In the induction task a sequence repeats, and the model predicts the token that followed last time. Two softmax layers can learn it; two layers that see only the previous token cannot. One of each can: this is the known circuit of a previous-token head and an induction head (Olsson et al. 2022, arXiv:2209.11895).
#
# A guess among the 32 symbols costs ln 32 = 3.47 nats. The middle stack should stay there, and the other two should fall to almost 0.

# %%
previous = c.BlockConfig(attention=Previous(), mlp=None)
softmax = c.BlockConfig(attention=c.Attention(heads=4, position=c.Rope()), mlp=None)
stacks = {
    "softmax, softmax": (softmax, softmax),
    "previous, previous": (previous, previous),
    "previous, softmax": (previous, softmax),
}
base = c.Config(
    model=c.ModelConfig(
        vocab_size=None,  # filled in from the task
        context_length=48,
        width=32 if SMOKE else 64,
        blocks=stacks["softmax, softmax"],
        head=c.Head(tied=False),
        init=c.Init(embedding_std=1.0, kernel_std=None, output="same"),
    ),
    data=c.Induction(symbols=32),
    optimizer=c.Adamw(learning_rate=1e-2),
    schedule=c.WarmupCosine(warmup=20),
    train=c.Train(steps=40 if SMOKE else 400, batch_size=8 if SMOKE else 32),
    evaluation=c.Evaluation(every=20 if SMOKE else 100),
    checkpoint=c.Checkpoint(every=20 if SMOKE else 100),
)
outcomes = {}
for name, blocks in stacks.items():
    config = replace(base, model=replace(base.model, blocks=blocks))
    folder = runs / f"own_attention_{name.replace(', ', '_')}"
    outcomes[name] = gpt_jax.train(config, str(folder), console=Console(quiet=True))
    loss = outcomes[name].validation["loss"]
    print(f"{name}: validation loss {loss:.3f} nats")
    assert SMOKE or (loss > 3 if name == "previous, previous" else loss < 0.1)

# %%
import json

for name in stacks:
    lines = (runs / f"own_attention_{name.replace(', ', '_')}" / "metrics.jsonl").read_text().splitlines()
    records = [r for r in map(json.loads, lines) if r["split"] == "train"]
    plt.plot([r["step"] for r in records], [r["loss"] for r in records], label=name)
plt.xlabel("step")
plt.ylabel("training loss (nats per token)")
plt.legend()
plt.show()

# %% [markdown]
# ## Decode
#
# `load_run` needs the definition of `Previous` above. `generate` gives each layer its own kind of cache: one vector for `Previous`, keys and values for softmax attention. The prompt begins to repeat, and the model goes on with it.

# %%
model, params, tokenizer = gpt_jax.load_run(str(runs / "own_attention_previous_softmax"))
shapes = [jax.tree.map(jnp.shape, layer) for layer in gpt_jax.init_cache(model.config, 1, 48).layers]
print(shapes)
prompt = tokenizer.encode("GHJKLMGHJ")
new = gpt_jax.generate(model, params, [prompt], key=jax.random.key(0), max_new_tokens=8, sampler=gpt_jax.Greedy())
continued = tokenizer.decode(new.tokens[0].tolist())
print("GHJKLMGHJ →", continued)
assert SMOKE or continued == "KLMGHJKL"
