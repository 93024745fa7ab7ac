# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Attention from scratch
#
# This notebook follows one line of text through a GPT, from characters to the next token. You train a small GPT for a
# few minutes. Then you compute each of its stages by hand, in NumPy, from the parameters that training has found, and
# compare the result with what the model itself computed. At the end, 25 lines of NumPy write the same text as the
# library.
#
# Every claim is an `assert` in the cell that makes it: if the notebook runs to its end, everything it says is true of
# your model. Letters: `T` tokens, `C` width, `H` heads, `D` width of a head, `V` vocabulary, `L` layers.
#
# A CPU is enough (about 5 minutes, most of it training).

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
import itertools
import json
import math
from dataclasses import replace

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console

from gpt_jax import config as c

console = Console(force_jupyter=False, force_terminal=False)  # plain lines
# TPUs and recent GPUs round the inputs of a product unless told not to, and we want to compare five digits.
jax.config.update("jax_default_matmul_precision", "highest")

# %% [markdown]
# ## A small GPT
#
# The shape is that of GPT-2: learned positions, LayerNorm before each sublayer, attention with several heads, and an
# MLP. It reads the source code of Python's standard library, which every machine has.

# %%
C, H, L = (32, 2, 2) if SMOKE else (128, 4, 3)
block = c.BlockConfig(c.Attention(heads=H), c.Mlp(width=4 * C), norm=c.LayerNorm())
config = c.Config(
    model=c.ModelConfig(
        vocab_size=None,  # filled in from the tokenizer
        context_length=128,
        width=C,
        blocks=(block,) * L,
        embedding=c.Embedding(position=c.Learned()),
        final_norm=c.LayerNorm(),
    ),
    data=c.Text(corpus="python", tokenizer=c.Bpe(512 if SMOKE else 2048), validation_tokens=16_384),
    optimizer=c.Adamw(learning_rate=3e-3),
    schedule=c.WarmupCosine(warmup=10 if SMOKE else 50),
    train=c.Train(steps=60 if SMOKE else 800, batch_size=8 if SMOKE else 16),
    evaluation=c.Evaluation(every=30 if SMOKE else 100),
    checkpoint=c.Checkpoint(every=200),
)
outcome = gpt_jax.train(config, str(runs / "from_scratch"), console=console)

# %% [markdown]
# A model that knows nothing gives each of the `V` tokens the same probability, and has a loss of ln `V` nats. The
# curve starts there and falls.

# %%
model, params, tokenizer = gpt_jax.load_run(str(runs / "from_scratch"))
V, D = tokenizer.vocab_size, C // H
lines = [json.loads(line) for line in (runs / "from_scratch" / "metrics.jsonl").read_text().splitlines()]
curve = [(line["step"], line["loss"]) for line in lines if line["split"] == "train"]
assert abs(curve[0][1] - math.log(V)) < 0.5
assert outcome.validation["loss"] < math.log(V) - 0.5

plt.figure(figsize=(7, 2.5))
plt.plot(*zip(*curve, strict=True))
plt.axhline(math.log(V), color="grey", linestyle=":", label="ln V: a uniform guess")
plt.xlabel("step"), plt.ylabel("loss (nats per token)"), plt.legend()
plt.show()

# %% [markdown]
# Small helpers, to compare NumPy with the library and to draw.


# %%
def same(by_hand, library):
    """Asserts that both agree to five digits, and prints the largest difference."""
    np.testing.assert_allclose(by_hand, library, rtol=1e-5, atol=1e-5)
    print(f"by hand = library, to {np.abs(np.asarray(by_hand) - np.asarray(library)).max():.0e}")


def shown(token_id, tokenizer=tokenizer):
    return tokenizer.decode([token_id]).replace(" ", "·").replace("\n", "↵")


# %%
def heat(axis, values, title, x=None, y=None, signed=False):
    """Draws a matrix; `x` and `y` name its columns and rows. Signed values: red is positive, blue negative."""
    values = np.asarray(values)
    top = np.abs(values[np.isfinite(values)]).max()
    axis.imshow(values, cmap="RdBu_r" if signed else "magma", vmin=-top if signed else 0, vmax=top, aspect="auto")
    axis.set_title(title, fontsize=10)
    axis.set_xticks(range(len(x)) if x else [], x or [], rotation=90, family="monospace", fontsize=7)
    axis.set_yticks(range(len(y)) if y else [], y or [], family="monospace", fontsize=7)


