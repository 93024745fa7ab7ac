# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # gpt_jax: look inside
#
# Train two tiny models on a task whose answer is known, then find out how one of them solves it: read values, edit them, score heads, read layers as predictions, patch one run into another. At the end, a page walks through both models side by side.
#
# A sequence of random symbols repeats, and a model has to say what followed last time. A stack of two layers learns this with a known circuit: a head of the first layer tells each position which symbol stands before it, and a head of the second finds the position that has the present symbol before it, and copies what stands there (Olsson et al. 2022, arXiv:2209.11895). One layer has no room for it.

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
from html import escape

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from rich.console import Console

from gpt_jax import config as c
from gpt_jax.analysis.capture import read, tap_shapes
from gpt_jax.analysis.heads import head_table
from gpt_jax.analysis.interventions import at, edited, zero
from gpt_jax.analysis.lens import logit_lens
from gpt_jax.analysis.patching import ablation_losses, activation_patching, attribution_patching
from gpt_jax.analysis.walkthrough import walk_through
from gpt_jax.data import Batch
from gpt_jax.pages.walkthrough import walkthrough_page

# %% [markdown]
# ## Two models, one task
#
# They differ in their number of layers alone: the first layer starts from the same values in both, and both read the same rows.

# %%
heads = 2
symbols, length = (16, 32) if SMOKE else (32, 48)
block = c.BlockConfig(attention=c.Attention(heads=heads, position=c.Rope()), mlp=None)
base = c.Config(
    model=c.ModelConfig(
        vocab_size=None,  # filled in from the task
        context_length=length,
        width=32 if SMOKE else 64,
        blocks=(block, block),
        head=c.Head(tied=False),
        init=c.Init(embedding_std=1.0, kernel_std=None, output="same"),
    ),
    data=c.Induction(symbols=symbols, length=length, longest_period=length // 2),
    optimizer=c.Adamw(learning_rate=1e-2),
    schedule=c.WarmupCosine(warmup=20),
    train=c.Train(steps=300 if SMOKE else 400, batch_size=32),
    evaluation=c.Evaluation(every=100),
    checkpoint=c.Checkpoint(every=100),
)

# %%
accuracy = {}
for name, layers in {"two_layers": 2, "one_layer": 1}.items():
    config = dataclasses.replace(base, model=dataclasses.replace(base.model, blocks=(block,) * layers))
    outcome = gpt_jax.train(config, str(runs / f"look_inside_{name}"), console=Console(quiet=True))
    accuracy[name] = outcome.validation["accuracy"]
    lines = (runs / f"look_inside_{name}" / "metrics.jsonl").read_text().splitlines()
    records = [r for r in map(json.loads, lines) if r["split"] == "train"]
    plt.plot([r["step"] for r in records], [r["loss"] for r in records], label=name)
plt.xlabel("step"), plt.ylabel("training loss (nats per token)"), plt.legend(), plt.show()
print(accuracy)

# %% [markdown]
# You should see the curve of two layers fall to about zero, and that of one layer stay far above: on rows that neither has seen, two layers are right almost always, one layer is not.

# %%
assert accuracy["two_layers"] > 0.95 and accuracy["one_layer"] < 0.5

# %% [markdown]
# ## Every value has a name
#
# `tap_shapes` lists them, and computes nothing. `read` returns the values that a glob names. The text is eight symbols, which repeat.

# %%
model, params, tokenizer = gpt_jax.load_run(str(runs / "look_inside_two_layers"))
single, single_params, _ = gpt_jax.load_run(str(runs / "look_inside_one_layer"))
period = 8
text = tokenizer.decode(list(range(3, 3 + period))) * 3
tokens = jnp.array([tokenizer.encode(text)])[:, : 2 * period + 3]
letters = [tokenizer.decode([int(i)]) for i in tokens[0]]
for name, value in tap_shapes(model, params, tokens).items():
    print(f"{name:40} {value.shape}")

# %%
found = read(model, params, tokens, ("blocks/*/attention/probabilities", "logits"))
figure, axes = plt.subplots(2, heads, figsize=(3 * heads, 6), squeeze=False)
for layer, row in enumerate(axes):
    for head, axis in enumerate(row):
        axis.imshow(found[f"blocks/{layer}/attention/probabilities"][0, head], cmap="magma", vmin=0, vmax=1)
        axis.set_title(f"layer {layer}, head {head}")
        axis.set_xticks(range(len(letters)), letters), axis.set_yticks(range(len(letters)), letters)
plt.tight_layout()
plt.show()

# %% [markdown]
# Each row is a query, each column a key. You should see a line beside the diagonal in the first layer, and in the second a line that starts where the text repeats: the symbol after the last occurrence.
#
# Reading changes nothing: the logits are the same bits with and without it.

# %%
plain = model.apply(params, tokens, capture="logits")[1]["logits"]
also = model.apply(params, tokens, capture=("logits", "blocks/*/attention/probabilities"))[1]["logits"]
assert (plain == also).all()
assert (plain[0].argmax(-1)[period:-1] == tokens[0, period + 1 :]).all()  # from the first repeat on, all are right

# %% [markdown]
# ## Which head does what
#
# `head_table` scores every head. `previous_token` is the share of attention on the token before, `induction` that on the tokens which followed earlier occurrences of the present one.

# %%
rng = np.random.default_rng(0)
rows = jnp.array([np.tile(rng.permutation(symbols)[:period], 3) for _ in range(16)])
tables = {"two layers": head_table(model, params, rows), "one layer": head_table(single, single_params, rows)}
figure, axes = plt.subplots(1, 2, figsize=(10, 3), sharey=True)
for axis, (title, table) in zip(axes, tables.items(), strict=True):
    places = np.arange(len(table["layer"]))
    for shift, score in ((-0.2, "previous_token"), (0.2, "induction")):
        axis.bar(places + shift, table[score], 0.4, label=score)
    axis.set_xticks(places, [f"{i}.{j}" for i, j in zip(table["layer"], table["head"], strict=True)])
    axis.set_title(title), axis.set_xlabel("layer.head")
axes[1].legend()
plt.show()

# %% [markdown]
# With two layers you should see a head of the first layer that looks at the token before, and heads of the second that score high on induction. With one layer there is no such head.

# %%
two, one = tables["two layers"], tables["one layer"]
first = two["layer"] == 0
assert two["previous_token"][first].max() > 0.5 and two["induction"][~first].max() > 0.5
assert one["induction"].max() < 0.3 and two["induction"][first].max() < 0.3

# %% [markdown]
# ## Without it
#
# An edit takes a value and returns what the model goes on with. If the circuit is the known one, the heads of the second layer find much less without the previous-token head of the first.

# %%
best = int(two["previous_token"][first].argmax())
without = {"blocks/0/attention/heads": at(zero, heads=best, heads_first=True)}
after = head_table(edited(model, without), params, rows)
print("induction:", two["induction"][~first].round(2), f"without head 0.{best}:", after["induction"][~first].round(2))
assert after["induction"][~first].max() < two["induction"][~first].max() - 0.3

# %% [markdown]
# `ablation_losses` removes each head in turn and returns how much the loss rises, here on the repeats alone.

# %%
weights = jnp.zeros(rows[:, 1:].shape).at[:, period:].set(1)
rises = ablation_losses(model, params, Batch(rows[:, :-1], rows[:, 1:], weights))
for layer, rise in enumerate(rises.values()):
    plt.bar([f"{layer}.{head}" for head in range(heads)], rise)
plt.xlabel("layer.head left out"), plt.ylabel("rise of the loss (nats per token)"), plt.show()
rise = rises["blocks/0/attention/heads"]
assert rise[best] == max(rise) > 0.5

# %% [markdown]
# You should see that the previous-token head is the one of its layer that the model can least do without. Heads of the second layer may stand in for each other.
#
# ## The logit lens
#
# What would the model predict if it stopped here? The final norm and the head read the stream after each layer.

# %%
lens = logit_lens(model, params, tokens)
right = np.exp(lens.of_next[:, 0])  # probability of the token that follows: (embedding and each layer, T − 1)
plt.figure(figsize=(10, 2.5))
plt.imshow(right, cmap="magma", vmin=0, vmax=1, aspect="auto")
plt.xticks(range(len(right[0])), letters[:-1]), plt.yticks(range(3), ["embedding", "layer 0", "layer 1"])
plt.colorbar(label="probability of what follows"), plt.show()
assert right[2, period:].mean() > 0.9 and right[:2, period:].mean() < 0.5

# %% [markdown]
# You should see one bright stretch: the last layer, from where the text repeats. The answer appears in the second layer, all at once.
#
# ## Patching
#
# Two texts differ in one symbol, the one to be copied. Put single values of the first run into the second: which of them carry the answer? 0 means no effect, 1 means that the answer is the first run's.

# %%
clean = tokens[:, : period + 3]
place = 3  # of the symbol that the last one has to be followed by
other = (int(clean[0].max()) + 1) % symbols
corrupted = clean.at[0, place].set(other)
answer = int(clean[0, place])
names = ("embedding", "blocks/*/output")
effects = activation_patching(model, params, clean, corrupted, lambda z: z[0, -1, answer] - z[0, -1, other], names)
guess = attribution_patching(model, params, clean, corrupted, lambda z: z[0, -1, answer] - z[0, -1, other], names)

# %%
figure, axes = plt.subplots(2, 1, figsize=(8, 4), sharex=True)
for axis, title, table in zip(axes, ("activation patching", "attribution patching"), (effects, guess), strict=True):
    image = axis.imshow(np.array(list(table.values())), cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    axis.set_yticks(range(3), ["embedding", "layer 0", "layer 1"]), axis.set_title(title)
axes[1].set_xticks(range(clean.shape[1]), letters[: clean.shape[1]])
figure.colorbar(image, ax=axes, label="share of the answer")
plt.show()

# %% [markdown]
# You should see the answer move: up to the first layer it stands at the symbol itself, after the second it stands at the end. That is the copying, found without looking at any attention.

# %%
assert effects["blocks/0/output"].argmax() == place and effects["blocks/0/output"][place] > 0.8
assert effects["blocks/1/output"].argmax() == period + 2 and abs(effects["blocks/1/output"][-1] - 1) < 1e-3
assert np.abs(effects["blocks/1/output"][:-1]).max() < 1e-3

# %% [markdown]
# ## The page
#
# One page has all stages of both models with their real numbers, from the text to the next token. Point at a cell: its formula is shown. It is one file without a network; `python -m experiments.inspect` writes the same from the command line.

# %%
prompt = tokens[0, : period + 3].tolist()
arms = {"two layers": (model, params), "one layer": (single, single_params)}
walks = [walk_through(*arm, tokenizer, prompt, name=name, new_tokens=4) for name, arm in arms.items()]
page = walkthrough_page("Two layers and one", tokenizer.decode(prompt), walks, "notebooks/05_look_inside.ipynb")
(runs / "look_inside.html").write_text(page, "utf-8")
HTML(f'<div><iframe srcdoc="{escape(page)}" width="100%" height="800"></iframe></div>')

# %% [markdown]
# You should see both models continue the same text, two layers with the symbols that the repeat asks for.

# %%
says = {walk.name: [token.id for token in walk.tokens[-4:]] for walk in walks}
assert says["two layers"] == tokens[0, place : place + 4].tolist() != says["one layer"]
assert len(page) < 15e6 and all(name in page for name in arms)