def label(axis, x, y, token_id):
    """Writes a token into a cell."""
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}
    axis.text(x, y, shown(token_id), ha="center", va="center", family="monospace", bbox=box)


def figure(columns, width=12.0, height=3.2, **options):
    return plt.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False, **options)[1][0]


# %% [markdown]
# ## Text becomes ids
#
# A model computes with numbers, so text is cut into **tokens**, and each token has an **id** in a vocabulary of `V`
# entries. The simplest tokens are characters: the vocabulary is the set of characters that occur, and an id is a
# character's place in it.

# %%
from gpt_jax.data.tokenizer import CharacterTokenizer

text = "def get(self, key, default):\n    return self.data.get(key, default)\n"
letters = CharacterTokenizer.train([text])
vocabulary = sorted(set(text))
by_hand = [vocabulary.index(letter) for letter in text]
assert by_hand == letters.encode(text)
assert letters.decode(by_hand) == text
print(len(vocabulary), "characters:", vocabulary)
print(by_hand[:10], "…")

# %% [markdown]
# Characters make long rows. **Byte-pair encoding** starts from the 256 bytes and has learned, from the training text,
# which neighbours to merge: the most frequent pair first, then the next. To encode a word, merge its pairs in the
# order in which they were learned.

# %%
pieces = {tokenizer.decode_bytes([i]): i for i in range(V)}


def encode_word(word):
    parts = [bytes([byte]) for byte in word.encode()]
    while True:
        print(" ".join(part.decode(errors="replace") for part in parts))
        known = [pieces.get(left + right, V) for left, right in itertools.pairwise(parts)]
        if min(known, default=V) == V:
            return [pieces[part] for part in parts]
        first = known.index(min(known))
        parts[first : first + 2] = [parts[first] + parts[first + 1]]


assert encode_word("returning") == tokenizer.encode("returning")
for any_text in ("", text, "안녕 😉\r\n"):
    assert tokenizer.decode(tokenizer.encode(any_text)) == any_text

# %% [markdown]
# Because its alphabet is bytes, any text can be encoded, and comes back unchanged. Below: the same line as characters
# and as byte pairs (`·` is a space, `↵` a new line). Frequent words are one token, with the space before them.

# %%
plt.figure(figsize=(12, 1.5))
for row, coder in enumerate((tokenizer, letters)):
    place, ids = 0, coder.encode(text)
    for number, token_id in enumerate(ids):
        token = shown(token_id, coder)
        plt.barh(row, len(token), left=place, color=f"C{number % 8}", alpha=0.35, edgecolor="white", height=0.7)
        for letter in token:
            plt.text(place + 0.5, row, letter, ha="center", va="center", family="monospace")
            place += 1
    plt.text(place + 1, row, f"{len(ids)} tokens", va="center")
plt.xlim(0, len(text) + 9), plt.axis("off")
plt.show()
assert len(tokenizer.encode(text)) < len(letters.encode(text))

# %% [markdown]
# ## Ids become vectors
#
# Each id selects a row of a table, `wte` (V, C): the token's **embedding**. A second table, `wpe`, has a row for each
# position. Their sum is all that the model knows at first: which token stands here, and where *here* is.
#
# `capture="**"` returns every intermediate value of the model by its name. We compare with those from now on.

# %%
ids = np.array(tokenizer.encode(text))
names, T = [shown(i) for i in ids], len(ids)
logits, seen = model.apply(params, ids[None], capture="**")
seen = {name: np.asarray(value[0]) for name, value in seen.items()}  # of the only row of this batch
p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
wte, wpe = p["embedding"]["table"], p["embedding"]["position"]["table"]

embedding = wte[ids] + wpe[:T]  # (T, C)
same(embedding, seen["embedding"])

left, middle, right = figure(3)
heat(left, wte[ids][:, :48], "token: wte[ids]", y=names, signed=True)
heat(middle, wpe[:T, :48], "position: wpe[:T]", signed=True)
heat(right, embedding[:, :48], "their sum (the first 48 of C numbers)", signed=True)
plt.show()

# %% [markdown]
# An id outside the vocabulary has no row. The model refuses it instead of reading somewhere else.

# %%
for wrong in (-1, V):
    try:
        model.apply(params, jnp.array([[wrong]]))
    except ValueError as error:
        print(error)
    else:
        raise AssertionError("the model took an id that does not exist")

# %% [markdown]
# Meaning lies in directions: tokens that are used alike point the same way. The cosine of the angle between two
# vectors measures it. The nearest neighbour of a token is always itself; look at what comes next.

# %%
from gpt_jax.analysis.embeddings import nearest_neighbours

directions = wte / np.linalg.norm(wte, axis=1, keepdims=True)
some = [i for word in (" if", " None", "self", "1", ".", " return") if len(i := tokenizer.encode(word)) == 1]
some = np.array(some)[:, 0]
cosines = directions[some] @ directions.T
neighbours, library = nearest_neighbours(jnp.asarray(wte[some]), jnp.asarray(wte), 8)
same(-np.sort(-cosines)[:, :8], library)
assert (neighbours[:, 0] == some).all()

(axis,) = figure(1, 9, 2.6)
heat(axis, library, "cosine with the nearest neighbours in the table", y=[shown(i) for i in some])
for row, column in np.ndindex(*neighbours.shape):
    label(axis, column, row, int(neighbours[row, column]))
plt.show()

# %% [markdown]
# ## Norm: every vector at the same scale
#
# Before each sublayer, **LayerNorm** shifts and scales each position's vector to mean 0 and standard deviation 1,
# then applies a learned scale and bias. Positions do not mix: reorder them, and the result is reordered in the same
# way.


# %%
def normed(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + block.norm.eps)


def norm(x, learned):
    return normed(x) * learned["scale"] + learned["bias"]


layers = [p["blocks"][str(i)] for i in range(L)]
layer = layers[0]
x = norm(embedding, layer["attention_norm"])
same(x, seen["blocks/0/attention_norm/output"])
assert np.abs(normed(embedding).mean(-1)).max() < 1e-6
assert np.abs(normed(embedding).std(-1) - 1).max() < 0.05  # eps makes small vectors a little smaller
assert np.array_equal(normed(embedding[::-1]), normed(embedding)[::-1])

left, right = figure(2, 9, 2.6)
left.boxplot(embedding.T, widths=0.6, showfliers=False), left.set_title("each position's C numbers before")
right.boxplot(normed(embedding).T, widths=0.6, showfliers=False), right.set_title("and after the norm")
for axis in (left, right):
    axis.set_xticks(range(1, T + 1), names, rotation=90, family="monospace", fontsize=7)
plt.show()

# %% [markdown]
# ## The residual pathway: sublayers add
#
# A block does not replace a vector. Attention and the MLP each compute a **change**, which is added to the stream
# that runs from the embedding to the head. So the last vector is the embedding plus `2L` changes, and a block whose
# output kernels are 0 returns what it was given.

# %%
changes = [f"blocks/{i}/{kind}_change" for i in range(L) for kind in ("attention", "mlp")]
same(embedding + sum(seen[name] for name in changes), seen[f"blocks/{L - 1}/output"])


def without_output(path, leaf):
    return 0 * leaf if {"output", "down"} & {key.key for key in path} else leaf


zeroed = jax.tree.map_with_path(without_output, params)
_, idle = model.apply(zeroed, ids[None], capture=("embedding", f"blocks/{L - 1}/output"))
assert np.array_equal(idle["embedding"], idle[f"blocks/{L - 1}/output"])

parts = {"embedding": embedding} | {name.replace("blocks/", ""): seen[name] for name in changes}
(axis,) = figure(1, 8, 2.6)
axis.bar(parts.keys(), [np.linalg.norm(value, axis=-1).mean() for value in parts.values()], color="C0")
axis.set_ylabel("length of the vector"), axis.set_title("What each part adds to the stream, mean over the positions")
axis.tick_params(axis="x", rotation=20)
plt.show()

# %% [markdown]
# ## One head: who is relevant for whom?
#
# Attention moves information between positions. A head makes three vectors of width `D` at each position: a **query**
# (what am I looking for?), a **key** (what do I offer?) and a **value** (what do I hand over?). The **score** of a
# query and a key is their dot product, divided by √D so that it does not grow with the width.

# %%
h = 0
q, k, v = (x @ layer["attention"][name]["kernel"][:, h * D : (h + 1) * D] for name in ("query", "key", "value"))
scores = q @ k.T / math.sqrt(D)  # (T, T): a row for each query, a column for each key
same(k, seen["blocks/0/attention/keys"][:, h])
same(v, seen["blocks/0/attention/values"][:, h])
same(scores, seen["blocks/0/attention/scores"][h])

one, two, three, four = figure(4)
heat(one, q, "queries (T, D)", y=names, signed=True)
heat(two, k, "keys (T, D)", signed=True)
heat(three, v, "values (T, D)", signed=True)
heat(four, scores, "scores q·k / √D (T, T)", x=names, signed=True)
plt.show()

# %% [markdown]
# ## The causal mask: nobody looks ahead
#
# The model will predict the next token, so a position must not see it. The mask sets the scores of later keys to −∞,
# and the **softmax** turns each row into weights: positive, with the sum 1, and exactly 0 above the diagonal.


# %%
def softmax(scores):
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


may_see = np.tri(T, dtype=bool)
masked = np.where(may_see, scores, -np.inf)
weights = softmax(masked)
same(weights, seen["blocks/0/attention/probabilities"][h])
assert np.allclose(weights.sum(-1), 1)
assert (seen["blocks/0/attention/probabilities"][:, ~may_see] == 0).all()

one, two, three = figure(3)
heat(one, scores, "scores", x=names, y=names, signed=True)
heat(two, masked, "later keys masked", x=names, signed=True)
heat(three, weights, "softmax: weights (rows sum to 1)", x=names)
plt.show()

# %% [markdown]
# The output of the head is, at each position, the mean of the values with these weights. Change the last token, and
# no earlier output of the model moves by a single bit. Without the mask they would, as in BERT, which reads in both
# directions and therefore cannot write from left to right.

# %%
head = weights @ v
same(head, seen["blocks/0/attention/heads"][h])

other = ids.copy()
other[-1] = (ids[-1] + 1) % V
moved = np.abs(np.asarray(model.apply(params, other[None])[0]) - logits[0]).max(-1)
assert (moved[:-1] == 0).all() and moved[-1] > 0


def one_head(ids, may_see):
    x = norm(wte[ids] + wpe[:T], layer["attention_norm"])
    q, k, v = (x @ layer["attention"][name]["kernel"][:, h * D : (h + 1) * D] for name in ("query", "key", "value"))
    return softmax(np.where(may_see, q @ k.T / math.sqrt(D), -np.inf)) @ v


everything = np.ones_like(may_see)
causal, blind = (np.abs(one_head(ids, see) - one_head(other, see)).max(-1) for see in (may_see, everything))
assert (causal[:-1] == 0).all() and (blind > 0).all()
(axis,) = figure(1, 8, 2.4)
axis.bar(np.arange(T) - 0.2, causal, 0.4, label="causal"), axis.bar(np.arange(T) + 0.2, blind, 0.4, label="no mask")
axis.set_xticks(range(T), names, rotation=90, family="monospace"), axis.legend(), axis.set_yscale("log")
axis.set_title("How far the head's output moves when the last token changes (no bar: not at all)")
plt.show()

# %% [markdown]
# ## Several heads, in parallel
#
# `H` heads do this at the same time, each with its own kernels. Their outputs are concatenated to `C` numbers, and
# one more kernel mixes them into the change that the stream receives.


# %%
def attention(x, kernels):
    """(T, C) → (T, C)"""
    q, k, v = (
        (x @ kernels[name]["kernel"]).reshape(-1, H, D).swapaxes(0, 1)  # (H, T, D)
        for name in ("query", "key", "value")
    )
    scores = np.where(np.tri(len(x), dtype=bool), q @ k.swapaxes(1, 2) / math.sqrt(D), -np.inf)
    heads = softmax(scores) @ v  # (H, T, D)
    return heads.swapaxes(0, 1).reshape(len(x), C) @ kernels["output"]["kernel"]


same(attention(x, layer["attention"]), seen["blocks/0/attention_change"])

# %% [markdown]
# Different heads attend to different things at once. Look for columns: a token that many others look at, such as the
# first one or the one where a statement begins. Look for diagonals too: the token before, or the one that followed
# this token last time. The lines below the picture say where the last token looks.

# %%
maps = np.stack([seen[f"blocks/{i}/attention/probabilities"] for i in range(L)])  # (L, H, T, T)
assert np.abs(maps[0, 0] - maps[0, 1]).max() > 0.01
axes = plt.subplots(L, H, figsize=(2.8 * H, 2.7 * L), layout="constrained")[1]
for i, h in np.ndindex(L, H):
    last, first = i == L - 1, h == 0
    heat(axes[i, h], maps[i, h], f"layer {i}, head {h}", x=names if last else None, y=names if first else None)
plt.show()
for i, h in np.ndindex(L, H):
    most = maps[i, h, -1].argmax()
    print(f"layer {i}, head {h}: {names[-1]} gives most weight to {names[most]} ({maps[i, h, -1, most]:.0%})")

# %% [markdown]
# ## The MLP: each position by itself
#
# After attention has brought information to a position, the MLP works on it there: up to `4C` hidden numbers, an
# activation (GELU) that lets the positive ones through, and down again. It sees one position at a time: computed for
# one row alone, the result is the same.


# %%
def gelu(x):
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def mlp(x, kernels):
    """(T, C) → (T, C)"""
    return gelu(x @ kernels["up"]["kernel"]) @ kernels["down"]["kernel"]


y = norm(seen["blocks/0/attention_residual"].astype(np.float64), layer["mlp_norm"])
same(mlp(y, layer["mlp"]), seen["blocks/0/mlp_change"])
assert np.allclose(mlp(y[3:4], layer["mlp"]), mlp(y, layer["mlp"])[3:4])

hidden = seen["blocks/0/mlp/hidden"]
left, right = figure(2, gridspec_kw={"width_ratios": [1, 3]})
grid = np.linspace(-4, 4, 200)
left.plot(grid, gelu(grid)), left.axhline(0, color="grey", lw=0.5), left.set_title("GELU")
heat(right, hidden[:, :128], f"hidden numbers (the first 128 of {hidden.shape[1]})", y=names, signed=True)
plt.show()
print(f"{(hidden > 0.1).mean():.0%} of the hidden numbers are above 0.1; the others hardly count")

# %% [markdown]
# ## Blocks repeat, and vectors learn their context
#
# Every block takes (T, C) and returns (T, C). At first, a token's vector depends on the token and its place alone.
# Change one token, and see the change spread: within the embedding it stays in its column, and each block carries it
# to the right, never to the left.

# %%
place = 4
other = ids.copy()
other[place] = (ids[place] + 1) % V
stages = ["embedding", *(f"blocks/{i}/output" for i in range(L))]
_, changed = model.apply(params, other[None], capture=stages)
distance = np.stack([np.linalg.norm(np.asarray(changed[name])[0] - seen[name], axis=-1) for name in stages])
assert all(seen[name].shape == (T, C) for name in stages)
assert (distance[0, np.arange(T) != place] == 0).all() and distance[0, place] > 0
assert (distance[:, :place] == 0).all() and (distance[1:, place:] > 0).all()

(axis,) = figure(1, 10, 2.4)
title = f"How far each vector moves when token {place} changes (each row: relative to its largest)"
heat(axis, distance / distance.max(-1, keepdims=True), title, names, stages)
plt.show()

# %% [markdown]
# ## The head: a score for every token
#
# After the last block and a last norm, each vector is compared with the row of every token in the embedding table
# (the head is *tied*). That is all the stages. Here is the whole model:


# %%
def forward(ids):
    """The logits (T, V) of a row of ids."""
    x = wte[ids] + wpe[: len(ids)]
    for layer in layers:
        x = x + attention(norm(x, layer["attention_norm"]), layer["attention"])
        x = x + mlp(norm(x, layer["mlp_norm"]), layer["mlp"])
    return norm(x, p["final_norm"]) @ wte.T


same(forward(ids), logits[0])
assert forward(ids).shape == (T, V)

# %% [markdown]
# ## Softmax: scores become probabilities
#
# What follows `return`? The same softmax as above turns a row of `V` logits into probabilities. They lie between 0
# and 1, sum to 1, and keep the order of the logits. Only differences of logits count, and even huge logits do no
# harm, because the largest is subtracted first.

# %%
here = len(tokenizer.encode(text[: text.index(" self.data")]))  # the number of tokens up to `return`
last = forward(ids)[here - 1]
guess = softmax(last)
assert (guess > 0).all() and (guess < 1).all() and math.isclose(guess.sum(), 1)
assert np.array_equal(guess.argsort(), last.argsort())
assert np.allclose(softmax(last + 7), guess)
assert np.isfinite(softmax(np.array([1e4, 0.0, -1e4]))).all()

best = np.argsort(-guess)[:12]
(axis,) = figure(1, 8, 2.6)
axis.bar(range(12), guess[best]), axis.set_ylabel("probability")
axis.set_xticks(range(12), [shown(int(i)) for i in best], rotation=90, family="monospace")
axis.set_title(f"What follows {names[here - 1]}?")
plt.show()

# %% [markdown]
# ## Loss: position t predicts token t + 1
#
# The loss at a position is −ln of the probability that the model gave to the token that came. The training loss is
# its mean. Surprising tokens (a new name) cost much; those that had to come (the indentation after a colon) cost
# little.

# %%
from gpt_jax.training.loss import cross_entropy

probabilities = softmax(forward(ids)[:-1])  # the last position has no next token here
surprise = -np.log(probabilities[np.arange(T - 1), ids[1:]])
same(surprise, cross_entropy(logits[0, :-1], jnp.asarray(ids[1:]))[0])

(axis,) = figure(1, 10, 2.8)
axis.bar(range(1, T), surprise), axis.set_xticks(range(1, T), names[1:], rotation=90, family="monospace")
axis.axhline(math.log(V), color="grey", linestyle=":"), axis.set_ylabel("nats")
axis.set_title(f"Loss for each token (mean {surprise.mean():.2f}; dotted: a uniform guess)")
plt.show()

# %% [markdown]
# ## Temperature: bold or careful
#
# To write, we draw the next token from these probabilities. Dividing the logits by a **temperature** τ first changes
# how bold the draw is. Towards τ = 0 the most probable token takes everything. τ = 1 changes nothing. As τ rises, the
# distribution flattens, and its entropy rises towards that of a uniform guess, ln `V`.

# %%
temperatures = (0.001, 0.3, 0.6, 1.0, 1.5, 3.0, 10.0)
drawn_from = np.stack([softmax(last / t) for t in temperatures])
entropy = -(drawn_from * np.log(np.maximum(drawn_from, 1e-300))).sum(-1)
assert (np.diff(entropy) > 0).all() and entropy[-1] < math.log(V)
assert drawn_from[0].argmax() == last.argmax() and drawn_from[0].max() > 0.9
same(drawn_from[1], gpt_jax.Sampler(temperature=0.3).probabilities(logits[:1, here - 1])[0])

left, right = figure(2, 11, 2.8)
for t in (0.3, 1.0, 3.0):
    left.plot(drawn_from[temperatures.index(t), best], "o-", label=f"τ = {t}")
left.set_xticks(range(12), [shown(int(i)) for i in best], rotation=90, family="monospace")
left.legend(), left.set_title("probability")
right.semilogx(temperatures, entropy, "o-"), right.axhline(math.log(V), color="grey", linestyle=":")
right.set_xlabel("temperature"), right.set_title("entropy in nats (dotted: ln V)")
plt.show()

# %% [markdown]
# ## The loop: forward, choose, append, again
#
# A GPT writes one token at a time: compute the logits, choose a token, append it to the text, and start again. With
# the most probable token chosen each time, our NumPy writes exactly what the library writes.

# %%
prompt = tokenizer.encode("    def __init__(self")
new = 12 if SMOKE else 40
written, steps = list(prompt), []
for _ in range(new):
    steps.append(softmax(forward(np.array(written))[-1]))
    written.append(int(steps[-1].argmax()))

library = gpt_jax.generate(model, params, [prompt], key=jax.random.key(0), max_new_tokens=new, sampler=gpt_jax.Greedy())
assert library.tokens[0].tolist() == written[len(prompt) :]
print(tokenizer.decode(written))

# %% [markdown]
# The first steps of this loop, from left to right: the five most probable tokens of each step. The top row is what
# was written.

# %%
top = np.argsort(-np.stack(steps[:12]))[:, :5].T  # (5, steps)
(axis,) = figure(1, 12, 2.6)
heat(axis, np.take_along_axis(np.stack(steps[:12]).T, top, 0), "probability of the five best tokens of each step")
for row, column in np.ndindex(*top.shape):
    label(axis, column, row, int(top[row, column]))
plt.show()

# %% [markdown]
# Greedy text soon repeats itself. Sampling does not; the same key gives the same text again.

# %%
options = {"key": jax.random.key(1), "max_new_tokens": 24 if SMOKE else 80}
for temperature in (0.5, 0.8, 1.2):
    sampler = gpt_jax.Sampler(temperature=temperature)
    out = gpt_jax.generate(model, params, [prompt], sampler=sampler, **options)
    again = gpt_jax.generate(model, params, [prompt], sampler=sampler, **options)
    assert np.array_equal(out.tokens, again.tokens)
    print(f"τ = {temperature} {60 * '─'}\n" + tokenizer.decode(prompt + out.tokens[0].tolist()))

# %% [markdown]
# ## The KV cache: compute keys and values once
#
# Our loop runs the whole text through the model for every new token. But the mask means that earlier positions never
# change, so their keys and values can be kept. Then one step computes one position: its query meets the kept keys.


# %%
def step(token, cache):
    """The logits (V,) after one more token. `cache` has a list of keys and one of values for each layer; both grow."""
    x = wte[token] + wpe[len(cache[0]["key"])]
    for layer, kept in zip(layers, cache, strict=True):
        y, kernels = norm(x, layer["attention_norm"]), layer["attention"]
        query = (y @ kernels["query"]["kernel"]).reshape(H, D)
        for name in ("key", "value"):
            kept[name].append((y @ kernels[name]["kernel"]).reshape(H, D))
        keys, values = np.array(kept["key"]), np.array(kept["value"])  # (S, H, D)
        weights = softmax(np.einsum("hd,shd->hs", query, keys) / math.sqrt(D))
        x = x + np.einsum("hs,shd->hd", weights, values).reshape(C) @ kernels["output"]["kernel"]
        x = x + mlp(norm(x, layer["mlp_norm"]), layer["mlp"])
    return norm(x, p["final_norm"]) @ wte.T


cache = [{"key": [], "value": []} for _ in range(L)]
assert np.allclose(np.stack([step(token, cache) for token in ids]), forward(ids))  # the same numbers at every position

# %% [markdown]
# The library does the same. Its cache is a value that goes in and comes out: reading the first tokens at once
# (*prefill*) and the others one by one gives the logits of the whole row.

# %%
cache = gpt_jax.init_cache(model.config, batch_size=1, length=T)
apply = jax.jit(model.apply)
first, cache = apply(params, ids[None, :5], cache=cache)
rows = [first[0]]
for t in range(5, T):
    one, cache = apply(params, ids[None, t : t + 1], cache=cache)
    rows.append(one[0])
same(forward(ids), np.concatenate(rows))

# %% [markdown]
# How much work is saved? A product with a kernel of `n` numbers takes `2n` operations for each token, and a query's
# scores and mean take `4C` for each key that it sees. Without a cache, token `t` costs a pass over all `t` tokens.
# With it, a pass over one.

# %%
from gpt_jax.analysis.cost import forward_flops_per_token

kernels = L * (4 * C * C + 8 * C * C) + C * V  # attention, MLP, head


def work(keys):
    """The operations for one token that sees `keys` keys."""
    return 2 * kernels + 4 * C * L * keys


lengths = np.arange(1, 129)
with_cache = work(lengths)
without = np.cumsum(with_cache)
assert math.isclose(without[-1], 128 * forward_flops_per_token(model.config, 128), rel_tol=1e-6)
(axis,) = figure(1, 7, 2.8)
axis.plot(lengths, without / 1e6, label="without a cache"), axis.plot(lengths, with_cache / 1e6, label="with a cache")
axis.set_xlabel("length of the text"), axis.set_ylabel("million operations"), axis.legend()
axis.set_title("Work for one more token")
plt.show()
print(f"at 128 tokens: {without[-1] / with_cache[-1]:.0f} times less work with a cache")

# %% [markdown]
# ## MHA, GQA, MQA: a smaller cache
#
# The price of the cache is memory: `2 · L · K · D` numbers for each token, where `K` is the number of key/value
# heads. In multi-head attention (MHA) `K = H`. Multi-query attention (MQA, Shazeer 2019) has one key/value head for
# all query heads, and grouped-query attention (GQA, Ainslie et al. 2023) has one for each group. The cache shrinks by
# `H / K`.


# %%
def with_kv_heads(model_config, K):
    return replace(
        model_config,
        blocks=tuple(replace(b, attention=replace(b.attention, kv_heads=K)) for b in model_config.blocks),
    )


def cache_bytes(model_config, length):
    cache = jax.eval_shape(lambda: gpt_jax.init_cache(model_config, batch_size=1, length=length))  # shapes, no memory
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache.layers))


big = c.BlockConfig(c.Attention(heads=32), c.GatedMlp(width=14_336))
big = c.ModelConfig(vocab_size=32_000, context_length=8192, width=4096, blocks=(big,) * 32, dtype="bfloat16")
print("kv heads   ours, 128 tokens   a 7B model, 8,192 tokens")
sizes = {}
for ours, K in zip(sorted({1, H // 2, H}), (1, 8, 32), strict=False):
    small, sizes[K] = cache_bytes(with_kv_heads(model.config, ours), 128), cache_bytes(with_kv_heads(big, K), 8192)
    assert small == 2 * L * ours * D * 128 * 4  # float32: 4 bytes
    assert sizes[K] == 2 * 32 * K * 128 * 8192 * 2  # bfloat16: 2 bytes
    print(f"{ours:2} and {K:2} {small:17,} B {sizes[K] / 2**30:20.3f} GiB")

# %% [markdown]
# Sharing is all that changes: a model with `K` key/value heads computes what one with `H` computes, if neighbouring
# heads of the latter have equal key and value kernels.


# %%
def repeated(path, leaf):
    """Gives each query head its own copy of the key and value head that it shares."""
    if not {"key", "value"} & {key.key for key in path}:
        return leaf
    return jnp.repeat(leaf.reshape(C, 1, D), H, axis=1).reshape(C, H * D)


mqa = gpt_jax.GPT(with_kv_heads(model.config, 1))
mqa_params = mqa.init(jax.random.key(0), ids[None])
assert mqa_params["params"]["blocks"]["0"]["attention"]["key"]["kernel"].shape == (C, D)
as_mha = jax.tree.map_with_path(repeated, mqa_params)
same(mqa.apply(mqa_params, ids[None]), model.apply(as_mha, ids[None]))

axes = figure(3, 11, 2.2)
for axis, (kind, K) in zip(axes, {"MHA": 8, "GQA": 2, "MQA": 1}.items(), strict=True):
    for head in range(8):
        shared = (head // (8 // K) + 0.5) * 8 / K - 0.5
        axis.plot([head, shared], [1, 0], color="grey", zorder=0)
        axis.scatter(head, 1, color="C0", s=90), axis.scatter(shared, 0, color="C3", s=90)
    axis.set_title(f"{kind}: 8 query heads, {K} key/value head{'s' * (K > 1)}"), axis.axis("off")
plt.show()

# %% [markdown]
# ## What you have seen
#
# Text → ids → vectors → (norm → attention → add → norm → MLP → add) × L → norm → logits → probabilities → a token →
# text.
#
# - [An attention of your own](03_own_attention.ipynb) replaces the attention by one that you write.
# - [A small study](04_ablate_attention.ipynb) asks what fewer key/value heads cost in loss, and answers with an
#   interval.
# - `gpt_jax/model/` has the same stages under the same names; `docs/text_to_text.md` reads them in order.
